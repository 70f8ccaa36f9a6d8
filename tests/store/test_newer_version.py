"""An older relay beside facts that only a newer version knows: it leaves their deliveries alone, and says so."""

from __future__ import annotations

import pytest

from inbox.errors import UnreadableLog
from relay.store.reopen import find
from tests.helpers.relaying import CONFIG, DONE, Steps
from tests.helpers.storing import a_fact, an_event, drop_checks
from tests.store.verifying import differences, mend


@pytest.fixture
def of_tomorrow(steps: Steps) -> Steps:
    """Two delivered events, of which one has a fact of a newer version."""
    steps.arrive(an_event(1, "u1"), an_event(2, "u2"))
    for _ in range(2):
        steps.attempt(DONE)
    drop_checks(steps.database.engine, "delivery_log", "kind")
    steps.do(a_fact("of_tomorrow"))
    return steps


def findings(steps: Steps) -> list[tuple[str, int | None]]:
    return [(one.finding, one.seq) for one in differences(steps.database)]


def test_verify_tells_of_it_and_a_rebuild_leaves_it_as_it_is(of_tomorrow: Steps) -> None:
    assert findings(of_tomorrow) == [("newer_version", 1)]
    before = of_tomorrow.kinds()
    assert mend(of_tomorrow.database) == []
    assert (of_tomorrow.kinds(), findings(of_tomorrow)) == (before, [("newer_version", 1)])


def test_it_alone_cannot_be_taken_up_again(of_tomorrow: Steps) -> None:
    with of_tomorrow.database.write() as transaction:
        assert [row.seq for row in find(transaction, CONFIG, [(2, "strict")])] == [2]
        with pytest.raises(UnreadableLog, match=r"fact 3, a of_tomorrow, is of a newer version: let that do it"):
            find(transaction, CONFIG, [(1, "strict"), (2, "strict")])


def test_a_hand_written_fact_that_nothing_can_read_is_put_right_by_a_rebuild(steps: Steps) -> None:
    """And then the delivery can be taken up again: the correction stands for all that was before it."""
    steps.arrive(an_event(1))
    steps.attempt(DONE)
    steps.do(a_fact("dead"))
    mend(steps.database)
    assert findings(steps) == []
    with steps.database.write() as transaction:
        (row,) = find(transaction, CONFIG, [(1, "strict")])
    assert row.state == "ended"
