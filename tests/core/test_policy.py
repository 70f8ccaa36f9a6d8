"""Policies, and the fact that an outcome leads to."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inbox.config.model import Retry
from inbox.config.values import Duration
from inbox.loader.load import parse_config
from relay.delivery import facts
from relay.delivery.gates import RateLimit
from relay.delivery.outcome import (
    AGAIN_AT_MOST,
    RULES,
    Call,
    CallStep,
    Delivered,
    ErrorClass,
    Failed,
    Rule,
    Sent,
    Skipped,
)
from relay.delivery.policy import (
    LONGEST_RETRY_AFTER,
    History,
    RoutePolicy,
    Schedule,
    can_be_given_back,
    decide,
    needs_history,
    policies,
)
from tests.helpers.delivering import a_delivery

NOW = datetime(2026, 1, 1, tzinfo=UTC)
EXACT = Schedule(Retry(schedule=(Duration(5), Duration(30), Duration(300))), jitter=0)
POLICY = RoutePolicy("strict", blocks_on_death=False, schedule=EXACT)
RETRYABLE = sorted(name for name, rule in RULES.items() if rule is Rule.RETRY)
HOPELESS = sorted(name for name, rule in RULES.items() if rule is Rule.DEAD)


@pytest.mark.parametrize(("find", "calls"), [("", 1), ('find = { path = "/c" }', 2)])
def test_an_attempt_pays_for_as_many_calls_as_it_may_make(find: str, calls: int) -> None:
    config = parse_config(f"""
        [sources.s]
        preset = "trivore"
        auth = {{ kind = "none" }}
        [apis.a]
        base_url = "https://a.example"
        rate = "20/s"
        [destinations.d]
        kind = "sync"
        base_url = "https://d.example"
        rate = "10/s"
        [routes.r]
        source = "s"
        destination = "d"
        [routes.r.sync]
        fetch = {{ api = "a", path = "/u" }}
        create = {{ path = "/c" }}
        delete = {{ path = "/c" }}
        map = {{ id = "event.entity_id" }}
        {find}
    """)
    assert policies(config)["r"].rate_limits == (
        RateLimit(("destination", "d"), 10.0, calls),
        RateLimit(("api", "a"), 20.0, 1),
    )


def test_the_schedule_is_followed_delay_by_delay_and_then_it_is_over() -> None:
    delays = [EXACT.delay_after(attempt) for attempt in (1, 2, 3, 4)]
    assert delays == [*(timedelta(seconds=seconds) for seconds in (5, 30, 300)), None]
    assert Schedule(Retry(schedule=())).delay_after(1) is None


@given(st.integers(1, 10))
def test_jitter_only_adds_and_at_most_its_share(attempt: int) -> None:
    retry = Retry()
    delay = Schedule(retry, jitter=0.2).delay_after(attempt)
    base = retry.schedule[attempt - 1]
    assert delay is not None
    assert base <= delay.total_seconds() <= base * 1.2 + 1e-6


def test_jitter_is_not_always_the_same() -> None:
    schedule = Schedule(Retry(), jitter=0.2)
    assert len({schedule.delay_after(3) for _ in range(50)}) > 1


def test_a_delivery_is_delivered_and_says_so_when_it_is_late() -> None:
    assert decide(a_delivery(late=True), Delivered((), "updated"), POLICY, NOW) == facts.DeliveredFact(
        did="updated", late=True
    )


def test_a_delivery_that_its_route_skips_is_skipped() -> None:
    assert decide(a_delivery(), Skipped((), "no counterpart"), POLICY, NOW) == Skipped(why="no counterpart")


@pytest.mark.parametrize("error_class", RETRYABLE)
def test_a_failure_that_may_pass_is_retried_by_the_schedule_until_it_is_used_up(error_class: ErrorClass) -> None:
    failed = Failed((), error_class, "trouble")
    first = decide(a_delivery(attempt=1), failed, POLICY, NOW)
    assert first == facts.AttemptFailed(error_class=error_class, error="trouble", due_at=NOW + timedelta(seconds=5))
    last = decide(a_delivery(attempt=4), failed, POLICY, NOW)
    assert last == facts.Dead(cause="exhausted", error="trouble")


@pytest.mark.parametrize("error_class", HOPELESS)
def test_a_failure_that_no_repetition_can_mend_is_dead_at_once_with_its_cause(error_class: ErrorClass) -> None:
    assert decide(a_delivery(attempt=1), Failed((), error_class, "no"), POLICY, NOW) == facts.Dead(
        cause=error_class, error="no"
    )


def test_a_refusal_is_confirmed_once_and_then_dead() -> None:
    refused = Failed((), "rejected", "422")
    first = decide(a_delivery(attempt=1), refused, POLICY, NOW)
    assert isinstance(first, facts.AttemptFailed)
    assert first.due_at == NOW + timedelta(seconds=5)
    again = decide(a_delivery(attempt=2), refused, POLICY, NOW, History(same_in_a_row=1))
    assert again == facts.Dead(cause="rejected", error="422")
    after_another_trouble = decide(a_delivery(attempt=2), refused, POLICY, NOW, History(same_in_a_row=0))
    assert isinstance(after_another_trouble, facts.AttemptFailed)


def test_a_state_older_than_its_event_is_fetched_again_after_1_5_and_30_seconds_and_uses_no_attempt() -> None:
    stale = Failed((), "stale", "fetch: last changed before the event")
    for times, seconds in enumerate((1, 5, 30, 30)):
        fact = decide(a_delivery(attempt=1), stale, POLICY, NOW, History(same_in_a_row=times))
        due_at = NOW + timedelta(seconds=seconds)
        assert fact == facts.AttemptFailed(error_class="stale", error=stale.error, due_at=due_at, counted=False)
    assert needs_history(stale, POLICY)


def test_a_conflict_is_looked_at_again_at_once_three_times_and_then_by_the_schedule() -> None:
    conflict = Failed((), "conflict", "412")
    for times in range(AGAIN_AT_MOST):
        fact = decide(a_delivery(attempt=1), conflict, POLICY, NOW, History(same_in_a_row=times))
        assert fact == facts.AttemptFailed(error_class="conflict", error="412", due_at=NOW, counted=False)
    fact = decide(a_delivery(attempt=1), conflict, POLICY, NOW, History(same_in_a_row=AGAIN_AT_MOST))
    assert fact == facts.AttemptFailed(error_class="conflict", error="412", due_at=NOW + timedelta(seconds=5))


def test_a_destination_can_overrule_what_an_answer_leads_to() -> None:
    patient = RoutePolicy(
        "strict", blocks_on_death=False, schedule=EXACT, outcomes={"rejected": "retry", "not_found": "dead"}
    )
    fact = decide(a_delivery(attempt=2), Failed((), "rejected", "422"), patient, NOW, History(same_in_a_row=1))
    assert isinstance(fact, facts.AttemptFailed)
    assert decide(a_delivery(attempt=1), Failed((), "not_found", "404"), patient, NOW) == facts.Dead(
        cause="not_found", error="404"
    )


def test_nothing_is_tried_beyond_the_window() -> None:
    schedule = Schedule(Retry(schedule=(Duration(5), Duration(30), Duration(300)), window=Duration(60)), jitter=0)
    assert schedule.delay_after(1, timedelta(seconds=0)) == timedelta(seconds=5)
    assert schedule.delay_after(2, timedelta(seconds=29)) == timedelta(seconds=30)
    assert schedule.delay_after(2, timedelta(seconds=31)) is None
    policy = RoutePolicy("strict", blocks_on_death=False, schedule=schedule)
    began = History(began_at=NOW - timedelta(seconds=31))
    assert decide(a_delivery(attempt=2), Failed((), "unknown", "cut"), policy, NOW, began) == facts.Dead(
        cause="exhausted", error="cut"
    )


def test_a_death_blocks_the_lane_when_the_route_says_so() -> None:
    blocking = RoutePolicy("strict", blocks_on_death=True, schedule=EXACT)
    fact = decide(a_delivery(attempt=1), Failed((), "mapping", "no"), blocking, NOW)
    assert isinstance(fact, facts.Dead)
    assert fact.blocks_lane


@pytest.mark.parametrize(
    ("asked", "waits"),
    [(None, 5), (1.0, 5), (7.5, 7.5), (10.0**12, LONGEST_RETRY_AFTER.total_seconds())],
    ids=["not asked", "sooner than our own delay", "later", "a century"],
)
def test_retry_after_is_honoured_between_our_own_delay_and_a_day(asked: float | None, waits: float) -> None:
    fact = decide(a_delivery(attempt=1), Failed((), "throttled", "429", retry_after=asked), POLICY, NOW)
    assert isinstance(fact, facts.AttemptFailed)
    assert fact.due_at == NOW + timedelta(seconds=waits)


# --- cut by us


def a_call(step: CallStep, sent: Sent) -> Call:
    return Call(step, "POST", "https://example.com/", sent, 1.0)


def cut(*calls: tuple[CallStep, Sent]) -> Failed:
    return Failed(tuple(a_call(step, sent) for step, sent in calls), "lease_lost", "cut: the lease ended")


@pytest.mark.parametrize("attempt", [1, 4], ids=["the first attempt", "the last of the schedule"])
def test_an_attempt_that_we_cut_is_repeated_at_once_and_does_not_count(attempt: int) -> None:
    outcome = cut(("forward", "unknown"))
    assert decide(a_delivery(attempt=attempt), outcome, POLICY, NOW) == facts.AttemptFailed(
        error_class="lease_lost", error=outcome.error, due_at=NOW, calls=outcome.calls, counted=False
    )


@pytest.mark.parametrize(
    "outcome",
    [
        cut(),
        cut(("forward", "not_sent")),
        cut(("fetch", "unknown")),
        cut(("fetch", "answered"), ("find", "unknown")),
        cut(("fetch", "answered"), ("find", "answered"), ("update", "not_sent")),
        cut(("find", "answered"), ("delete", "not_sent")),
    ],
    ids=["no call", "not sent", "fetching", "finding", "before the update", "before the delete"],
)
def test_an_attempt_that_was_cut_before_it_can_have_had_an_effect_is_given_back(outcome: Failed) -> None:
    assert can_be_given_back(outcome)


@pytest.mark.parametrize("step", ["forward", "create", "update", "delete"])
@pytest.mark.parametrize("sent", ["unknown", "answered"])
def test_an_attempt_that_the_other_side_may_have_acted_on_is_not_given_back(step: CallStep, sent: Sent) -> None:
    assert not can_be_given_back(cut(("fetch", "answered"), (step, sent), ("find", "not_sent")))


@pytest.mark.parametrize(
    "outcome",
    [Delivered((), "forwarded"), Skipped((), "no"), Failed((a_call("forward", "not_sent"),), "not_sent", "no")],
)
def test_an_attempt_that_ended_by_itself_is_not_given_back(outcome: Delivered | Skipped | Failed) -> None:
    assert not can_be_given_back(outcome)


@pytest.mark.parametrize(
    ("error_class", "is_stopped"),
    [("auth", False), ("gone", False), ("server_error", True)],
    ids=["auth", "gone", "probe"],
)
def test_a_delivery_that_a_breaker_holds_back_is_due_when_the_breaker_lets_it_go(
    error_class: ErrorClass, is_stopped: bool
) -> None:
    """The schedule's delay for the attempt, which did not count, would come on top of the breaker's."""
    fact = decide(a_delivery(attempt=3), Failed((), error_class, "no"), POLICY, NOW, is_stopped=is_stopped)
    assert isinstance(fact, facts.AttemptFailed)
    assert (fact.counted, fact.due_at) == (False, NOW)
