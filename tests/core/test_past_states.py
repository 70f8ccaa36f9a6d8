"""The state that a last fact leads to agrees with the whole fold, in every history that the transitions allow."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from inbox.errors import IllegalTransition
from inbox.events.past import UNKNOWN, LastFact, deliveries_at, event_at, state_at
from inbox.events.states import ENDINGS, RETRYING, State
from relay.delivery import facts
from relay.delivery.lifecycle import NO_FACTS, advance

NOW = datetime(2026, 11, 27, 12, 0, tzinfo=UTC)
LATER = NOW + timedelta(minutes=5)
SAMPLES: tuple[facts.AnyFact, ...] = (
    facts.DeliveredFact(did="forwarded"),
    facts.UnchangedFact(),
    facts.Superseded(by=9),
    facts.SkippedFact(why="none"),
    facts.Cancelled(who="kim", why="odd"),
    facts.AttemptFailed(error_class="server_error", error="503", due_at=LATER),
    facts.AttemptFailed(error_class="server_error", error="503", due_at=LATER, counted=False),
    facts.Abandoned(relay_node="r1"),
    facts.TookOver(of=1, attempt=3, due_at=LATER),
    facts.Rescheduled(due_at=NOW, was_due_at=LATER),
    facts.Dead(cause="exhausted", error="503"),
    facts.Dead(cause="exhausted", error="503", blocks_lane=True),
    facts.Dead(cause="unprocessable", error="odd", blocks_lane=True, counted=False),
    facts.Replayed(who="kim", why="mended"),
    facts.Rearmed(duplicate=1),
    facts.Unblocked(who="kim", why="mended"),
    *(facts.Corrected(state=s, attempt=2, run=1, who="kim", why="odd") for s in ("open", "blocked", "dead", "ended")),
    facts.Erased(who="kim", why="asked"),
)


def a_row(fact: facts.AnyFact, attempt: int = 1, at: datetime = NOW, route: str = "crm") -> dict[str, Any]:
    detail = json.loads(msgspec.json.encode(fact))
    return {"at": at, "route": route, "kind": detail.pop("kind"), "attempt": attempt, "detail": detail}


def test_every_kind_of_fact_is_known() -> None:
    assert {str(type(fact).__struct_config__.tag) for fact in SAMPLES} == set(facts.KINDS)
    assert state_at(LastFact("of_a_newer_version", 1, {}), NOW).state == UNKNOWN


@given(st.lists(st.sampled_from(SAMPLES), max_size=12))
def test_the_last_fact_leads_to_the_state_of_the_fold(drawn: list[facts.AnyFact]) -> None:
    folded, rows = NO_FACTS, []
    for fact in drawn:
        try:
            folded = advance(folded, fact)
        except IllegalTransition:
            continue
        rows.append(a_row(fact, folded.attempt))
    (then,) = deliveries_at(["crm"], rows, NOW)
    expected = {State.RECEIVED: {"open", RETRYING}, State.ENDED: set(ENDINGS)}.get(folded.state, {folded.state.value})
    assert then["state"] in expected
    assert then["attempts"] == folded.attempt
    if folded.state is State.RECEIVED and (not rows or rows[-1]["kind"] != "erased"):
        assert then["due_at"] == folded.due_at
        assert (then["state"] == RETRYING) is (folded.attempt > 0 and folded.due_at == LATER)


def test_facts_after_the_moment_change_nothing_and_routes_of_replays_are_there_since_then() -> None:
    rows = [
        a_row(facts.AttemptFailed(error_class="server_error", error="503", due_at=LATER)),
        a_row(facts.Replayed(who="kim", why="new"), 0, LATER, "audit"),
        a_row(facts.DeliveredFact(did="forwarded"), 2, LATER),
    ]
    event = {"seq": 1, "routes": ["crm"], "facts": rows, "gates": [], "heads": [], "duplicates": [], "relays": []}
    then = event_at(event, NOW)
    assert (len(then["facts"]), "gates" in then) == (1, False)
    assert [(row["route"], row["state"], row["due_at"]) for row in then["deliveries"]] == [("crm", "retrying", LATER)]
    assert [row["state"] for row in event_at(event, LATER)["deliveries"]] == ["open", "delivered"]
    before = event_at(event, NOW - timedelta(microseconds=1))
    assert [(row["state"], row["last_fact"]) for row in before["deliveries"]] == [("open", None)]


def test_what_was_due_at_that_moment_was_not_waiting_for_it() -> None:
    assert state_at(LastFact("attempt_failed", 1, {"due_at": NOW.isoformat()}), NOW).state == "open"


@pytest.mark.parametrize("due_at", ["", "soon", 7, None, "0001-01-01T00:00:00+14:00", ["2026"]])
def test_a_due_time_that_is_none_is_left_out(due_at: object) -> None:
    assert state_at(LastFact("attempt_failed", 1, {"due_at": due_at}), NOW).state == "open"
