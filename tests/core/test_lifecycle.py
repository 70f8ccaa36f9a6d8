"""The table of transitions, and the fold of facts."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inbox.db.schema import OPEN_STATES
from inbox.errors import IllegalTransition
from relay import facts
from relay.lifecycle import (
    HEADS,
    SCHEDULING,
    TERMINAL,
    TRANSITIONS,
    OpenDelivery,
    State,
    Step,
    after,
    append,
    fold,
    schedule,
    step_of,
)

NOW = datetime(2026, 1, 1, tzinfo=UTC)
LATER = NOW + timedelta(minutes=5)

EXAMPLES: dict[Step, facts.AnyFact] = {
    Step.DELIVERED: facts.Delivered(did="forwarded"),
    Step.UNCHANGED: facts.Unchanged(),
    Step.SUPERSEDED: facts.Superseded(by=9),
    Step.SKIPPED: facts.Skipped(why="missing"),
    Step.CANCELLED: facts.Cancelled(who="ann", why="wrong"),
    Step.ATTEMPT_FAILED: facts.AttemptFailed(error_class="unknown", error="cut", due_at=LATER),
    Step.ABANDONED: facts.Abandoned(relay_node="r1"),
    Step.TOOK_OVER: facts.TookOver(of=1, attempt=3, due_at=LATER),
    Step.DEAD: facts.Dead(cause="exhausted", error="503"),
    Step.DEAD_BLOCKING: facts.Dead(cause="exhausted", error="503", blocks_lane=True),
    Step.REPLAYED: facts.Replayed(who="ann", why="mended"),
    Step.REARMED: facts.Rearmed(repeat=4),
    Step.UNBLOCKED: facts.Unblocked(who="ann", why="seen"),
}


def a_row(state: State, attempt: int = 1) -> OpenDelivery:
    return OpenDelivery(1, "r", "USER|u1", NOW, state, attempt, 0, NOW if state is State.READY else None)


def test_every_state_has_its_row_and_every_step_can_happen_somewhere() -> None:
    assert set(TRANSITIONS) == set(State)
    assert {step for row in TRANSITIONS.values() for step in row} == set(Step)


def test_the_states_that_are_stored_are_those_of_the_table() -> None:
    assert set(OPEN_STATES) == {state.value for state in State if state is not State.ENDED}


def test_every_step_is_scheduling_or_a_fact() -> None:
    assert set(Step) - SCHEDULING == set(EXAMPLES)
    assert all(step_of(fact) is step for step, fact in EXAMPLES.items())


def test_terminal_steps_and_only_they_end_a_delivery() -> None:
    ends = {step for row in TRANSITIONS.values() for step, to in row.items() if to is State.ENDED}
    assert ends == TERMINAL


@pytest.mark.parametrize("state", State)
@pytest.mark.parametrize("step", Step)
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


@pytest.mark.parametrize("fact", EXAMPLES.values(), ids=[step.value for step in EXAMPLES])
def test_a_fact_survives_the_log(fact: facts.AnyFact) -> None:
    assert facts.decode(facts.kind_of(fact), facts.detail_of(fact)) == fact


def test_text_that_postgres_cannot_store_is_written_otherwise() -> None:
    detail = facts.detail_of(facts.Dead(cause="exhausted", error="a\x00b"))
    assert detail["error"] == "a\\0b"


@given(st.lists(st.integers(0, 100), max_size=30))
def test_the_fold_agrees_with_the_row_whatever_happens(choices: list[int]) -> None:
    """Walk the table at random, as the store would, and compare the fold of the facts with the row at every step."""
    row = OpenDelivery(1, "r", "USER|u1", NOW, State.RECEIVED)
    for choice in choices:
        steps = sorted(TRANSITIONS[row.state])
        step = steps[choice % len(steps)]
        if step is Step.CLAIMED:
            row = OpenDelivery(1, "r", row.lane, NOW, after(row.state, step), row.attempt + 1, row.run, None, row.facts)
        elif step is Step.GIVEN_BACK:
            row = OpenDelivery(1, "r", row.lane, NOW, after(row.state, step), row.attempt - 1, row.run, NOW, row.facts)
        elif step in SCHEDULING:
            row = schedule(row, step, NOW)
        else:
            row = append(row, EXAMPLES[step], NOW)
        standing = fold(row.facts)
        open_states = set(State) - {State.BLOCKED, State.DEAD, State.ENDED}
        assert standing.state is (State.RECEIVED if row.state in open_states else row.state)
        assert standing.run == row.run
        assert standing.attempt == row.attempt - (row.state is State.IN_FLIGHT)


def test_a_history_that_no_delivery_can_have_is_refused() -> None:
    with pytest.raises(IllegalTransition):
        fold([EXAMPLES[Step.DELIVERED], EXAMPLES[Step.DELIVERED]])


def test_heads_are_the_states_that_the_database_lets_a_lane_have_once() -> None:
    assert {state.value for state in HEADS} == {"ready", "in_flight", "blocked"}
