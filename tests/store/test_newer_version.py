"""An older relay beside facts that only a newer version knows: it leaves their deliveries alone, and says so."""

from __future__ import annotations

import pytest
from sqlalchemy import text

from inbox.errors import UnreadableLog
from relay.delivery.outcome import Delivered
from relay.store.audit.rebuild import rebuild
from relay.store.audit.verify import verify
from relay.store.reopen import find
from tests.store.conftest import Steps, an_event
from tests.store.test_replay import CONFIG

DONE = Delivered((), "forwarded")


@pytest.fixture
def of_tomorrow(steps: Steps) -> Steps:
    """Two delivered events, of which one has a fact of a newer version."""
    steps.arrive(an_event(1, "u1"), an_event(2, "u2"))
    for _ in range(2):
        steps.attempt(DONE)
    with steps.database.engine.begin() as connection:
        if steps.database.sql.is_postgres:
            connection.execute(text("ALTER TABLE delivery_log DROP CONSTRAINT ck_delivery_log_kind"))
        else:
            connection.execute(text("PRAGMA ignore_check_constraints = ON"))
        connection.execute(
            text("""
INSERT INTO delivery_log (at, seq, route, kind, attempt, detail)
VALUES ('2026-01-01 00:00:00.000000Z', 1, 'strict', 'of_tomorrow', 1, '{}')""")
        )
    return steps


def findings(steps: Steps) -> list[tuple[str, int | None]]:
    return [
        (difference.finding, difference.seq)
        for checked in verify(steps.database, CONFIG)
        for difference in checked.differences
        if difference.finding != "view"
    ]


def test_verify_tells_of_it_and_a_rebuild_leaves_it_as_it_is(of_tomorrow: Steps) -> None:
    assert findings(of_tomorrow) == [("newer_version", 1)]
    before = of_tomorrow.kinds()
    assert [
        found for checked in rebuild(of_tomorrow.database, CONFIG, who="kim") for found in checked.differences
    ] == []
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
    with steps.database.engine.begin() as connection:
        connection.execute(
            text("""
INSERT INTO delivery_log (at, seq, route, kind, attempt, detail)
VALUES ('2026-01-01 00:00:00.000000Z', 1, 'strict', 'dead', 1, '{}')""")
        )
    for _ in rebuild(steps.database, CONFIG, who="kim"):
        pass
    assert findings(steps) == []
    with steps.database.write() as transaction:
        (row,) = find(transaction, CONFIG, [(1, "strict")])
    assert row.state == "ended"
