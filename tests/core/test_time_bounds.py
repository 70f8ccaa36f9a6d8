"""Bounds of stored times: never less than the rules have set, never more than they allow."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inbox.config.model import Retry
from inbox.config.values import Duration, Rate
from relay.delivery import facts
from relay.delivery.gates import Breaker, BreakerLimits, BreakerState, RateLimit, after_result, probe
from relay.delivery.outcome import Failed
from relay.delivery.policy import LONGEST_RETRY_AFTER, RoutePolicy, Schedule, decide
from relay.delivery.time_bounds import SLACK, asked_delay, breaker_within, furthest_due, is_beyond, within
from tests.helpers.delivering import a_delivery

NOW = datetime(2026, 1, 1, tzinfo=UTC)
LIMITS = BreakerLimits(calls=1, failed=0.5, open_for=30, longest=600)
PROBE = timedelta(seconds=60)

spans = st.floats(0, 40 * 86400).map(lambda seconds: timedelta(seconds=seconds))
steps_back = st.floats(0, 3000 * 86400).map(lambda seconds: timedelta(seconds=seconds))


def policy_of(retry: Retry) -> RoutePolicy:
    return RoutePolicy("strict", blocks_on_death=False, schedule=Schedule(retry))


POLICY = policy_of(Retry())
retries = st.builds(
    lambda delays: Retry(schedule=tuple(map(Duration, delays))),
    st.lists(st.floats(0.001, 366 * 86400), min_size=1, max_size=4),
)


@given(
    retries,
    st.integers(1, 4),
    st.none() | st.floats(0, 1e9),
    st.sampled_from(["server_error", "auth", "stale", "lease_lost", "handler_retry", "rejected"]),
    spans,
)
def test_what_a_failed_attempt_has_asked_for_is_never_too_far_ahead_while_the_clock_goes_on(
    retry: Retry, attempt: int, retry_after: float | None, error_class: str, passed: timedelta
) -> None:
    policy = policy_of(retry)
    delivery = a_delivery(attempt=attempt)
    fact = decide(delivery, Failed((), error_class, "503", retry_after), policy, NOW)  # type: ignore[arg-type]  # a class, drawn
    if isinstance(fact, facts.AttemptFailed):
        recorded_at = NOW + timedelta(milliseconds=3)
        assert not is_beyond(fact.due_at, furthest_due(asked_delay(fact, recorded_at), policy, recorded_at + passed))


@given(spans, steps_back, st.floats(0, 30 * 86400))
def test_after_a_step_back_it_is_due_after_the_delay_it_had_asked_for(
    asked: timedelta, back: timedelta, later: float
) -> None:
    now = NOW - back + timedelta(seconds=later)
    furthest = furthest_due(asked, POLICY, now)
    assert now <= furthest <= now + min(asked, LONGEST_RETRY_AFTER)
    again = facts.Rescheduled(due_at=furthest, was_due_at=NOW + asked)
    assert furthest_due(asked_delay(again, now), POLICY, now) == furthest, "and once is enough"


@given(steps_back)
def test_what_was_never_attempted_may_be_due_no_later_than_now(ahead: timedelta) -> None:
    assert furthest_due(asked_delay(facts.Abandoned(relay_node="r1"), NOW + ahead), POLICY, NOW) == NOW


def test_a_fact_that_asks_for_more_than_the_schedule_and_any_answer_may_gets_no_more() -> None:
    by_hand = timedelta(days=400)
    assert furthest_due(by_hand, POLICY, NOW) == NOW + LONGEST_RETRY_AFTER
    slow = RoutePolicy(
        "strict", blocks_on_death=False, schedule=Schedule(Retry(schedule=(Duration(30 * 86400),)), jitter=0.5)
    )
    assert furthest_due(by_hand, slow, NOW) == NOW + timedelta(days=45)


@given(st.lists(st.sampled_from(["unwell", "refused", "well", "probe"]), max_size=30), spans)
def test_no_breaker_is_pulled_in_while_the_clock_goes_on(reports: list[str], passed: timedelta) -> None:
    breaker, now = Breaker(), NOW
    for report in reports:
        now = max(now + timedelta(seconds=1), breaker.until or now)
        if report != "probe":
            breaker = after_result(breaker, report, "503", LIMITS, now)  # type: ignore[arg-type]  # a health, drawn
        elif breaker.state is BreakerState.OPEN:
            breaker = probe(breaker, now, PROBE)
        assert breaker_within(breaker, LIMITS, PROBE, now + passed) == breaker


@given(steps_back, st.integers(0, 2000))
def test_after_a_step_back_a_breaker_is_open_for_as_long_as_it_was_to_be(back: timedelta, opened: int) -> None:
    stopped = Breaker(BreakerState.OPEN, NOW + back + SLACK * 1000, "503", opened, window_began_at=NOW + back + SLACK)
    held = breaker_within(stopped, LIMITS, PROBE, NOW)
    assert held.until is not None
    assert NOW + timedelta(seconds=30) <= held.until <= NOW + timedelta(seconds=600)
    tried = breaker_within(probe(stopped, NOW + back + SLACK * 1000, PROBE), LIMITS, PROBE, NOW)
    assert tried.until == NOW + PROBE


@given(st.integers(1, 1000), st.sampled_from(["s", "m", "h", "d"]), st.integers(1, 5), st.integers(0, 50))
def test_no_rate_is_pulled_in_while_the_clock_goes_on(number: int, unit: str, calls: int, wanted: int) -> None:
    rate_limit = RateLimit(("api", "crm"), Rate.parse(f"{number}/{unit}"), calls)
    used = rate_limit.used(None, NOW, min(rate_limit.affords(None, NOW), wanted))
    assert within(used, rate_limit.furthest(NOW)) == used


@pytest.mark.parametrize("seconds", [0, 4.9])
def test_what_lies_too_far_ahead_by_little_is_left_alone(seconds: float) -> None:
    assert not is_beyond(NOW + timedelta(seconds=seconds), NOW)
    assert is_beyond(NOW + timedelta(seconds=seconds + 5.1), NOW)
