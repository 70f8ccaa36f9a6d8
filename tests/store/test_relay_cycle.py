"""Sequence, claim and record, on both databases."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta

from sqlalchemy import text

from relay.daemon.lease_renewal import claim_of
from relay.delivery import facts
from relay.delivery.outcome import Delivered, Failed
from relay.store.claim import claim
from relay.store.database import Database
from relay.store.leases import give_back, renew
from relay.store.reap import reap
from relay.store.record import record
from relay.store.sequence import sequence
from tests.store.conftest import POLICIES, START, FakeClock, an_event

Receive = Callable[..., list[int | None]]
DONE = Delivered((), "forwarded")
BROKEN = Failed((), "server_error", "forward answered 503")
MAPPING = Failed((), "mapping", "email: no value")


def states(database: Database) -> list[tuple[int, str]]:
    with database.read() as transaction:
        rows = transaction.execute(text("SELECT seq, state FROM open_delivery ORDER BY seq, route"))
    return [(row.seq, row.state) for row in rows]


def log(database: Database) -> list[tuple[int, str]]:
    with database.read() as transaction:
        return [
            (row.seq, row.kind) for row in transaction.execute(text("SELECT seq, kind FROM delivery_log ORDER BY id"))
        ]


def test_a_strict_lane_is_delivered_one_by_one_in_order(database: Database, receive: Receive) -> None:
    receive(an_event(2), an_event(1), an_event(3))
    sequence(database, POLICIES, "r1")

    assert states(database) == [(1, "waiting"), (2, "ready"), (3, "waiting")]

    order = []
    for _ in range(3):
        (delivery,) = claim(database, "r1", [(["strict"], 10)])
        order.append(delivery.seq)
        record(database, POLICIES, "r1", [(delivery, DONE)])

    assert order == [2, 1, 3]
    assert states(database) == []


def test_a_lane_that_fails_does_not_hold_up_another(database: Database, receive: Receive) -> None:
    receive(an_event(1, "a"), an_event(2, "a"), an_event(3, "b"))
    sequence(database, POLICIES, "r1")
    first, other = claim(database, "r1", [(["strict"], 10)])
    record(database, POLICIES, "r1", [(first, BROKEN), (other, DONE)])

    assert states(database) == [(1, "ready"), (2, "waiting")]
    assert claim(database, "r1", [(["strict"], 10)]) == []


def test_a_failed_attempt_is_due_again_after_the_first_delay(
    database: Database, receive: Receive, clock: FakeClock
) -> None:
    receive(an_event(1))
    sequence(database, POLICIES, "r1")
    (delivery,) = claim(database, "r1", [(["strict"], 1)])
    (recorded,) = record(database, POLICIES, "r1", [(delivery, BROKEN)])

    assert isinstance(recorded.fact, facts.AttemptFailed)
    assert START + timedelta(seconds=5) == recorded.fact.due_at

    clock.advance(4.9)
    assert claim(database, "r1", [(["strict"], 1)]) == []
    clock.advance(0.2)
    (again,) = claim(database, "r1", [(["strict"], 1)])
    assert again.attempt == 2


def test_in_latest_the_newest_stands_for_all_that_wait(database: Database, receive: Receive) -> None:
    receive(*(an_event(n, routes=["latest"]) for n in (1, 2, 3)))
    sequence(database, POLICIES, "r1")

    assert states(database) == [(3, "ready")]
    assert log(database) == [(1, "superseded"), (2, "superseded")]


def test_in_latest_what_arrives_while_one_is_in_flight_waits(database: Database, receive: Receive) -> None:
    receive(an_event(1, routes=["latest"]))
    sequence(database, POLICIES, "r1")
    (delivery,) = claim(database, "r1", [(["latest"], 1)])
    receive(an_event(2, routes=["latest"]), an_event(3, routes=["latest"]))
    sequence(database, POLICIES, "r1")

    assert states(database) == [(1, "in_flight"), (3, "waiting")]

    record(database, POLICIES, "r1", [(delivery, DONE)])
    assert states(database) == [(3, "ready")]


def test_in_latest_a_newer_event_takes_over_a_retry_and_pulls_it_forward(
    database: Database, receive: Receive, clock: FakeClock
) -> None:
    receive(an_event(1, routes=["latest"]))
    sequence(database, POLICIES, "r1")
    for _ in range(3):
        (delivery,) = claim(database, "r1", [(["latest"], 1)])
        record(database, POLICIES, "r1", [(delivery, BROKEN)])
        clock.advance(400)
    (delivery,) = claim(database, "r1", [(["latest"], 1)])
    receive(an_event(2, routes=["latest"]))
    sequence(database, POLICIES, "r1")
    record(database, POLICIES, "r1", [(delivery, BROKEN)])

    assert states(database) == [(2, "ready")]
    assert log(database)[-2:] == [(1, "superseded"), (2, "took_over")]
    clock.advance(5.1)
    (newer,) = claim(database, "r1", [(["latest"], 1)])
    assert (newer.seq, newer.attempt) == (2, 5)


def test_a_dead_head_lets_the_lane_go_on(database: Database, receive: Receive) -> None:
    receive(an_event(1), an_event(2))
    sequence(database, POLICIES, "r1")
    (delivery,) = claim(database, "r1", [(["strict"], 1)])
    record(database, POLICIES, "r1", [(delivery, MAPPING)])

    assert states(database) == [(1, "dead"), (2, "ready")]


def test_a_dead_head_blocks_the_lane_when_the_route_says_so(database: Database, receive: Receive) -> None:
    receive(an_event(1, routes=["blocking"]), an_event(2, routes=["blocking"]))
    sequence(database, POLICIES, "r1")
    (delivery,) = claim(database, "r1", [(["blocking"], 1)])
    record(database, POLICIES, "r1", [(delivery, MAPPING)])

    assert states(database) == [(1, "blocked"), (2, "waiting")]
    assert claim(database, "r1", [(["blocking"], 1)]) == []


def test_a_lease_that_ran_out_is_taken_over_and_the_late_result_discarded(
    database: Database, receive: Receive, clock: FakeClock
) -> None:
    receive(an_event(1), an_event(2))
    sequence(database, POLICIES, "r1")
    (stale,) = claim(database, "r1", [(["strict"], 1)])
    clock.advance(15.1)
    assert reap(database, POLICIES, "r2") == [(1, "strict", facts.Abandoned(relay_node="r1"))]
    (fresh,) = claim(database, "r2", [(["strict"], 1)])

    (discarded,) = record(database, POLICIES, "r1", [(stale, DONE)])
    assert discarded.fact is None
    (kept,) = record(database, POLICIES, "r2", [(fresh, DONE)])
    assert isinstance(kept.fact, facts.DeliveredFact)
    assert log(database) == [(1, "abandoned"), (1, "delivered")]


def test_a_renewed_lease_is_not_reaped(database: Database, receive: Receive, clock: FakeClock) -> None:
    receive(an_event(1))
    sequence(database, POLICIES, "r1")
    (delivery,) = claim(database, "r1", [(["strict"], 1)])
    clock.advance(10)
    held = (delivery.seq, delivery.route, delivery.lease_token)
    assert {held} == renew(database, [held])
    clock.advance(10)
    assert reap(database, POLICIES, "r2") == []


def test_giving_back_uses_no_attempt(database: Database, receive: Receive) -> None:
    receive(an_event(1))
    sequence(database, POLICIES, "r1")
    (delivery,) = claim(database, "r1", [(["strict"], 1)])
    assert give_back(database, POLICIES, "r1", [claim_of(delivery)]) == 1
    (again,) = claim(database, "r2", [(["strict"], 1)])
    assert again.attempt == 1
    assert log(database) == []


def test_an_older_event_that_came_meanwhile_goes_before_one_that_is_given_back(
    database: Database, receive: Receive
) -> None:
    receive(an_event(2))
    sequence(database, POLICIES, "r1")
    (later,) = claim(database, "r1", [(["strict"], 1)])
    receive(an_event(1))
    sequence(database, POLICIES, "r2")
    give_back(database, POLICIES, "r1", [claim_of(later)])

    assert states(database) == [(1, "waiting"), (2, "ready")]
    (older,) = claim(database, "r2", [(["strict"], 10)])
    assert older.seq == 2


def test_in_latest_one_that_is_given_back_is_folded_into_a_newer_one_that_waits(
    database: Database, receive: Receive
) -> None:
    receive(an_event(1, routes=["latest"]))
    sequence(database, POLICIES, "r1")
    (older,) = claim(database, "r1", [(["latest"], 1)])
    receive(an_event(2, routes=["latest"]))
    sequence(database, POLICIES, "r2")
    give_back(database, POLICIES, "r1", [claim_of(older)])

    assert states(database) == [(2, "ready")]
    assert log(database) == [(1, "superseded")]


def test_an_event_that_arrives_after_a_later_one_was_delivered_is_late(database: Database, receive: Receive) -> None:
    receive(an_event(5))
    sequence(database, POLICIES, "r1")
    (delivery,) = claim(database, "r1", [(["strict"], 1)])
    record(database, POLICIES, "r1", [(delivery, DONE)])
    receive(an_event(4))
    sequence(database, POLICIES, "r1")
    (late,) = claim(database, "r1", [(["strict"], 1)])
    (recorded,) = record(database, POLICIES, "r1", [(late, DONE)])

    assert isinstance(recorded.fact, facts.DeliveredFact)
    assert recorded.fact.late


def test_an_older_claims_result_is_discarded_though_it_is_handed_in_with_the_present_ones(
    database: Database, receive: Receive, clock: FakeClock
) -> None:
    receive(an_event(1))
    sequence(database, POLICIES, "r1")
    (first,) = claim(database, "r1", [(["strict"], 1)])
    record(database, POLICIES, "r1", [(first, BROKEN)])
    clock.advance(10)
    (second,) = claim(database, "r1", [(["strict"], 1)])

    recorded = record(database, POLICIES, "r1", [(first, BROKEN), (second, DONE)])

    assert [result.fact is None for result in recorded] == [True, False]
    assert log(database) == [(1, "attempt_failed"), (1, "delivered")]
