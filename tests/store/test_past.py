"""A look back at any moment shows what was stored then, on both databases; it is bounded and says what is missing."""

from __future__ import annotations

from collections import defaultdict
from datetime import datetime, timedelta

import msgspec
import pytest

from inbox.db import past as limits
from inbox.db import reads
from inbox.events.past import event_at
from relay.delivery.outcome import Skipped
from relay.operations.asks import Selection
from relay.store import past
from relay.store.past import RouteThen, read_past
from tests.helpers.commanding import carry_out
from tests.helpers.relaying import CONFIG, DONE, HOPELESS, UNWELL, Steps
from tests.helpers.storing import START, a_fact, a_row, an_event

Counts = dict[str, tuple[int, int, int, int]]
"""Open, retrying, blocked and dead deliveries of each route."""


def stored(steps: Steps) -> Counts:
    counts: dict[str, list[int]] = defaultdict(lambda: [0, 0, 0, 0])
    for row in steps.rows("SELECT route, state, attempt, due_at FROM open_delivery"):
        place = {"blocked": 2, "dead": 3}.get(row["state"], 0)
        counts[row["route"]][place] += 1
        if row["state"] == "ready" and row["attempt"] and row["due_at"] > steps.clock.moment:
            counts[row["route"]][1] += 1
    return {route: (count[0], count[1], count[2], count[3]) for route, count in counts.items()}


def folded(steps: Steps, at: datetime) -> Counts:
    found = read_past(steps.database, (), at)
    assert (found.is_whole, found.removed) == (True, ())
    counts = {each.route: (each.open, each.retrying, each.blocked, each.dead) for each in found.routes}
    return {route: count for route, count in counts.items() if any(count)}


def a_night(steps: Steps) -> dict[datetime, tuple[Counts, dict[int, dict[str, str]]]]:
    """Live through a night; gives what was stored at each moment of it: counts, and the states of each event's deliveries."""
    moments = {}

    def remember() -> None:
        states: dict[int, dict[str, str]] = defaultdict(dict)
        for row in steps.rows("SELECT seq, route, state FROM delivery WHERE route IS NOT NULL"):
            states[row["seq"]][row["route"]] = row["state"]
        moments[steps.clock.moment] = stored(steps), dict(states)
        steps.clock.advance(7)

    remember()
    for number in range(1, 9):
        event = an_event(number, f"u{number % 3}", routes=["strict", *(["blocking"], ["latest"], [])[number % 3]])
        steps.arrive(msgspec.structs.replace(event, received_at=steps.clock.moment))
        remember()
    for outcome, route in (
        (DONE, "strict"), (UNWELL, "strict"), (HOPELESS, "strict"), (HOPELESS, "blocking"), (Skipped((), "x"), "latest"),
    ):  # fmt: skip
        steps.attempt(outcome, route)
        remember()
    carry_out(steps.database, CONFIG, "replay", Selection(route="strict"), why="mended")
    remember()
    steps.clock.advance(600)
    while due := steps.claim_due():
        remember()
        steps.record_all(due)
        remember()
    return moments


def test_every_moment_is_folded_back_to_what_was_stored(steps: Steps, monkeypatch: pytest.MonkeyPatch) -> None:
    moments = a_night(steps)
    for page in (10_000, 2):
        monkeypatch.setattr(past, "SEQS_OUT_OF_ORDER", page)
        monkeypatch.setattr(past, "_PAGE", page)
        for at, (counts, _) in moments.items():
            assert folded(steps, at) == counts, at
    for seq in range(1, 9):
        event = reads.event(steps.database.engine, seq)
        assert event is not None
        for at, (_, states) in moments.items():
            then = {row["route"]: row["state"] for row in event_at(event, at)["deliveries"]}
            for route, state in states.get(seq, {}).items():
                is_open = state in {"received", "waiting", "ready", "in_flight"}
                assert then[route] in ({"open", "retrying"} if is_open else {state}), (at, seq, route)


def test_counts_are_at_least_so_much_where_more_happened_than_is_read(
    steps: Steps, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps.arrive(*(an_event(number, f"u{number}") for number in range(1, 6)))
    at = steps.clock.moment
    steps.clock.advance(1)
    for _ in range(3):
        steps.attempt(DONE)
    assert folded(steps, at) == {"strict": (5, 0, 0, 0)}
    monkeypatch.setattr(past, "MOST_OPEN", 1)
    found = read_past(steps.database, ["strict", "latest"], at)
    assert (found.is_whole, found.facts_since) == (False, 3)
    assert found.routes == (RouteThen("latest"), RouteThen("strict", open=4, oldest_received_at=START))
    monkeypatch.setattr(past, "MOST_OPEN", 2)
    monkeypatch.setattr(past, "MOST_FACTS", 2)
    monkeypatch.setattr(past, "_PAGE", 1)
    monkeypatch.setattr(past, "SEQS_OUT_OF_ORDER", 1)
    seen: list[int] = []
    found = read_past(steps.database, (), at, seen.append)
    assert (found.is_whole, found.routes[0].open, seen) == (False, 4, [1, 2])


def test_one_bad_fact_and_a_fact_without_an_event_hide_no_other(steps: Steps) -> None:
    steps.arrive(*(an_event(number, f"u{number}") for number in range(1, 4)))
    steps.attempt(HOPELESS)
    steps.do("DELETE FROM open_delivery WHERE seq = 2")
    steps.do(a_fact("dead", seq=2, error="x" * 1_000_000, blocks_lane=[1], due_at={}), a_fact("corrected", seq=3))
    found = read_past(steps.database, (), START)
    (strict,) = found.routes
    assert (strict.dead, strict.blocked, strict.unknown) == (1, 0, 1), "without a row or a later fact, 2 is not found"


def test_a_route_that_a_later_replay_added_was_not_there_before(steps: Steps) -> None:
    steps.arrive(msgspec.structs.replace(an_event(1), received_at=START - timedelta(minutes=1)))
    steps.do(a_row(1, route="latest"), a_fact("replayed", route="latest", attempt=0, who="kim", why="new"))
    assert folded(steps, START - timedelta(seconds=1)) == {"strict": (1, 0, 0, 0)}
    assert folded(steps, START) == {"strict": (1, 0, 0, 0), "latest": (1, 0, 0, 0)}


def test_what_retention_removed_is_said_and_only_where_it_matters(steps: Steps) -> None:
    steps.arrive(an_event(1))
    until = START + timedelta(days=1)
    for kind in ("events", "attempts", "payloads"):
        steps.do(
            f"INSERT INTO pruning (kind, pruned_until, rows) VALUES ('{kind}', '2026-01-02 00:00:00.000000Z',"
            f" {int(kind != 'attempts')})"
        )
    (sentence,) = read_past(steps.database, (), START).removed
    assert sentence.startswith("retention has deleted events that had ended by 2026-01-02T00:00:00Z")
    assert read_past(steps.database, (), until).removed == ()
    event = reads.event(steps.database.engine, 1)
    assert event is not None
    assert limits.removed_from(steps.database.engine, event, START) == []
    steps.do("UPDATE pruning SET rows = 1 WHERE kind = 'attempts'")
    erased = {**event, "erased_at": until}
    assert len(limits.removed_from(steps.database.engine, erased, START)) == 2
    assert len(limits.removed_from(steps.database.engine, {**erased, "received_at": until}, until)) == 0
