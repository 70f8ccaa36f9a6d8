"""An event at any earlier moment is as it was stored then, on both databases; what is missing of it is said."""

from __future__ import annotations

from collections import defaultdict
from datetime import datetime, timedelta

import msgspec

from inbox.db import reads
from inbox.events.past import event_at
from relay.delivery.outcome import Skipped
from relay.operations.asks import Selection
from tests.helpers.commanding import carry_out
from tests.helpers.relaying import CONFIG, DONE, HOPELESS, UNWELL, Steps
from tests.helpers.storing import START, an_event


def a_night(steps: Steps) -> dict[datetime, dict[int, dict[str, str]]]:
    """Live through a night; gives the states of each event's deliveries at each moment of it."""
    moments = {}

    def remember() -> None:
        states: dict[int, dict[str, str]] = defaultdict(dict)
        for row in steps.rows("SELECT seq, route, state FROM delivery WHERE route IS NOT NULL"):
            states[row["seq"]][row["route"]] = row["state"]
        moments[steps.clock.moment] = dict(states)
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


def test_every_moment_is_folded_back_to_what_was_stored(steps: Steps) -> None:
    moments = a_night(steps)
    for seq in range(1, 9):
        event = reads.event(steps.database.engine, seq)
        assert event is not None
        for at, states in moments.items():
            then = {row["route"]: row["state"] for row in event_at(event, at)["deliveries"]}
            for route, state in states.get(seq, {}).items():
                is_open = state in {"received", "waiting", "ready", "in_flight"}
                assert then[route] in ({"open", "retrying"} if is_open else {state}), (at, seq, route)


def test_removals_by_retention_and_erasure_are_said_only_where_they_matter(steps: Steps) -> None:
    steps.arrive(an_event(1))
    until = START + timedelta(days=1)
    steps.do("INSERT INTO pruning (kind, pruned_until, rows) VALUES ('attempts', '2026-01-02 00:00:00.000000Z', 0)")
    event = reads.event(steps.database.engine, 1)
    assert event is not None
    assert reads.removed_from(steps.database.engine, event, START) == []
    steps.do("UPDATE pruning SET rows = 1 WHERE kind = 'attempts'")
    erased = {**event, "erased_at": until}
    assert len(reads.removed_from(steps.database.engine, erased, START)) == 2
    assert len(reads.removed_from(steps.database.engine, {**erased, "received_at": until}, until)) == 0
