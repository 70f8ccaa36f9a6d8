"""The table of transitions, how a delivery stands after each fact, what can follow it, and how it stood at a moment."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from inbox.errors import IllegalTransition
from inbox.events.states import deliveries_at, event_at
from relay.delivery import facts
from relay.delivery.lifecycle import (
    OPEN,
    SCHEDULING,
    TERMINAL,
    TRANSITIONS,
    OpenDelivery,
    Standing,
    State,
    Step,
    append,
    apply_step,
    follows,
    restore,
    schedule,
    step_of,
)
from relay.delivery.outcome import Skipped, Unchanged
from tests.helpers.agreement import decode, fold

# --- The table of transitions, how a delivery stands after each fact, and what can follow it in the log


NOW = datetime(2026, 1, 1, tzinfo=UTC)
LATER = NOW + timedelta(minutes=5)

EXAMPLES: dict[Step, facts.AnyFact] = {
    Step.DELIVERED: facts.DeliveredFact(did="forwarded"),
    Step.UNCHANGED: Unchanged(),
    Step.SUPERSEDED: facts.Superseded(by=9),
    Step.SKIPPED: Skipped(why="missing"),
    Step.CANCELLED: facts.Cancelled(who="ann", why="wrong"),
    Step.ATTEMPT_FAILED: facts.AttemptFailed(error_class="unknown", error="cut", due_at=LATER),
    Step.ABANDONED: facts.Abandoned(relay_node="r1"),
    Step.TOOK_OVER: facts.TookOver(of=1, attempt=3, due_at=LATER),
    Step.RESCHEDULED: facts.Rescheduled(due_at=NOW, was_due_at=LATER),
    Step.DEAD: facts.Dead(cause="exhausted", error="503"),
    Step.DEAD_BLOCKING: facts.Dead(cause="exhausted", error="503", blocks_lane=True),
    Step.DEAD_UNATTEMPTED: facts.Dead(cause="unprocessable", error="ValueError", counted=False),
    Step.REPLAYED: facts.Replayed(who="ann", why="mended"),
    Step.REARMED: facts.Rearmed(duplicate=4),
    Step.UNBLOCKED: facts.Unblocked(who="ann", why="seen"),
    Step.CORRECTED: facts.Corrected(who="ann", why="delivered twice"),
    Step.ERASED: facts.Erased(who="ann", why="asked for"),
}


def a_row(state: State, attempt: int = 1) -> OpenDelivery:
    return OpenDelivery(1, "r", "USER|u1", NOW, state, attempt, 0, NOW if state is State.READY else None)


def test_every_state_has_its_row_and_every_step_can_happen_somewhere() -> None:
    assert set(TRANSITIONS) == set(State)
    assert {step for row in TRANSITIONS.values() for step in row} == set(Step) - {Step.CORRECTED}


def test_every_step_is_scheduling_or_a_fact() -> None:
    assert set(Step) - SCHEDULING == set(EXAMPLES)
    assert all(step_of(fact) is step for step, fact in EXAMPLES.items())


def test_terminal_steps_and_only_they_end_a_delivery() -> None:
    ends = {step for state, row in TRANSITIONS.items() for step, to in row.items() if to is State.ENDED is not state}
    assert ends == TERMINAL


@pytest.mark.parametrize("state", State)
@pytest.mark.parametrize("step", sorted(set(Step) - {Step.CORRECTED}))
def test_a_step_without_a_row_raises_and_one_with_a_row_leads_where_it_says(state: State, step: Step) -> None:
    row = a_row(state)
    if step not in TRANSITIONS[state]:
        with pytest.raises(IllegalTransition, match=f"{step} can't happen"):
            schedule(row, step, NOW) if step in SCHEDULING else append(row, EXAMPLES[step], NOW)
        assert row == a_row(state)
    else:
        moved = schedule(row, step, NOW) if step in SCHEDULING else append(row, EXAMPLES[step], NOW)
        assert moved.state is TRANSITIONS[state][step]
        assert (moved.due_at is not None) == (moved.state is State.READY)


def test_an_attempt_that_is_not_counted_is_given_back() -> None:
    failed = facts.AttemptFailed(error_class="auth", error="401", due_at=LATER, counted=False)
    assert append(a_row(State.IN_FLIGHT, attempt=2), failed, NOW).attempt == 1


def test_a_fact_counts_the_attempt_that_it_ends_and_no_other() -> None:
    for step, fact in EXAMPLES.items():
        if step in TRANSITIONS[State.IN_FLIGHT]:
            assert append(a_row(State.IN_FLIGHT, attempt=2), fact, NOW).attempt == 2
    for step in (Step.SUPERSEDED, Step.CANCELLED, Step.DEAD_UNATTEMPTED, Step.RESCHEDULED):
        assert append(a_row(State.READY, attempt=2), EXAMPLES[step], NOW).attempt == 2


def test_crashes_are_counted_in_a_row() -> None:
    crashed = append(replace(a_row(State.IN_FLIGHT), crashes=1), EXAMPLES[Step.ABANDONED], NOW)
    assert (crashed.crashes, crashed.due_at) == (2, NOW)
    failed = append(replace(a_row(State.IN_FLIGHT), crashes=1), EXAMPLES[Step.ATTEMPT_FAILED], NOW)
    assert (failed.crashes, failed.due_at) == (0, LATER)


@pytest.mark.parametrize("fact", EXAMPLES.values(), ids=[step.value for step in EXAMPLES])
def test_a_fact_survives_the_log(fact: facts.AnyFact) -> None:
    logged = msgspec.json.encode(facts.detail_of(fact)).decode()
    assert decode(facts.kind_of(fact), logged) == fact


def walk(choices: list[int]) -> Iterator[OpenDelivery]:
    """The table walked at random, as the store would: the row after each step."""
    row = OpenDelivery(1, "r", "USER|u1", NOW, State.RECEIVED)
    for choice in choices:
        steps = sorted(TRANSITIONS[row.state])
        step = steps[choice % len(steps)]
        row = move(row, step) if step in SCHEDULING else append(row, EXAMPLES[step], NOW)
        yield row


def move(row: OpenDelivery, step: Step) -> OpenDelivery:
    """Schedule, claim or give back, as the store does."""
    if step is Step.CLAIMED:
        return replace(row, state=apply_step(row.state, step), attempt=row.attempt + 1, due_at=None)
    if step is Step.GIVEN_BACK:
        return replace(row, state=apply_step(row.state, step), attempt=row.attempt - 1, due_at=NOW)
    return schedule(row, step, NOW)


CHOICES = st.lists(st.integers(0, 100), max_size=30)


@st.composite
def any_steps(draw: st.DrawFn) -> list[Step | facts.AnyFact]:
    """Scheduling steps and facts of every kind, in any order and with any counts."""
    counts, times = st.integers(0, 5), st.sampled_from([NOW, LATER])
    failed = st.builds(
        facts.AttemptFailed, error_class=st.just("auth"), error=st.just("401"), due_at=times, counted=st.booleans()
    )
    taken = st.builds(facts.TookOver, of=st.just(1), attempt=counts, crashes=counts, due_at=times)
    # Most steps can't happen in most states, so those of a whole attempt are drawn more often.
    usual = st.sampled_from([Step.PROMOTED, Step.CLAIMED, Step.CLAIMED])
    anything = st.one_of(usual, st.sampled_from(sorted(SCHEDULING)), st.sampled_from([*EXAMPLES.values()]))
    return draw(st.lists(st.one_of(anything, failed, taken), max_size=40))


def _agree(row: OpenDelivery) -> None:
    """The row, the last of its facts' rows, and what the facts themselves say; and each fact follows from the one before."""
    folded = fold(zip(row.facts, row.standings, strict=True))
    assert folded.state is (State.RECEIVED if row.state in OPEN else row.state)
    assert (folded.attempt, folded.run, folded.crashes) == counts_of(row.standing)
    for before, (fact, then) in zip([None, *row.standings], zip(row.facts, row.standings, strict=True), strict=False):
        assert follows(before, facts.kind_of(fact), then)


def counts_of(standing: Standing) -> tuple[int, int, int]:
    return standing.attempt, standing.run, standing.crashes


@given(any_steps())
def test_a_row_and_the_fold_of_its_facts_agree_whatever_happens(steps: list[Step | facts.AnyFact]) -> None:
    row = OpenDelivery(1, "r", "USER|u1", NOW, State.RECEIVED)
    for step in steps:
        try:
            row = move(row, step) if isinstance(step, Step) else append(row, step, NOW)
        except IllegalTransition:
            continue
        _agree(row)


def test_a_fact_leads_from_every_open_state_to_the_same_folded_state() -> None:
    for step in set(Step) - SCHEDULING - {Step.CORRECTED}:
        targets = {TRANSITIONS[state][step] for state in OPEN if step in TRANSITIONS[state]}
        assert len({State.RECEIVED if target in OPEN else target for target in targets}) <= 1


@given(CHOICES)
def test_a_row_that_agrees_with_its_facts_is_restored_to_itself(choices: list[int]) -> None:
    for row in walk(choices):
        if row.state not in {State.ENDED, State.IN_FLIGHT} and row.standings:
            again = restore(row, row.standings[-1], None)
            assert replace(again, due_at=row.due_at) == row
            assert row.due_at is None or (again.due_at is not None and again.due_at >= row.due_at)


@given(CHOICES, st.sampled_from(sorted(set(State) - {State.ENDED, State.IN_FLIGHT})))
def test_a_row_is_restored_to_what_its_last_fact_says_whatever_it_says(choices: list[int], state: State) -> None:
    for row in walk(choices):
        for last in row.standings[-1:]:
            again = restore(a_row(state), last, LATER)
            assert again.state is last.state or {again.state, last.state} <= OPEN
            assert counts_of(again.standing) == counts_of(last)
            assert again.due_at == (LATER if again.state in {State.RECEIVED, State.READY} else None)


FAILED_ONCE, DELIVERED_ONCE = Standing(State.READY, 1), Standing(State.ENDED, 1)
IMPOSSIBLE = {
    "a second success": (DELIVERED_ONCE, "delivered", Standing(State.ENDED, 2)),
    "a failure that ends it": (FAILED_ONCE, "attempt_failed", Standing(State.ENDED, 2)),
    "a success that leaves it open": (FAILED_ONCE, "delivered", Standing(State.READY, 2)),
    "a success without an attempt": (FAILED_ONCE, "delivered", DELIVERED_ONCE),
    "an attempt that is not told": (FAILED_ONCE, "delivered", Standing(State.ENDED, 3)),
    "an attempt that is taken away": (FAILED_ONCE, "attempt_failed", Standing(State.READY, 0)),
    "another run without a replay": (FAILED_ONCE, "attempt_failed", Standing(State.READY, 2, 1)),
    "a replay in the same run": (DELIVERED_ONCE, "replayed", Standing(State.RECEIVED)),
    "a replay of what is open": (FAILED_ONCE, "replayed", Standing(State.RECEIVED, 0, 1)),
    "a first fact of a second attempt": (None, "attempt_failed", Standing(State.READY, 2)),
}


@pytest.mark.parametrize("what", IMPOSSIBLE)
def test_a_row_that_cannot_follow_is_told(what: str) -> None:
    assert not follows(*IMPOSSIBLE[what])


def test_only_more_attempts_may_have_been_pruned() -> None:
    possible = {what for what, given in IMPOSSIBLE.items() if follows(*given, may_be_pruned=True)}
    assert possible == {"an attempt that is not told", "a first fact of a second attempt"}


@pytest.mark.parametrize("kind", ["corrected", "of_tomorrow"])
def test_after_a_correction_or_a_fact_of_a_newer_version_the_row_says_how_it_stands(kind: str) -> None:
    assert follows(DELIVERED_ONCE, kind, Standing(State.BLOCKED, 7, 3, 2))


def test_a_route_that_the_event_had_not_taken_begins_with_a_replay() -> None:
    assert follows(None, "replayed", Standing(State.RECEIVED, 0, 1))


# --- The state at a moment follows from the last fact until then


NOON = datetime(2026, 11, 27, 12, 0, tzinfo=UTC)
PAST_NOON = NOON + timedelta(minutes=5)
FAILED = facts.AttemptFailed(error_class="server_error", error="503", due_at=PAST_NOON)


def a_fact_row(
    fact: facts.AnyFact,
    state: str = "ended",
    attempt: int = 1,
    at: datetime = NOON,
    route: str = "crm",
    **detail: object,
) -> dict[str, Any]:
    made = json.loads(msgspec.json.encode(fact)) | detail
    return {"at": at, "route": route, "kind": made.pop("kind"), "state": state, "attempt": attempt, "detail": made}


@pytest.mark.parametrize(
    ("row", "state", "due_at"),
    [
        (a_fact_row(FAILED, "ready"), "retrying", PAST_NOON),
        (a_fact_row(FAILED, "ready", 0), "open", PAST_NOON),
        (a_fact_row(facts.Replayed(who="kim", why="mended"), "received", 0), "open", None),
        (a_fact_row(facts.Abandoned(relay_node="r1"), "ready"), "open", None),
        (a_fact_row(facts.Dead(cause="exhausted", error="503"), "dead"), "dead", None),
        (a_fact_row(facts.Dead(cause="exhausted", error="503", blocks_lane=True), "blocked"), "blocked", None),
        (a_fact_row(facts.DeliveredFact(did="forwarded")), "delivered", None),
        (a_fact_row(facts.Corrected(who="kim", why="odd")), "corrected", None),
    ],
)
def test_a_state_is_what_the_last_fact_leads_to(row: dict[str, Any], state: str, due_at: datetime | None) -> None:
    (then,) = deliveries_at(["crm"], [row, a_fact_row(facts.Erased(who="kim", why="asked"))], NOON)
    assert (then["state"], then["attempts"], then["due_at"]) == (state, row["attempt"], due_at)
    assert (then["last_fact"], then["last_fact_at"]) == (row["kind"], NOON)


def test_facts_after_the_moment_change_nothing_and_routes_of_replays_are_there_since_then() -> None:
    rows = [
        a_fact_row(FAILED, "ready"),
        a_fact_row(facts.Replayed(who="kim", why="new"), "received", 0, PAST_NOON, "audit"),
        a_fact_row(facts.DeliveredFact(did="forwarded"), "ended", 2, PAST_NOON),
    ]
    event = {"seq": 1, "routes": ["crm"], "facts": rows, "gates": [], "heads": [], "duplicates": [], "relays": []}
    then = event_at(event, NOON)
    assert (len(then["facts"]), "gates" in then) == (1, False)
    assert [(row["route"], row["state"], row["due_at"]) for row in then["deliveries"]] == [
        ("crm", "retrying", PAST_NOON)
    ]
    assert [row["state"] for row in event_at(event, PAST_NOON)["deliveries"]] == ["open", "delivered"]
    before = event_at(event, NOON - timedelta(microseconds=1))
    assert [(row["state"], row["last_fact"]) for row in before["deliveries"]] == [("open", None)]
