"""Scan positions of a process: it loses nothing behind its place, and paused deliveries delay no others."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest

from relay.delivery.gates import entity_key
from relay.store import gates
from relay.store.claim import Room, claim, claim_probe
from relay.store.database import WHOLE_EVERY_SECONDS, Floor, ScanStarts
from relay.store.sequence import sequence
from tests.helpers.relaying import Monotonic, Steps
from tests.helpers.storing import a_row, an_event


def begins(floor: Floor[int], takes: float = 0.0, monotonic: Monotonic | None = None) -> int | None:
    with floor.look() as begin:
        if monotonic is not None:
            monotonic.seconds += takes
    return begin


# --- floors


def test_a_look_begins_at_its_place_and_each_second_at_the_beginning() -> None:
    monotonic = Monotonic()
    floor: Floor[int] = Floor(monotonic=monotonic)
    assert begins(floor) is None
    floor.at = 7
    assert [begins(floor), begins(floor)] == [7, 7]
    monotonic.seconds += WHOLE_EVERY_SECONDS
    assert [begins(floor), begins(floor)] == [None, 7]


def test_a_look_from_the_beginning_that_takes_long_is_made_less_often() -> None:
    monotonic = Monotonic()
    floor: Floor[int] = Floor(monotonic=monotonic)
    floor.at = 7
    assert begins(floor, 2.0, monotonic) is None
    monotonic.seconds += 59
    assert begins(floor) == 7
    monotonic.seconds += 1
    assert begins(floor) is None


def test_an_event_that_is_committed_far_behind_the_others_is_found_within_a_second(steps: Steps) -> None:
    monotonic, scans = Monotonic(), ScanStarts()
    scans.received = Floor(monotonic=monotonic)
    steps.do(arrived(50_000))
    assert sequence(steps.work, scans) == 1
    steps.do(arrived(49_500), arrived(3))
    sequence(steps.work, scans)
    monotonic.seconds += WHOLE_EVERY_SECONDS
    sequence(steps.work, scans)
    assert [state for _, _, state in steps.states()] == ["ready"] * 3


def arrived(seq: int) -> str:
    return a_row(seq, lane=f"event|{seq}")


def test_a_head_that_is_due_before_the_place_is_claimed_within_a_second(steps: Steps) -> None:
    monotonic, remembered = Monotonic(), ScanStarts()
    remembered.due["strict"] = Floor(monotonic=monotonic)
    steps.advance(1000)
    steps.arrive(an_event(1, "a"), an_event(2, "b"))
    assert claimed(steps, remembered) == [1, 2]
    steps.arrive(an_event(3, "c"))
    steps.do("UPDATE open_delivery SET due_at = '2026-01-01 00:00:00.000000Z' WHERE seq = 3")
    behind = claimed(steps, remembered)
    monotonic.seconds += WHOLE_EVERY_SECONDS
    assert behind + claimed(steps, remembered) == [3]


def claimed(steps: Steps, remembered: ScanStarts, most: int = 8) -> list[int]:
    return [delivery.seq for delivery in claim(steps.work, [Room(["strict"], most)], scans=remembered)]


# --- pauses


@pytest.fixture
def paused(steps: Steps) -> None:
    with steps.database.write() as transaction:
        gates.pause(transaction, entity_key("trivore", "USER", "paused"), who="kim", why="odd")


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
    assert claimed(steps, remembered, 1) == [21]
    assert remembered.due["strict"].at is not None
    assert [claimed(steps, remembered, 1), claimed(steps, remembered, 8)] == [[22], [23]]


@pytest.mark.usefixtures("paused")
def test_the_attempt_that_tries_a_breaker_is_found_behind_what_is_paused(steps: Steps) -> None:
    heads(steps, *["paused"] * 60, "b")
    steps.advance(3600)
    assert [delivery.seq for delivery in claim_probe(steps.work, "strict")] == [61]


@pytest.mark.usefixtures("paused")
@pytest.mark.parametrize("seed", range(3))
def test_every_head_that_is_not_paused_is_claimed_once_whoever_asks_in_which_turn(steps: Steps, seed: int) -> None:
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
        found += claimed(steps, rng.choice(relays), rng.randrange(1, 6))
    for _ in range(2 * len(entities)):
        monotonic.seconds += 2
        found += claimed(steps, rng.choice(relays), 4)
    assert sorted(found) == [seq for seq, entity in enumerate(entities, 1) if entity == "b"]


def remembering(monotonic: Callable[[], float]) -> ScanStarts:
    remembered = ScanStarts()
    remembered.due["strict"] = Floor(monotonic=monotonic)
    return remembered
