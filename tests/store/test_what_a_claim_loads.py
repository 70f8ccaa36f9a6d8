"""A claim takes no more bodies into memory than fit, and counts an attempt before it loads one."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import psycopg
import pytest
from sqlalchemy.exc import DBAPIError

from inbox.db.dialect import takes_too_long
from relay.delivery.gates import GateKey
from relay.delivery.outcome import Delivery
from relay.store import claim as claims
from relay.store.claim import Room, claim
from relay.store.events import with_events
from relay.store.gates import GateRow
from relay.store.transaction import Transaction
from tests.helpers.relaying import Monotonic, Steps, work_of
from tests.helpers.storing import an_event


def arrived(steps: Steps, *sizes: int) -> None:
    steps.arrive(*(an_event(n, f"u{n}", body=b"x" * size) for n, size in enumerate(sizes, 1)))


def seqs(deliveries: Sequence[Delivery]) -> list[int]:
    return [delivery.seq for delivery in deliveries]


def test_a_claim_ends_with_the_delivery_that_uses_the_last_byte(steps: Steps) -> None:
    arrived(steps, 400, 400, 400, 400)
    room = Room(["strict"], 8, 801)
    assert [seqs(claim(steps.work, [room])) for _ in range(2)] == [[1, 2, 3], [4]]


def test_a_body_that_is_larger_than_the_room_is_claimed_alone(steps: Steps) -> None:
    arrived(steps, 5000, 1, 1)
    assert [seqs(claim(steps.work, [Room(["strict"], 8, 100)])) for _ in range(2)] == [[1], [2, 3]]


def test_the_routes_of_a_destination_share_its_room(steps: Steps) -> None:
    steps.arrive(an_event(1, "a", body=b"x" * 500), an_event(2, "b", body=b"x", routes=["latest"]))
    assert seqs(claim(steps.work, [Room(["strict", "latest"], 8, 500), Room(["latest"], 8, 1)])) == [1, 2]


def test_large_bodies_are_read_one_after_the_other(steps: Steps, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(claims, "LOADED_AT_ONCE", 1000)
    arrived(steps, 400, 400, 5000, 0, 400)
    loaded: list[int] = []

    def counting(transaction: Transaction, some: Sequence[Any]) -> list[Delivery]:
        loaded.append(len(some))
        return found(transaction, some)

    found = with_events
    monkeypatch.setattr(claims, "with_events", counting)
    assert seqs(claim(steps.work, [Room(["strict"], 8)])) == [1, 2, 3, 4, 5]
    assert loaded == [2, 1, 2]


def _claim_anything(steps: Steps, node: str) -> None:
    claim(work_of(steps.database, node=node), [Room(["strict"], 8)])
    claims.claim_suspect(work_of(steps.database, node=node), ["strict"])


class Killed(BaseException):
    """Stands for the end of the process."""


def test_an_attempt_counts_before_its_event_is_loaded_so_that_one_that_kills_the_process_ends_as_a_crash_loop(
    steps: Steps, monkeypatch: pytest.MonkeyPatch
) -> None:
    arrived(steps, 1)

    def kills(*_: object) -> list[Delivery]:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(claims, "with_events", kills)
        for number in range(3):
            with pytest.raises(Killed):
                _claim_anything(steps, f"r{number}")
            steps.advance(100)
            steps.reap("r9")
    assert steps.rows("SELECT seq, cause, attempts FROM dead_letter") == [
        {"seq": 1, "cause": "crash_loop", "attempts": 3}
    ]


def test_what_takes_the_database_too_long_stays_leased_and_the_others_are_delivered(
    steps: Steps, monkeypatch: pytest.MonkeyPatch
) -> None:
    arrived(steps, 1, 1, 1)

    def slow(transaction: Transaction, some: Sequence[Any]) -> list[Delivery]:
        if any(row.seq == 2 for row in some):
            raise DBAPIError("SELECT", {}, psycopg.errors.IdleInTransactionSessionTimeout("too long"))
        return found(transaction, some)

    found = with_events
    with monkeypatch.context() as patch:
        patch.setattr(claims, "with_events", slow)
        assert seqs(claim(steps.work, [Room(["strict"], 8)])) == [1, 3]
    assert steps.states() == [(seq, "strict", "in_flight") for seq in (1, 2, 3)]


def test_what_is_left_when_the_database_fails_amid_a_load_is_given_back_and_costs_no_attempt(
    steps: Steps, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(claims, "LOADED_AT_ONCE", 0)
    arrived(steps, 1, 1, 1)

    def fails_at_the_second(transaction: Transaction, some: Sequence[Any]) -> list[Delivery]:
        if some[0].seq == 2:
            raise DBAPIError("SELECT", {}, psycopg.errors.AdminShutdown("terminating connection"))
        return with_events(transaction, some)

    with monkeypatch.context() as patch:
        patch.setattr(claims, "with_events", fails_at_the_second)
        assert seqs(claim(steps.work, [Room(["strict"], 8)])) == [1]
    assert steps.rows("SELECT seq, state, attempt FROM open_delivery ORDER BY seq") == [
        {"seq": 1, "state": "in_flight", "attempt": 1},
        {"seq": 2, "state": "ready", "attempt": 0},
        {"seq": 3, "state": "ready", "attempt": 0},
    ]


def test_a_transaction_that_stood_idle_for_too_long_counts_as_held_up() -> None:
    assert takes_too_long(DBAPIError("SELECT", {}, psycopg.errors.IdleInTransactionSessionTimeout("too long")))


def test_of_many_routes_only_those_with_something_due_cost_a_statement(
    steps: Steps, monkeypatch: pytest.MonkeyPatch
) -> None:
    arrived(steps, 1)
    asked: list[object] = []
    execute = Transaction.execute

    def executing(transaction: Transaction, statement: Any, **parameters: object) -> list[Any]:  # noqa: ANN401
        asked.append(parameters.get("route"))
        return execute(transaction, statement, **parameters)

    monkeypatch.setattr(Transaction, "execute", executing)
    routes = [f"route {number}" for number in range(1000)]
    rooms = [Room([route], 8) for route in (*routes, "strict")]
    assert seqs(claim(steps.work, rooms)) == [1]
    assert [route for route in asked if route is not None] == ["strict"]


def test_a_claim_of_very_many_routes_that_takes_long_ends_with_what_it_has(
    steps: Steps, monkeypatch: pytest.MonkeyPatch
) -> None:
    arrived(steps, 1)
    monkeypatch.setattr(claims, "LONGEST_SECONDS", -1.0)
    assert claim(steps.work, [Room(["strict"], 8)]) == []
    monkeypatch.setattr(claims, "LONGEST_SECONDS", 1.0)
    assert seqs(claim(steps.work, [Room(["strict"], 8)])) == [1]


def test_a_claim_that_had_to_wait_for_its_turn_still_claims(steps: Steps, monkeypatch: pytest.MonkeyPatch) -> None:
    arrived(steps, 1)
    clock = Monotonic()

    def waits(*_: object) -> dict[GateKey, GateRow]:
        clock.seconds += 5
        return {}

    monkeypatch.setattr(claims, "time", SimpleNamespace(monotonic=clock))
    monkeypatch.setattr(claims, "lock_all", waits)
    assert seqs(claim(steps.work, [Room(["strict"], 8)])) == [1]
