"""Facts that a claim gives a worker besides the event, and the worker's use of them."""

from __future__ import annotations

from datetime import timedelta

import pytest
from sqlalchemy import text

from relay.delivery import facts
from relay.delivery.lifecycle import append
from relay.delivery.ordering import settle
from relay.delivery.outcome import Delivered, Failed, Unchanged
from relay.store.database import ROW, as_open_delivery
from tests.helpers.relaying import HOPELESS, Steps
from tests.helpers.storing import an_event
from tests.store.verifying import differences

STALE = Failed((), "stale", "fetch: last changed before the event")
BROKEN = Failed((), "server_error", "fetch: answered 503")


def test_how_often_what_was_fetched_was_older_than_the_event(steps: Steps) -> None:
    steps.arrive(an_event(1))
    known = []
    for outcome in (STALE, BROKEN, STALE, STALE):
        claimed = steps.attempt(outcome)
        known.append((claimed.stale_before, claimed.attempt))
        steps.advance(600)
    assert known == [(0, 1), (1, 1), (1, 2), (2, 2)]
    steps.facts_agree()


def taken_up_again(steps: Steps, by: str) -> None:
    """A person replays it, a repeat re-arms it, or a rebuild corrects it."""
    with steps.database.write() as transaction:
        (dead,) = map(as_open_delivery, transaction.execute(text(f"SELECT {ROW} FROM open_delivery o")))
        begins: dict[str, facts.AnyFact] = {
            "replayed": facts.Replayed(who="kim", why="mended"),
            "rearmed": facts.Rearmed(duplicate=1),
            "corrected": facts.Corrected(state="open", attempt=0, run=0, who="kim", why="contradicts itself"),
        }
        opened = append(dead, begins[by], transaction.lock_order())
        transaction.write_back(settle("strict", [opened], transaction.now(), timedelta(0)), None)


@pytest.mark.parametrize("by", ["replayed", "rearmed", "corrected"])
def test_what_an_earlier_run_fetched_is_not_counted_in_the_next(steps: Steps, by: str) -> None:
    """A new run waits again for a replica that is behind."""
    steps.arrive(an_event(1))
    for outcome in (STALE, STALE, HOPELESS):
        steps.attempt(outcome)
        steps.advance(600)
    taken_up_again(steps, by)
    known = []
    for _ in range(3):
        known.append(steps.attempt(STALE).stale_before)
        steps.advance(600)
    assert known == [0, 1, 2]


def test_what_was_sent_last_for_its_lane(steps: Steps) -> None:
    steps.arrive(an_event(1), an_event(2), an_event(3, "u2"))
    assert steps.attempt(Delivered((), "updated", applied_hash=b"\x01" * 32)).applied_hash is None
    assert sorted([steps.claim().applied_hash or b"", steps.claim().applied_hash or b""]) == [b"", b"\x01" * 32]


def test_one_that_had_nothing_to_send_has_ended_and_stands_for_the_dead_before_it(steps: Steps) -> None:
    steps.arrive(an_event(1, routes=["latest"]))
    steps.attempt(HOPELESS, "latest")
    steps.arrive(an_event(2, routes=["latest"]))
    steps.attempt(Unchanged(()), "latest")
    assert steps.states() == []
    assert sorted(steps.kinds()) == [(1, "dead"), (1, "superseded"), (2, "unchanged")]
    (row,) = steps.rows("SELECT state, attempts FROM delivery WHERE seq = 2")
    assert row == {"state": "unchanged", "attempts": 1}
    assert differences(steps.database) == []


def test_a_head_whose_attempts_are_counted_as_far_as_the_column_goes_stops_no_other(steps: Steps) -> None:
    steps.arrive(an_event(1), an_event(2, "u2"))
    steps.do("UPDATE open_delivery SET attempt = 2147483647 WHERE seq = 1")
    claimed = [steps.claim(), steps.claim()]
    assert [(delivery.seq, delivery.attempt) for delivery in claimed] == [(1, 2147483647), (2, 1)]
