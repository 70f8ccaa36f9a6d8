"""An older relay beside facts that only a newer version knows: their columns say all that it needs."""

from __future__ import annotations

import pytest

from relay.store.reopen import find
from tests.helpers.relaying import CONFIG, DONE, Steps
from tests.helpers.storing import a_fact, an_event, drop_checks
from tests.store.verifying import differences, mend


@pytest.fixture
def of_tomorrow(steps: Steps) -> Steps:
    """A delivered event with a fact of a newer version."""
    steps.arrive(an_event(1))
    steps.attempt(DONE)
    drop_checks(steps.database.engine, "delivery_log", "kind")
    steps.do(a_fact("of_tomorrow", run=1))
    return steps


def test_verify_and_rebuild_go_by_the_state_that_it_tells(of_tomorrow: Steps) -> None:
    before = of_tomorrow.kinds()
    assert differences(of_tomorrow.database) == []
    assert mend(of_tomorrow.database) == []
    assert of_tomorrow.kinds() == before


def test_its_delivery_is_taken_up_again_in_the_next_run(of_tomorrow: Steps) -> None:
    with of_tomorrow.database.write() as transaction:
        (found,) = find(transaction, CONFIG, [(1, "strict")])
    assert (found.state, found.run) == ("ended", 1)
