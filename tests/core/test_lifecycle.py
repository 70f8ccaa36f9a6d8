"""The table of transitions, and the fold of facts."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import get_args

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from inbox.errors import IllegalTransition
from relay.delivery import facts
from relay.delivery.lifecycle import (
    CORRECTED_TO,
    HEADS,
    OPEN,
    SCHEDULING,
    TERMINAL,
    TRANSITIONS,
    OpenDelivery,
    State,
    Step,
    after,
    append,
    fold,
    restore,
    schedule,
    step_of,
)

NOW = datetime(2026, 1, 1, tzinfo=UTC)
LATER = NOW + timedelta(minutes=5)

EXAMPLES: dict[Step, facts.AnyFact] = {
    Step.DELIVERED: facts.DeliveredFact(did="forwarded"),
    Step.UNCHANGED: facts.UnchangedFact(),
    Step.SUPERSEDED: facts.Superseded(by=9),
    Step.SKIPPED: facts.SkippedFact(why="missing"),
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
    Step.CORRECTED: facts.Corrected(state="dead", attempt=2, run=3, who="ann", why="delivered twice"),
    Step.ERASED: facts.Erased(who="ann", why="asked for"),
}


def a_row(state: State, attempt: int = 1) -> OpenDelivery:
    return OpenDelivery(1, "r", "USER|u1", NOW, state, attempt, 0, NOW if state is State.READY else None)


def test_every_state_has_its_row_and_every_step_can_happen_somewhere() -> None:
    assert set(TRANSITIONS) == set(State)
    assert {step for row in TRANSITIONS.values() for step in row} == set(Step) - {Step.CORRECTED}


def test_a_correction_leads_from_anywhere_to_where_it_says() -> None:
    assert set(CORRECTED_TO) == set(get_args(facts.CorrectedState))
    for state in State:
        for name, to in CORRECTED_TO.items():
            fact = facts.Corrected(state=name, attempt=2, run=3, who="ann", why="delivered twice")
            row = append(a_row(state), fact, NOW)
            assert (row.state, row.attempt, row.run) == (to, 2, 3)


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
    assert facts.decode(facts.kind_of(fact), logged) == fact


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
        return replace(row, state=after(row.state, step), attempt=row.attempt + 1, due_at=None)
    if step is Step.GIVEN_BACK:
        return replace(row, state=after(row.state, step), attempt=row.attempt - 1, due_at=NOW)
    return schedule(row, step, NOW)


CHOICES = st.lists(st.integers(0, 100), max_size=30)


@st.composite
def histories(draw: st.DrawFn) -> list[tuple[facts.AnyFact, int]]:
    """The facts of a delivery, each with the attempts it counts."""
    rows = list(walk(draw(CHOICES)))
    return [
        (row.facts[-1], row.attempt) for before, row in pairwise([None, *rows]) if row and row.facts != _facts(before)
    ]


def _facts(row: OpenDelivery | None) -> tuple[facts.AnyFact, ...]:
    return () if row is None else row.facts


@st.composite
def any_steps(draw: st.DrawFn) -> list[Step | facts.AnyFact]:
    """Scheduling steps and facts of every kind, in any order and with any counts."""
    counts, times = st.integers(0, 5), st.sampled_from([NOW, LATER])
    failed = st.builds(
        facts.AttemptFailed, error_class=st.just("auth"), error=st.just("401"), due_at=times, counted=st.booleans()
    )
    taken = st.builds(facts.TookOver, of=st.just(1), attempt=counts, crashes=counts, due_at=times)
    corrected = st.builds(
        facts.Corrected, state=st.sampled_from(sorted(CORRECTED_TO)), attempt=counts, run=counts,
        who=st.just("ann"), why=st.just("twice"),
    )  # fmt: skip
    # Most steps can't happen in most states, so those of a whole attempt are drawn more often.
    usual = st.sampled_from([Step.PROMOTED, Step.CLAIMED, Step.CLAIMED])
    anything = st.one_of(usual, st.sampled_from(sorted(SCHEDULING)), st.sampled_from([*EXAMPLES.values()]))
    return draw(st.lists(st.one_of(anything, failed, taken, corrected), max_size=40))


def _agree(row: OpenDelivery) -> None:
    folded = fold(row.facts)
    assert folded.state is (State.RECEIVED if row.state in OPEN else row.state)
    assert (folded.attempt, folded.run, folded.crashes) == (row.attempts_used, row.run, row.crashes)


@given(any_steps())
def test_a_row_and_the_fold_of_its_facts_agree_whatever_happens(steps: list[Step | facts.AnyFact]) -> None:
    row = OpenDelivery(1, "r", "USER|u1", NOW, State.RECEIVED)
    for step in steps:
        try:
            row = move(row, step) if isinstance(step, Step) else append(row, step, NOW)
        except IllegalTransition:
            continue
        _agree(row)


@given(CHOICES)
def test_the_fold_agrees_with_the_row_along_every_path_of_the_table(choices: list[int]) -> None:
    for row in walk(choices):
        _agree(row)


def test_a_fact_leads_from_every_open_state_to_the_same_folded_state() -> None:
    for step in set(Step) - SCHEDULING - {Step.CORRECTED}:
        targets = {TRANSITIONS[state][step] for state in OPEN if step in TRANSITIONS[state]}
        assert len({State.RECEIVED if target in OPEN else target for target in targets}) <= 1


@given(CHOICES)
def test_a_row_that_agrees_with_its_facts_is_restored_to_itself(choices: list[int]) -> None:
    for row in walk(choices):
        if row.state is not State.ENDED:
            again = restore(row, fold(row.facts))
            assert replace(again, due_at=row.due_at) == row
            assert row.due_at is None or (again.due_at is not None and again.due_at >= row.due_at)


@given(CHOICES, st.sampled_from(sorted(set(State) - {State.ENDED})))
def test_a_row_is_restored_to_what_its_facts_say_whatever_it_says(choices: list[int], state: State) -> None:
    for row in walk(choices):
        folded = fold(row.facts)
        again = restore(a_row(state), folded)
        assert (State.RECEIVED if again.state in OPEN else again.state) is folded.state
        assert (again.attempts_used, again.run, again.crashes) == (folded.attempt, folded.run, folded.crashes)


def test_a_history_that_no_delivery_can_have_is_refused() -> None:
    with pytest.raises(IllegalTransition):
        fold([EXAMPLES[Step.DELIVERED], EXAMPLES[Step.DELIVERED]])


def test_heads_are_the_states_that_the_database_lets_a_lane_have_once() -> None:
    assert {state.value for state in HEADS} == {"ready", "in_flight", "blocked"}
