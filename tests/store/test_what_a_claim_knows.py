"""Facts that a claim gives a worker besides the event, and the worker's use of them."""

from __future__ import annotations

from datetime import timedelta

import pytest
from sqlalchemy import text

from relay.delivery import facts
from relay.delivery.lifecycle import append
from relay.delivery.ordering import settle
from relay.delivery.outcome import Call, CallStep, Delivered, Failed, Sent, Unchanged
from relay.store.deliveries import ROW, as_open_delivery, write_back
from relay.store.sequence import quarantine
from tests.helpers.relaying import HOPELESS, Steps
from tests.helpers.storing import START, an_event
from tests.store.verifying import differences, mend

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
    """A person replays it, or a repeat re-arms it."""
    with steps.database.write() as transaction:
        (dead,) = map(as_open_delivery, transaction.execute(text(f"SELECT {ROW} FROM open_delivery o")))
        begins: dict[str, facts.AnyFact] = {
            "replayed": facts.Replayed(who="kim", why="mended"),
            "rearmed": facts.Rearmed(duplicate=1),
        }
        opened = append(dead, begins[by], transaction.take_order_lock())
        write_back(transaction, settle("strict", [opened], transaction.now(), timedelta(0)))


@pytest.mark.parametrize("by", ["replayed", "rearmed"])
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


REJECTED, CONFLICT = Failed((), "rejected", "answered 422"), Failed((), "conflict", "answered 409")


def test_only_the_failures_of_this_run_and_in_a_row_confirm_each_other(steps: Steps) -> None:
    """A second rejection is final, unless something else happened between, or a person replayed it."""
    steps.arrive(an_event(1))
    for outcome in (REJECTED, CONFLICT, REJECTED):
        steps.attempt(outcome)
        steps.advance(600)
        assert steps.states() == [(1, "strict", "ready")]
    steps.attempt(REJECTED)
    assert steps.states() == [(1, "strict", "dead")]
    taken_up_again(steps, "replayed")
    steps.attempt(REJECTED)
    assert steps.states() == [(1, "strict", "ready")]
    steps.facts_agree()


def test_what_was_sent_last_for_its_lane(steps: Steps) -> None:
    steps.arrive(an_event(1), an_event(2), an_event(3, "u2"))
    assert steps.attempt(Delivered((), "updated", applied_hash=b"\x01" * 32)).applied_hash is None
    assert sorted([steps.claim().applied_hash or b"", steps.claim().applied_hash or b""]) == [b"", b"\x01" * 32]


APPLIED = Delivered((), "updated", START, START, b"\x01" * 32)


def call(step: CallStep, sent: Sent = "unknown") -> Call:
    return Call(step, "PATCH", "https://crm/", sent, 1.0)


@pytest.mark.parametrize(
    ("later", "known"),
    [(Delivered((), "deleted", START), None), (Delivered((), "updated", START, None, b"\x03" * 32), b"\x03" * 32)],
)
def test_a_later_success_says_anew_what_was_sent(steps: Steps, later: Delivered, known: bytes | None) -> None:
    steps.arrive(an_event(1), an_event(2), an_event(3))
    steps.attempt(APPLIED)
    steps.attempt(later)
    assert steps.claim().applied_hash == known


@pytest.mark.parametrize(
    ("calls", "is_known"),
    [
        ((call("fetch", "answered"), call("update")), False),
        ((call("fetch", "answered"), call("create", "answered")), False),
        ((call("delete"),), False),
        ((call("fetch", "answered"), call("update", "not_sent")), True),
        ((call("fetch"),), True),
        ((call("fetch", "answered"), call("find")), True),
    ],
)
def test_a_write_that_may_have_had_an_effect_leaves_nothing_to_compare_with(
    steps: Steps, calls: tuple[Call, ...], is_known: bool
) -> None:
    """Otherwise an entity that returns to its earlier state looked unchanged, and its counterpart would not return."""
    steps.arrive(an_event(1), an_event(2))
    steps.attempt(APPLIED)
    steps.attempt(Failed(calls, "unknown", "no whole answer"))
    steps.advance(600)
    assert steps.claim().applied_hash == (b"\x01" * 32 if is_known else None)


def test_nor_does_the_attempt_of_a_relay_that_died(steps: Steps) -> None:
    steps.arrive(an_event(1), an_event(2))
    steps.attempt(APPLIED)
    steps.claim()
    steps.advance(60)
    steps.reap("r2")
    assert steps.claim().applied_hash is None


def test_nor_does_an_attempt_whose_outcome_cannot_be_recorded(steps: Steps) -> None:
    steps.arrive(an_event(1), an_event(2), an_event(3))
    steps.attempt(APPLIED)
    claimed = steps.claim()
    quarantine(
        steps.work,
        (claimed.seq, claimed.route),
        cause="unrecordable",
        error=ValueError("no outcome"),
        token=claimed.lease_token,
    )
    assert steps.claim().applied_hash is None


def test_a_rebuild_makes_the_next_attempt_fetch_and_send_all(steps: Steps) -> None:
    """The log can't tell whether a later attempt of the lane has changed the other system."""
    steps.arrive(an_event(1), an_event(2))
    steps.attempt(APPLIED)
    steps.attempt(Failed((call("fetch", "answered"), call("update")), "unknown", "no whole answer"))
    steps.do("DELETE FROM lane")
    assert mend(steps.database) != []
    assert differences(steps.database) == []
    steps.advance(600)
    assert steps.claim().applied_hash is None


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
