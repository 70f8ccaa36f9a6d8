"""The table of transitions, the state after each fact, the facts that can follow, and the state at a moment."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from inbox.errors import IllegalTransition
from inbox.events import states, timestamps
from inbox.events.event import Identity, dedup_key, swept_parts
from inbox.events.states import deliveries_at, event_at
from inbox.events.strict_json import LONGEST_NUMBER, has_too_long_number, real
from relay.delivery import facts, lifecycle
from relay.delivery.gates import parse_entity_key
from relay.delivery.lifecycle import (
    OPEN,
    SCHEDULING,
    TRANSITIONS,
    OpenDelivery,
    Standing,
    State,
    Step,
    apply_fact,
    follows,
)
from relay.delivery.ordering import LastDelivered, covers, settle
from relay.delivery.outcome import Skipped, Unchanged
from tests.helpers.agreement import decode, fold
from tests.helpers.storing import an_event

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
    assert all(lifecycle.get_step(fact) is step for step, fact in EXAMPLES.items())


def test_terminal_steps_and_only_they_end_a_delivery() -> None:
    ends = {step for state, row in TRANSITIONS.items() for step, to in row.items() if to is State.ENDED is not state}
    assert ends == lifecycle.ENDING_STEPS


@pytest.mark.parametrize("state", State)
@pytest.mark.parametrize("step", sorted(set(Step) - {Step.CORRECTED}))
def test_a_step_without_a_row_raises_and_one_with_a_row_leads_where_it_says(state: State, step: Step) -> None:
    row = a_row(state)
    if step not in TRANSITIONS[state]:
        with pytest.raises(IllegalTransition, match=f"{step} can't happen"):
            lifecycle.schedule(row, step, NOW) if step in SCHEDULING else apply_fact(row, EXAMPLES[step], NOW)
        assert row == a_row(state)
    else:
        moved = lifecycle.schedule(row, step, NOW) if step in SCHEDULING else apply_fact(row, EXAMPLES[step], NOW)
        assert moved.state is TRANSITIONS[state][step]
        assert (moved.due_at is not None) == (moved.state is State.READY)


def test_an_attempt_that_is_not_counted_is_given_back() -> None:
    failed = facts.AttemptFailed(error_class="auth", error="401", due_at=LATER, counted=False)
    assert apply_fact(a_row(State.IN_FLIGHT, attempt=2), failed, NOW).attempt == 1


def test_a_fact_counts_the_attempt_that_it_ends_and_no_other() -> None:
    for step, fact in EXAMPLES.items():
        if step in TRANSITIONS[State.IN_FLIGHT]:
            assert apply_fact(a_row(State.IN_FLIGHT, attempt=2), fact, NOW).attempt == 2
    for step in (Step.SUPERSEDED, Step.CANCELLED, Step.DEAD_UNATTEMPTED, Step.RESCHEDULED):
        assert apply_fact(a_row(State.READY, attempt=2), EXAMPLES[step], NOW).attempt == 2


def test_crashes_are_counted_in_a_row() -> None:
    crashed = apply_fact(replace(a_row(State.IN_FLIGHT), crashes=1), EXAMPLES[Step.ABANDONED], NOW)
    assert (crashed.crashes, crashed.due_at) == (2, NOW)
    failed = apply_fact(replace(a_row(State.IN_FLIGHT), crashes=1), EXAMPLES[Step.ATTEMPT_FAILED], NOW)
    assert (failed.crashes, failed.due_at) == (0, LATER)


@pytest.mark.parametrize("fact", EXAMPLES.values(), ids=[step.value for step in EXAMPLES])
def test_a_fact_survives_the_log(fact: facts.AnyFact) -> None:
    logged = msgspec.json.encode(facts.get_detail(fact)).decode()
    assert decode(facts.get_kind(fact), logged) == fact


def walk(choices: list[int]) -> Iterator[OpenDelivery]:
    """The table walked at random, as the store would: the row after each step."""
    row = OpenDelivery(1, "r", "USER|u1", NOW, State.RECEIVED)
    for choice in choices:
        steps = sorted(TRANSITIONS[row.state])
        step = steps[choice % len(steps)]
        row = move(row, step) if step in SCHEDULING else apply_fact(row, EXAMPLES[step], NOW)
        yield row


def move(row: OpenDelivery, step: Step) -> OpenDelivery:
    """Schedule, claim or give back, as the store does."""
    if step is Step.CLAIMED:
        return replace(row, state=lifecycle.apply_step(row.state, step), attempt=row.attempt + 1, due_at=None)
    if step is Step.GIVEN_BACK:
        return replace(row, state=lifecycle.apply_step(row.state, step), attempt=row.attempt - 1, due_at=NOW)
    return lifecycle.schedule(row, step, NOW)


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
    """Assert that the row agrees with the last of its facts and with their fold, and that each fact can follow the one before."""
    folded = fold(zip(row.facts, row.standings, strict=True))
    assert folded.state is (State.RECEIVED if row.state in OPEN else row.state)
    assert (folded.attempt, folded.run, folded.crashes) == counts_of(row.standing)
    for before, (fact, then) in zip([None, *row.standings], zip(row.facts, row.standings, strict=True), strict=False):
        assert follows(before, facts.get_kind(fact), then)


def counts_of(standing: Standing) -> tuple[int, int, int]:
    return standing.attempt, standing.run, standing.crashes


@given(any_steps())
def test_a_row_and_the_fold_of_its_facts_agree_whatever_happens(steps: list[Step | facts.AnyFact]) -> None:
    row = OpenDelivery(1, "r", "USER|u1", NOW, State.RECEIVED)
    for step in steps:
        try:
            row = move(row, step) if isinstance(step, Step) else apply_fact(row, step, NOW)
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
            again = lifecycle.restore(row, row.standings[-1], None)
            assert replace(again, due_at=row.due_at) == row
            assert row.due_at is None or (again.due_at is not None and again.due_at >= row.due_at)


@given(CHOICES, st.sampled_from(sorted(set(State) - {State.ENDED, State.IN_FLIGHT})))
def test_a_row_is_restored_to_what_its_last_fact_says_whatever_it_says(choices: list[int], state: State) -> None:
    for row in walk(choices):
        for last in row.standings[-1:]:
            again = lifecycle.restore(a_row(state), last, LATER)
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


# --- Edges of events, ordering and the lifecycle: each case differs from its neighbour in one thing


def seconds(number: float) -> timedelta:
    return timedelta(seconds=number)


def lane_row(state: State, seq: int = 1, *, attempt: int = 0, due_in: float | None = None) -> OpenDelivery:
    due_at = None if due_in is None else NOW + seconds(due_in)
    return OpenDelivery(seq, "r", "USER|u1", NOW + seconds(seq), state, attempt=attempt, due_at=due_at)


@pytest.mark.parametrize(
    ("ahead", "occurred", "stored"), [(5.0, 5.25, 5.25), (5.0, 5.3, 0.0), (5.0, -9.0, -9.0), (None, -9.0, 0.25)]
)
def test_an_event_keeps_its_time_unless_that_lies_ahead(ahead: float | None, occurred: float, stored: float) -> None:
    event = replace(an_event(1, "u1"), ahead=ahead, occurred_at=NOW + seconds(occurred))
    assert event.resolve_time(NOW + seconds(0.25)) == NOW + seconds(stored)


@pytest.mark.parametrize(
    ("attempts", "due_in", "state", "expected"),
    [(1, 1, "ready", True), (1, 0, "ready", False), (0, 1, "ready", False), (1, None, "ready", False), (1, 1, "dead", False)],
)  # fmt: skip
def test_a_delivery_is_retrying_until_it_is_due(attempts: int, due_in: int | None, state: str, expected: bool) -> None:
    due_at = None if due_in is None else NOW + seconds(due_in)
    assert states.is_retrying(states.State(state), attempts, due_at, NOW) is expected


@pytest.mark.parametrize(("reason", "says"), [("mended", True), (" …\n", False), ("", False), (None, False)])
def test_a_reason_says_something(reason: str | None, says: bool) -> None:
    assert states.says_why(reason) is says


def test_a_time_is_written_in_utc_with_a_z() -> None:
    moment = NOW.astimezone(timezone(timedelta(hours=2)))
    assert timestamps.time_text(moment) == "2026-01-01 00:00:00.000000Z"
    assert timestamps.rfc3339(moment) == "2026-01-01T00:00:00Z"
    assert timestamps.rfc3339(moment, "milliseconds") == "2026-01-01T00:00:00.000Z"
    assert swept_parts("USER", "u1") == ("sweep", "USER", "u1")


def test_a_key_is_its_parts_as_long_as_an_index_takes_them() -> None:
    def key(*parts: str) -> str:
        return dedup_key(Identity(None, None, "made", "other", 0, parts))

    assert key("a", "b|c") == "a|b\\|c"
    assert key("a" * 1000) == "a" * 1000
    assert key("a" * 1001).startswith("\\sha256:")
    assert parse_entity_key("shop|USER|u1\\") == ("shop", "USER", "u1")


def test_a_number_is_too_long_beyond_its_limit_and_digits_within_a_text_are_none() -> None:
    digits = b"1" * (LONGEST_NUMBER + 1)
    assert has_too_long_number(b'{"a": %b}' % digits)
    assert not has_too_long_number(b'{"a": "%b"}' % digits)
    assert real("1." + "0" * (LONGEST_NUMBER - 2)) == 1.0


def test_a_delivery_that_is_due_at_the_moment_is_open() -> None:
    fact = {"route": "r", "at": NOW, "kind": "attempt_failed", "state": "ready", "attempt": 1}
    due = {**fact, "detail": {"due_at": LATER.isoformat()}}
    at_both = [states.deliveries_at(["r"], [due], at)[0]["state"] for at in (NOW, LATER)]
    assert at_both == ["retrying", "open"]


# --- Ordering


def test_a_head_keeps_its_attempts_for_the_newer_event_where_it_has_some_or_waits_for_its_time() -> None:
    def taken(head: OpenDelivery) -> tuple[facts.AnyFact, ...]:
        rows = settle("latest", [head, lane_row(State.RECEIVED, 2)], NOW, seconds(5))
        return next(row.facts for row in rows if row.seq == 2)

    assert taken(lane_row(State.READY, due_in=0)) == ()
    for head in (lane_row(State.READY, due_in=3), lane_row(State.READY, attempt=1, due_in=0)):
        assert head.due_at is not None
        crashed = replace(head, crashes=2)
        assert taken(crashed) == (facts.TookOver(of=1, attempt=head.attempt, crashes=2, due_at=head.due_at),)


@pytest.mark.parametrize(("due_in", "first"), [(None, 1), (0.0, 1), (3.0, 2)])
def test_an_older_event_replaces_a_head_that_is_due_and_has_no_attempt(due_in: float | None, first: int) -> None:
    rows = settle("strict", [lane_row(State.READY, 2, due_in=due_in), lane_row(State.RECEIVED, 1)], NOW, seconds(5))
    assert [row.seq for row in rows if row.state is State.READY] == [first]


@pytest.mark.parametrize(("microsecond", "resolution"), [(0, 1_000_000), (2000, 1000), (2001, 1)])
@pytest.mark.parametrize("late", [0, 1])
def test_a_success_covers_an_event_older_by_skew_and_resolution(microsecond: int, resolution: int, late: int) -> None:
    at, skew = NOW.replace(microsecond=microsecond), seconds(5)
    edge, one = at + timedelta(microseconds=resolution), timedelta(microseconds=late)
    assert covers(LastDelivered(edge + skew + one, seq=1), (at, 2), skew) == bool(late)
    assert covers(LastDelivered(NOW, seq=1, fetch_began_at=edge + skew + one), (at, 2), skew) == bool(late)
    newer = LastDelivered(NOW, seq=1, fetch_began_at=NOW, last_modified=edge - timedelta(microseconds=1 - late))
    assert covers(newer, (at, 2), skew) == bool(late)


# --- The lifecycle of a delivery


@pytest.mark.parametrize("fact", [facts.Replayed(who="ann", why="mended"), facts.Rearmed(duplicate=4)])
def test_a_new_run_begins_without_attempts_and_crashes(fact: facts.AnyFact) -> None:
    ended = replace(lane_row(State.ENDED, attempt=3), run=1, crashes=2)
    assert apply_fact(ended, fact, NOW).standings == (Standing(State.RECEIVED, 0, 2, 0),)


@pytest.mark.parametrize(
    ("kind", "then", "pruned", "can_follow"),
    [
        ("dead", Standing(State.DEAD, 1), False, True),
        ("dead", Standing(State.DEAD, 0), False, True),
        ("dead", Standing(State.BLOCKED, 1), False, True),
        ("dead", Standing(State.DEAD, 2), False, False),
        ("superseded", Standing(State.ENDED, 1), True, True),
        ("superseded", Standing(State.ENDED, 1), False, False),
        ("cancelled", Standing(State.DEAD, 0), False, False),
    ],
)
def test_a_fact_follows_one_that_its_step_leads_from(kind: str, then: Standing, pruned: bool, can_follow: bool) -> None:
    assert follows(None, kind, then, may_be_pruned=pruned) is can_follow


@pytest.mark.parametrize(
    ("row", "standing", "due_at", "state", "due"),
    [
        (lane_row(State.WAITING), Standing(State.READY), None, State.WAITING, None),
        (lane_row(State.WAITING), Standing(State.READY), LATER, State.RECEIVED, LATER),
        (lane_row(State.READY, due_in=9), Standing(State.READY), NOW, State.READY, NOW + seconds(9)),
        (lane_row(State.READY, due_in=900), Standing(State.DEAD), None, State.DEAD, None),
        (lane_row(State.DEAD, due_in=900), Standing(State.READY), LATER, State.RECEIVED, LATER),
    ],
)
def test_a_row_keeps_its_state_and_time_where_its_last_fact_allows_them(
    row: OpenDelivery, standing: Standing, due_at: datetime | None, state: State, due: datetime | None
) -> None:
    restored = lifecycle.restore(row, replace(standing, attempt=2, run=1, crashes=2), due_at)
    assert (restored.state, restored.due_at) == (state, due)
    assert (restored.attempt, restored.run, restored.crashes) == (2, 1, 2)
