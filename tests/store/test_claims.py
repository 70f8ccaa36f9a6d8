"""A claim: which facts and how many bodies it gives a worker, and where its scan begins."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import psycopg
import pytest
from sqlalchemy import event
from sqlalchemy.exc import DBAPIError

from relay.delivery.gates import GateKey, make_entity_key
from relay.delivery.outcome import Call, CallStep, Delivered, Delivery, Failed, Sent, Unchanged
from relay.operations.asks import Selection
from relay.store import claim as claims
from relay.store import gates
from relay.store.claim import FreeCapacity, claim, claim_probe
from relay.store.database import WHOLE_EVERY_SECONDS, ScanStart, ScanStarts
from relay.store.events import load_events
from relay.store.gates import GateRow
from relay.store.sequence import quarantine, sequence
from relay.store.transaction import Transaction
from tests.helpers.relaying import HOPELESS, Monotonic, Steps, work_of
from tests.helpers.storing import START, a_row, an_event
from tests.store.conftest import differences, mend
from tests.store.test_replay import replay_all

# --- Facts that a claim gives a worker besides the event, and the worker's use of them


STALE = Failed((), "stale", "fetch: last changed before the event")
BROKEN = Failed((), "server_error", "fetch: answered 503")


def test_a_claim_knows_how_often_the_fetched_was_older_than_the_event(steps: Steps) -> None:
    steps.arrive(an_event(1))
    known = []
    for outcome in (STALE, BROKEN, STALE, STALE):
        claimed = steps.attempt(outcome)
        known.append((claimed.stale_before, claimed.attempt))
        steps.advance(600)
    assert known == [(0, 1), (1, 1), (1, 2), (2, 2)]
    steps.facts_agree()


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
    assert replay_all(steps, Selection(seq=1)) == 1
    steps.attempt(REJECTED)
    assert steps.states() == [(1, "strict", "ready")]
    steps.facts_agree()


def test_a_claim_knows_the_hash_of_the_last_sent_in_its_lane(steps: Steps) -> None:
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
def test_a_write_with_a_possible_effect_leaves_no_hash(steps: Steps, calls: tuple[Call, ...], is_known: bool) -> None:
    """Otherwise an entity that returns to its earlier state looked unchanged, and its counterpart would not return."""
    steps.arrive(an_event(1), an_event(2))
    steps.attempt(APPLIED)
    steps.attempt(Failed(calls, "unknown", "no complete response"))
    steps.advance(600)
    assert steps.claim().applied_hash == (b"\x01" * 32 if is_known else None)


def test_nor_does_the_attempt_of_a_relay_that_died(steps: Steps) -> None:
    steps.arrive(an_event(1), an_event(2))
    steps.attempt(APPLIED)
    steps.claim()
    steps.advance(60)
    steps.rescue("r2")
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
    steps.attempt(Failed((call("fetch", "answered"), call("update")), "unknown", "no complete response"))
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


# --- A claim takes no more bodies into memory than fit, and counts an attempt before it loads one


def arrive_sized(steps: Steps, *sizes: int) -> None:
    steps.arrive(*(an_event(n, f"u{n}", body=b"x" * size) for n, size in enumerate(sizes, 1)))


def seqs(deliveries: Sequence[Delivery]) -> list[int]:
    return [delivery.seq for delivery in deliveries]


def test_a_claim_ends_with_the_delivery_that_uses_the_last_byte(steps: Steps) -> None:
    arrive_sized(steps, 400, 400, 400, 400)
    room = FreeCapacity(["strict"], 8, 801)
    assert [seqs(claim(steps.work, [room])) for _ in range(2)] == [[1, 2, 3], [4]]


def test_a_body_that_is_larger_than_the_room_is_claimed_alone(steps: Steps) -> None:
    arrive_sized(steps, 5000, 1, 1)
    assert [seqs(claim(steps.work, [FreeCapacity(["strict"], 8, 100)])) for _ in range(2)] == [[1], [2, 3]]


def test_the_routes_of_a_destination_share_its_room(steps: Steps) -> None:
    steps.arrive(an_event(1, "a", body=b"x" * 500), an_event(2, "b", body=b"x", routes=["latest"]))
    assert seqs(claim(steps.work, [FreeCapacity(["strict", "latest"], 8, 500), FreeCapacity(["latest"], 8, 1)])) == [
        1,
        2,
    ]


def test_large_bodies_are_read_one_after_the_other(steps: Steps, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(claims, "LOADED_AT_ONCE", 1000)
    arrive_sized(steps, 400, 400, 5000, 0, 400)
    loaded: list[int] = []

    def counting(transaction: Transaction, some: Sequence[Any]) -> list[Delivery]:
        loaded.append(len(some))
        return found(transaction, some)

    found = load_events
    monkeypatch.setattr(claims, "load_events", counting)
    assert seqs(claim(steps.work, [FreeCapacity(["strict"], 8)])) == [1, 2, 3, 4, 5]
    assert loaded == [2, 1, 2]


def _claim_anything(steps: Steps, node: str) -> None:
    claim(work_of(steps.database, node=node), [FreeCapacity(["strict"], 8)])
    claims.claim_suspect(work_of(steps.database, node=node), ["strict"])


class Killed(BaseException):
    """Stands for the end of the process."""


def test_an_attempt_counts_before_its_event_is_loaded(steps: Steps, monkeypatch: pytest.MonkeyPatch) -> None:
    arrive_sized(steps, 1)

    def kills(*_: object) -> list[Delivery]:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(claims, "load_events", kills)
        for number in range(3):
            with pytest.raises(Killed):
                _claim_anything(steps, f"r{number}")
            steps.advance(100)
            steps.rescue("r9")
    assert steps.rows("SELECT seq, cause, attempts FROM dead_letter") == [
        {"seq": 1, "cause": "crash_loop", "attempts": 3}
    ]


@pytest.mark.parametrize(
    ("slow_ones", "loaded", "given_back"),
    [({2}, [1, 3, 4], []), ({2, 3}, [1], [3, 4]), ({1, 2, 3, 4}, None, [2, 3, 4])],
)
def test_one_that_takes_too_long_stays_leased_and_at_a_second_one_the_rest_are_given_back(
    steps: Steps, monkeypatch: pytest.MonkeyPatch, slow_ones: set[int], loaded: list[int] | None, given_back: list[int]
) -> None:
    arrive_sized(steps, 1, 1, 1, 1)

    def slow(transaction: Transaction, some: Sequence[Any]) -> list[Delivery]:
        if any(row.seq in slow_ones for row in some):
            raise DBAPIError("SELECT", {}, psycopg.errors.IdleInTransactionSessionTimeout("too long"))
        return found(transaction, some)

    found = load_events
    with monkeypatch.context() as patch:
        patch.setattr(claims, "load_events", slow)
        with nullcontext() if loaded else pytest.raises(DBAPIError):
            assert seqs(claim(steps.work, [FreeCapacity(["strict"], 8)])) == loaded
    assert [seq for seq, _, state in steps.states() if state == "ready"] == given_back


@pytest.mark.parametrize("when", ["amid its load", "once it is loaded"])
def test_the_rest_of_a_failed_load_is_given_back(steps: Steps, monkeypatch: pytest.MonkeyPatch, when: str) -> None:
    monkeypatch.setattr(claims, "LOADED_AT_ONCE", 0)
    arrive_sized(steps, 1, 1, 1)

    def fail(*_: object) -> None:
        raise DBAPIError("SELECT", {}, psycopg.errors.AdminShutdown("terminating connection"))

    def fail_at_the_second(transaction: Transaction, some: Sequence[Any]) -> list[Delivery]:
        if some[0].seq == 2:
            if when == "amid its load":
                fail()
            event.listen(steps.database.engine, "commit", fail, once=True)
        return load_events(transaction, some)

    with monkeypatch.context() as patch:
        patch.setattr(claims, "load_events", fail_at_the_second)
        assert seqs(claim(steps.work, [FreeCapacity(["strict"], 8)])) == [1]
    assert [
        tuple(row.values()) for row in steps.rows("SELECT seq, state, attempt FROM open_delivery ORDER BY seq")
    ] == [(1, "in_flight", 1), (2, "ready", 0), (3, "ready", 0)]


def test_a_claim_that_takes_long_ends_with_what_it_has(steps: Steps, monkeypatch: pytest.MonkeyPatch) -> None:
    arrive_sized(steps, 1)
    monkeypatch.setattr(claims, "LONGEST_SECONDS", -1.0)
    assert claim(steps.work, [FreeCapacity(["strict"], 8)]) == []
    monkeypatch.setattr(claims, "LONGEST_SECONDS", 1.0)
    assert seqs(claim(steps.work, [FreeCapacity(["strict"], 8)])) == [1]


def test_a_claim_that_had_to_wait_for_its_turn_still_claims(steps: Steps, monkeypatch: pytest.MonkeyPatch) -> None:
    arrive_sized(steps, 1)
    clock = Monotonic()

    def waits(*_: object, **_named: object) -> dict[GateKey, GateRow]:
        clock.seconds += 5
        return {}

    monkeypatch.setattr(claims, "time", SimpleNamespace(monotonic=clock))
    monkeypatch.setattr(claims, "lock_all", waits)
    assert seqs(claim(steps.work, [FreeCapacity(["strict"], 8)])) == [1]


# --- Where a process starts its next scan: it misses nothing before that place, and paused deliveries delay no others


def begins(floor: ScanStart[int], takes: float = 0.0, monotonic: Monotonic | None = None) -> int | None:
    with floor.scan() as begin:
        if monotonic is not None:
            monotonic.seconds += takes
    return begin


# --- floors


def test_a_full_scan_that_takes_long_is_made_less_often() -> None:
    monotonic = Monotonic()
    floor: ScanStart[int] = ScanStart(monotonic=monotonic)
    floor.at = 7
    assert begins(floor, 2.0, monotonic) is None
    monotonic.seconds += 59
    assert begins(floor) == 7
    monotonic.seconds += 1
    assert begins(floor) is None


def test_an_event_that_is_committed_far_behind_the_others_is_found_within_a_second(steps: Steps) -> None:
    monotonic, scans = Monotonic(), ScanStarts()
    scans.received = ScanStart(monotonic=monotonic)
    steps.do(row_arriving_at(50_000))
    assert sequence(steps.work, scans) == 1
    steps.do(row_arriving_at(49_500), row_arriving_at(3))
    assert sequence(steps.work, scans) == (1 if steps.database.sql.is_postgres else 2), "where one commits at a time"
    monotonic.seconds += WHOLE_EVERY_SECONDS
    sequence(steps.work, scans)
    assert [state for _, _, state in steps.states()] == ["ready"] * 3


def row_arriving_at(seq: int) -> str:
    return a_row(seq, lane=f"event|{seq}")


def test_a_head_that_is_due_before_the_place_is_claimed_within_a_second(steps: Steps) -> None:
    monotonic, remembered = Monotonic(), ScanStarts()
    remembered.due["strict"] = ScanStart(monotonic=monotonic)
    steps.advance(1000)
    steps.arrive(an_event(1, "a"), an_event(2, "b"))
    assert claim_seqs(steps, remembered) == [1, 2]
    steps.arrive(an_event(3, "c"))
    steps.do("UPDATE open_delivery SET due_at = '2026-01-01 00:00:00.000000Z' WHERE seq = 3")
    behind = claim_seqs(steps, remembered)
    monotonic.seconds += WHOLE_EVERY_SECONDS
    assert behind + claim_seqs(steps, remembered) == [3]


def claim_seqs(steps: Steps, remembered: ScanStarts, most: int = 8) -> list[int]:
    return [delivery.seq for delivery in claim(steps.work, [FreeCapacity(["strict"], most)], scans=remembered)]


# --- pauses


@pytest.fixture
def paused(steps: Steps) -> None:
    with steps.database.write() as transaction:
        gates.pause(transaction, make_entity_key("trivore", "USER", "paused"), who="kim", why="odd")


def heads(steps: Steps, *entities: str) -> None:
    """Heads that became due one after the other, each in a lane of its own, as with `lane = "event"`."""
    first = max((seq for seq, _, _ in steps.states()), default=0) + 1
    steps.receive(*(an_event(n, entity) for n, entity in enumerate(entities, first)))
    steps.do("UPDATE open_delivery SET lane = 'event|' || seq WHERE state = 'received'")
    steps.sequence()


@pytest.mark.usefixtures("paused")
def test_a_claim_goes_on_behind_the_paused_heads_that_the_last_one_has_passed(steps: Steps) -> None:
    heads(steps, *["paused"] * 20, "b", "c", "d")
    steps.advance(3600)
    remembered = ScanStarts()
    assert claim_seqs(steps, remembered, 1) == [21]
    assert remembered.due["strict"].at is not None
    assert [claim_seqs(steps, remembered, 1), claim_seqs(steps, remembered, 8)] == [[22], [23]]


@pytest.mark.usefixtures("paused")
def test_the_attempt_that_tries_a_breaker_is_found_behind_what_is_paused(steps: Steps) -> None:
    heads(steps, *["paused"] * 60, "b")
    steps.advance(3600)
    assert [delivery.seq for delivery in claim_probe(steps.work, "strict")] == [61]


@pytest.mark.usefixtures("paused")
@pytest.mark.parametrize("seed", range(3))
def test_every_head_that_is_not_paused_is_claimed_once_by_two_relays_in_any_order(steps: Steps, seed: int) -> None:
    rng = random.Random(seed)
    monotonic, found = Monotonic(), list[int]()
    relays = [remembering(monotonic) for _ in range(2)]
    entities: list[str] = []
    for _ in range(12):
        arrived = rng.choices(["paused", "b"], k=rng.randrange(8))
        entities += arrived
        heads(steps, *arrived) if arrived else None
        steps.advance(rng.choice([0, 1, 30]))
        monotonic.seconds += rng.choice([0, 0, 2])
        found += claim_seqs(steps, rng.choice(relays), rng.randrange(1, 6))
    for _ in range(2 * len(entities)):
        monotonic.seconds += 2
        found += claim_seqs(steps, rng.choice(relays), 4)
    assert sorted(found) == [seq for seq, entity in enumerate(entities, 1) if entity == "b"]


def remembering(monotonic: Callable[[], float]) -> ScanStarts:
    remembered = ScanStarts()
    remembered.due["strict"] = ScanStart(monotonic=monotonic)
    return remembered
