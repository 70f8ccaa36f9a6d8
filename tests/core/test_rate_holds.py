"""Rate holds: asked for by answers, bounded by the configuration, and no event's fault."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.delivery import facts
from relay.delivery.gates import BreakerLimits, Report
from relay.delivery.outcome import RULES, Call, CallStep, Delivered, ErrorClass, Failed, RateHold, Sent
from relay.delivery.policy import (
    HELD_AT_MOST,
    History,
    HoldRequest,
    breaker_reports,
    decide,
    hold_requests,
    holds_until,
    needs_history,
)
from tests.core.test_policy import POLICY as PLAIN
from tests.helpers.delivering import a_delivery

NOW = datetime(2026, 1, 1, tzinfo=UTC)
CRM, IDENTITY = ("destination", "crm"), ("api", "identity")
HOUR = timedelta(hours=1)
POLICY = msgspec.structs.replace(PLAIN, breakers={CRM: BreakerLimits(), IDENTITY: BreakerLimits()})


def a_call(seconds: float | None, step: CallStep = "update", status: int | None = 429, sent: Sent = "answered") -> Call:
    hold = None if seconds is None else RateHold(seconds, "Retry-After")
    return Call(step, "PATCH", "https://crm/", sent, 1.0, status, hold=hold)


def throttled(*calls: Call, error_class: ErrorClass = "throttled") -> Failed:
    return Failed(calls, error_class, "update: answered 429")


@pytest.mark.parametrize(
    ("call", "asked"),
    [
        (a_call(30), [HoldRequest(CRM, timedelta(seconds=30), "update answered 429: Retry-After")]),
        (a_call(7200), [HoldRequest(CRM, HOUR, "update answered 429: Retry-After")]),
        (a_call(1e300), [HoldRequest(CRM, HOUR, "update answered 429: Retry-After")]),
        (a_call(float("nan")), []),
        (a_call(-1), []),
        (a_call(None), []),
        (a_call(30, "fetch"), [HoldRequest(IDENTITY, timedelta(seconds=30), "fetch answered 429: Retry-After")]),
    ],
    ids=["seconds", "longer than allowed", "for ever", "not a number", "the past", "nothing", "of the api"],
)
def test_an_endpoint_is_held_as_long_as_it_asked_and_no_longer_than_allowed(
    call: Call, asked: list[HoldRequest]
) -> None:
    assert list(hold_requests(throttled(call), POLICY)) == asked
    assert list(hold_requests(Delivered((call,), "updated"), POLICY)) == asked, (
        "an answer that was a success counts as well"
    )


def test_a_hold_only_grows() -> None:
    until = NOW + timedelta(seconds=60)
    longer, shorter = HoldRequest(CRM, HOUR, "a"), HoldRequest(CRM, timedelta(seconds=1), "b")
    assert holds_until([shorter], {CRM: until}, NOW) == {}
    assert holds_until([shorter, longer, shorter], {CRM: until}, NOW) == {CRM: (NOW + HOUR, "a")}
    assert holds_until([shorter], {}, NOW) == {CRM: (NOW + timedelta(seconds=1), "b")}


def test_an_attempt_that_a_limit_cut_short_is_not_counted_and_no_breaker_hears_of_trouble() -> None:
    outcome = msgspec.structs.replace(throttled(a_call(30)), retry_after=30.0)
    fact = decide(a_delivery(attempt=4), outcome, POLICY, NOW)
    assert isinstance(fact, facts.AttemptFailed)
    assert (fact.counted, fact.due_at) == (False, NOW), "the gate delays it, which an operator can open"
    assert list(breaker_reports(outcome, POLICY)) == [Report(CRM, "well", "")]
    assert needs_history(outcome, POLICY)


def test_a_limit_too_small_for_a_single_attempt_uses_up_the_schedule_in_the_end() -> None:
    outcome = throttled(a_call(30))
    counts = [
        decide(a_delivery(attempt=1), outcome, POLICY, NOW, History(same)) for same in (HELD_AT_MOST - 1, HELD_AT_MOST)
    ]
    assert [getattr(fact, "counted", None) for fact in counts] == [False, True]
    assert isinstance(decide(a_delivery(attempt=4), outcome, POLICY, NOW, History(HELD_AT_MOST)), facts.Dead)


@pytest.mark.parametrize(
    "error_class", sorted(RULES.keys() - {"throttled", "auth", "gone", "conflict", "stale", "lease_lost"})
)
def test_a_hold_beside_any_other_failure_excuses_nothing(error_class: ErrorClass) -> None:
    held, plain = throttled(a_call(30), error_class=error_class), throttled(a_call(None), error_class=error_class)
    facts_of = [decide(a_delivery(attempt=1), outcome, POLICY, NOW) for outcome in (held, plain)]
    assert [getattr(fact, "counted", None) for fact in facts_of] == [True, True]


@given(st.floats(), st.sampled_from(["update", "fetch"]))
def test_no_number_holds_an_endpoint_beyond_its_bound(seconds: float, step: CallStep) -> None:
    for request in hold_requests(throttled(a_call(seconds, step)), POLICY):
        assert timedelta(0) < request.lasts <= HOUR
