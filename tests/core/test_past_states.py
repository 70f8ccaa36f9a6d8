"""The state at a moment follows from the last fact until then."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
import pytest

from inbox.events.past import deliveries_at, event_at
from relay.delivery import facts

NOW = datetime(2026, 11, 27, 12, 0, tzinfo=UTC)
LATER = NOW + timedelta(minutes=5)
FAILED = facts.AttemptFailed(error_class="server_error", error="503", due_at=LATER)


def a_row(
    fact: facts.AnyFact,
    state: str = "ended",
    attempt: int = 1,
    at: datetime = NOW,
    route: str = "crm",
    **detail: object,
) -> dict[str, Any]:
    made = json.loads(msgspec.json.encode(fact)) | detail
    return {"at": at, "route": route, "kind": made.pop("kind"), "state": state, "attempt": attempt, "detail": made}


@pytest.mark.parametrize(
    ("row", "state", "due_at"),
    [
        (a_row(FAILED, "ready"), "retrying", LATER),
        (a_row(FAILED, "ready", 0), "open", LATER),
        (a_row(facts.Replayed(who="kim", why="mended"), "received", 0), "open", None),
        (a_row(facts.Abandoned(relay_node="r1"), "ready"), "open", None),
        (a_row(facts.Dead(cause="exhausted", error="503"), "dead"), "dead", None),
        (a_row(facts.Dead(cause="exhausted", error="503", blocks_lane=True), "blocked"), "blocked", None),
        (a_row(facts.DeliveredFact(did="forwarded")), "delivered", None),
        (a_row(facts.Corrected(who="kim", why="odd")), "corrected", None),
    ],
)
def test_a_state_is_what_the_last_fact_leads_to(row: dict[str, Any], state: str, due_at: datetime | None) -> None:
    (then,) = deliveries_at(["crm"], [row, a_row(facts.Erased(who="kim", why="asked"))], NOW)
    assert (then["state"], then["attempts"], then["due_at"]) == (state, row["attempt"], due_at)
    assert (then["last_fact"], then["last_fact_at"]) == (row["kind"], NOW)


def test_facts_after_the_moment_change_nothing_and_routes_of_replays_are_there_since_then() -> None:
    rows = [
        a_row(FAILED, "ready"),
        a_row(facts.Replayed(who="kim", why="new"), "received", 0, LATER, "audit"),
        a_row(facts.DeliveredFact(did="forwarded"), "ended", 2, LATER),
    ]
    event = {"seq": 1, "routes": ["crm"], "facts": rows, "gates": [], "heads": [], "duplicates": [], "relays": []}
    then = event_at(event, NOW)
    assert (len(then["facts"]), "gates" in then) == (1, False)
    assert [(row["route"], row["state"], row["due_at"]) for row in then["deliveries"]] == [("crm", "retrying", LATER)]
    assert [row["state"] for row in event_at(event, LATER)["deliveries"]] == ["open", "delivered"]
    before = event_at(event, NOW - timedelta(microseconds=1))
    assert [(row["state"], row["last_fact"]) for row in before["deliveries"]] == [("open", None)]
