"""Gates: breakers, rate limits, holds that answers ask for, pauses and their alerts."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from itertools import pairwise

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.delivery import facts, gates, policy
from relay.delivery.alerts import SENTENCES, Alert, Posted, format_sentence, list_breaker_alerts, payload
from relay.delivery.gates import Breaker, BreakerLimits, BreakerState, Gates, RateLimit, probe
from relay.delivery.outcome import RULES, Call, CallStep, Delivered, ErrorClass, Failed, Outcome, RateHold, Sent
from relay.delivery.policy import History, HoldRequest, decide
from relay.http.response import LONGEST_SECONDS, read_rate_hold
from tests.core.test_policy import POLICY as PLAIN
from tests.helpers.delivering import a_delivery

# --- Gates: breakers, rate limits and pauses


NOW = datetime(2026, 1, 1, tzinfo=UTC)
LIMITS = BreakerLimits(calls=4, failed=0.5, window=60, open_for=30, longest=100)
CRM = ("destination", "crm")


def after(*reports: gates.Health, breaker: Breaker | None = None, at: datetime = NOW) -> Breaker:
    state = breaker or Breaker()
    for health in reports:
        state = gates.apply_result(state, health, "answered 503", LIMITS, at)
    return state


def seconds(number: float) -> timedelta:
    return timedelta(seconds=number)


# --- the breaker


def test_it_opens_when_enough_of_enough_calls_in_a_window_failed() -> None:
    before = after("unwell", "unwell", "unwell")
    assert before.state is BreakerState.CLOSED
    assert after("well", "well", "well", "unwell").state is BreakerState.CLOSED
    opened = after("well", "unwell", "well", "unwell")
    assert (opened.state, opened.until, opened.cause) == (BreakerState.OPEN, NOW + seconds(30), "answered 503")
    assert after("unwell", breaker=before, at=NOW + seconds(59)).state is BreakerState.OPEN
    assert after("unwell", breaker=before, at=NOW + seconds(60)).state is BreakerState.CLOSED, (
        "those of a window before"
    )


def test_refused_credentials_open_it_at_once_and_a_410_retires_the_endpoint() -> None:
    assert after("refused").state is BreakerState.OPEN
    retired = after("retired")
    assert retired.state is BreakerState.RETIRED
    assert retired.lets_claim(NOW + seconds(10**6)) == "none"
    assert after("well", "unwell", breaker=retired) == retired


def test_a_breaker_hears_of_successes_while_it_is_not_closed_or_has_a_failure_in_its_window() -> None:
    failed, opened = {CRM: after("unwell")}, {CRM: after("refused")}
    assert Gates(NOW + seconds(59), breakers=failed).list_recently_failing() == {CRM}
    assert Gates(NOW + seconds(60), breakers=failed).list_recently_failing() == frozenset()
    assert Gates(NOW + seconds(60), breakers=opened).list_recently_failing() == {CRM}
    assert Gates(NOW, breakers={CRM: Breaker()}).list_recently_failing() == frozenset()


def test_an_attempt_that_began_before_it_opened_changes_nothing() -> None:
    opened = after("refused")
    assert after("well", "unwell", "refused", breaker=opened) == opened


def test_when_its_time_has_come_one_delivery_may_try_and_its_success_closes_it() -> None:
    opened = after("refused")
    assert opened.lets_claim(NOW + seconds(29.9)) == "none"
    assert opened.lets_claim(NOW + seconds(30)) == "probe"
    trying = probe(opened, NOW + seconds(30), seconds(60))
    assert trying.lets_claim(NOW + seconds(31)) == "none"
    assert trying.lets_claim(NOW + seconds(90)) == "probe", "the relay that tried it is gone"
    assert after("well", breaker=trying).lets_claim(NOW) == "all"


def test_each_time_it_is_found_unwell_it_stays_open_twice_as_long_up_to_a_limit() -> None:
    breaker, spans = after("refused"), []
    for _ in range(4):
        assert breaker.until is not None
        began = breaker.until
        breaker = after("unwell", breaker=probe(breaker, began, seconds(60)), at=began)
        assert breaker.until is not None
        spans.append((breaker.until - began).total_seconds())
    assert spans == [60, 100, 100, 100]


@given(
    open_count=st.integers(0, 10**6) | st.sampled_from([1023, 1024, 2**31 - 1]),
    open_for=st.floats(0, 366 * 86400),
    longest=st.floats(0, 366 * 86400),
)
def test_it_never_opens_for_longer_than_the_longest_time(open_count: int, open_for: float, longest: float) -> None:
    limits = BreakerLimits(open_for=open_for, longest=longest)
    trying = Breaker(BreakerState.HALF_OPEN, NOW, "answered 503", open_count)
    opened = gates.apply_result(trying, "unwell", "answered 503", limits, NOW)
    assert opened.until is not None
    assert min(open_for, longest) - 1e-6 <= (opened.until - NOW).total_seconds() <= max(open_for, longest) + 1e-6
    assert opened.open_count <= 2**31 - 1, "the column holds no more"


# --- rates


@pytest.mark.parametrize(("rate", "burst"), [(10.0, 10), (0.01, 2), (2.5, 2)])
def test_a_second_s_worth_of_calls_may_go_out_at_once_and_two_at_least(rate: float, burst: int) -> None:
    assert RateLimit(CRM, rate, 1).affords(None, NOW) == burst
    assert RateLimit(CRM, rate, 1).affords(NOW - seconds(1000), NOW) == burst
    assert RateLimit(CRM, rate, 1).affords(NOW + seconds(1000), NOW) == burst, (
        "it was used by a clock that was set back"
    )


@given(
    rate=st.floats(0.001, 1000),
    calls=st.integers(1, 3),
    waits=st.lists(st.floats(0, 10), min_size=1, max_size=50),
    wanted=st.integers(1, 20),
)
def test_never_more_than_the_rate_and_one_burst(rate: float, calls: int, waits: list[float], wanted: int) -> None:
    rate_limit, now, used, made = RateLimit(CRM, rate, calls), NOW, None, 0
    burst = rate_limit.affords(None, NOW)
    for wait in waits:
        now += seconds(wait)
        attempts = min(rate_limit.affords(used, now), wanted)
        if attempts > 0:
            used, made = rate_limit.use(used, now, attempts), made + attempts
        elapsed = (now - NOW).total_seconds()
        assert made * calls <= burst * calls + (elapsed * rate) + 1e-3 + calls


@given(rate=st.floats(0.001, 1000), calls=st.integers(1, 3), part=st.floats(0, 1))
def test_it_says_in_how_many_seconds_the_next_may_go_and_then_it_may(rate: float, calls: int, part: float) -> None:
    rate_limit = RateLimit(CRM, rate, calls)
    used = NOW + seconds(part * rate_limit.affords(None, NOW) * calls / rate)
    wait = rate_limit.opens_in(used, NOW)
    assert (wait == 0) == (rate_limit.affords(used, NOW) > 0)
    assert rate_limit.affords(used, NOW + seconds(wait + 2e-6)) > 0
    assert wait == 0 or rate_limit.affords(used, NOW + seconds(wait * 0.9 - 0.01)) < 1


# --- pauses


def test_a_route_goes_through_all_its_gates() -> None:
    through = [("source", "trivore"), ("route", "users"), CRM, ("api", "identity")]
    assert Gates().admit(through) == "all"
    assert Gates(NOW, frozenset({("source", "github")})).admit(through) == "all"
    for gate in through:
        assert Gates(NOW, frozenset({gate})).admit(through) == "none"
    trying = Gates(NOW + seconds(30), breakers={CRM: after("refused")})
    assert trying.admit(through) == "probe"
    shut = {CRM: after("refused"), ("api", "identity"): after("retired")}
    assert Gates(NOW + seconds(30), breakers=shut).admit(through) == "none"


@given(st.tuples(*[st.text(st.sampled_from("ab|\\ "), max_size=5)] * 3))
def test_the_gate_of_an_entity_names_it_without_doubt(entity: tuple[str, str, str]) -> None:
    kind, name = gates.make_entity_key(*entity)
    assert kind == "entity"
    assert gates.parse_entity_key(name) == entity


# --- alerts


def transitions(*states: Breaker) -> list[tuple[str, bool]]:
    return [
        (alert.kind, alert.firing)
        for before, now in pairwise(states)
        for alert in list_breaker_alerts({CRM: before}, {CRM: now})
    ]


def test_a_breaker_that_opens_again_and_again_is_one_change() -> None:
    opened, trying = after("refused"), probe(after("refused"), NOW, seconds(60))
    assert transitions(Breaker(), opened, trying, opened, trying) == [("breaker_open", True)]
    assert transitions(opened, after("retired")) == [("endpoint_retired", True)]
    assert transitions(after("retired"), Breaker()) == [("breaker_open", False), ("endpoint_retired", False)]


def test_an_alert_is_a_sentence_and_all_of_it_as_json_or_a_message_for_slack() -> None:
    alert = Alert("breaker_open", "destination crm", firing=True, detail={"cause": "answered <503> & more"})
    posted = Posted(7, NOW, alert)
    assert format_sentence(alert) == "destination crm is not called for now: answered <503> & more"
    told = {"kind": "breaker_open", "subject": "destination crm", "firing": True, "detail": alert.detail}
    assert payload(posted, "json") == {"id": 7, "at": "2026-01-01T00:00:00Z", "text": format_sentence(alert), **told}
    assert payload(posted, "slack") == {
        "text": ":red_circle: destination crm is not called for now: answered &lt;503&gt; &amp; more"
    }


def test_no_cause_mentions_a_user_forges_a_line_or_hides_a_link_in_a_message_for_slack() -> None:
    cause = "a|b <!here> @channel\n:large_green_circle: all is well [crm](https://evil.example)"
    for kind in SENTENCES:
        detail = dict.fromkeys(("cause", "error", "seq", "age_seconds", "silent_seconds", "missed", "compared"), cause)
        text = payload(Posted(7, NOW, Alert(kind, cause, firing=True, detail=detail)), "slack")["text"]
        assert not [sign for sign in ("\n", "](", "@channel", "<") if sign in text]
        assert text.startswith(":red_circle: ")


# --- Rate holds: asked for by answers, bounded by the configuration, and no event's fault


IDENTITY = ("api", "identity")
HOUR = timedelta(hours=1)
POLICY = msgspec.structs.replace(PLAIN, breakers={CRM: BreakerLimits(), IDENTITY: BreakerLimits()})


def a_call(seconds: float | None, step: CallStep = "update", status: int | None = 429, sent: Sent = "answered") -> Call:
    hold = None if seconds is None else RateHold(seconds, "Retry-After")
    return Call(step, "PATCH", "https://crm/", sent, 1.0, status, hold=hold)


def fail_throttled(*calls: Call, error_class: ErrorClass = "throttled") -> Failed:
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
        (a_call(0.0), []),
        (a_call(1e-9), []),
        (a_call(30, status=None), [HoldRequest(CRM, timedelta(seconds=30), "update Retry-After")]),
        (a_call(30, "fetch"), [HoldRequest(IDENTITY, timedelta(seconds=30), "fetch answered 429: Retry-After")]),
    ],
)
def test_an_endpoint_is_held_as_long_as_it_asked_up_to_a_limit(call: Call, asked: list[HoldRequest]) -> None:
    assert list(policy.list_hold_requests(fail_throttled(call), POLICY)) == asked
    assert policy.asks_for_hold(Delivered((call,), "updated")) == (call.hold is not None)
    assert list(policy.list_hold_requests(Delivered((call,), "updated"), POLICY)) == asked, (
        "an answer that was a success counts as well"
    )


@pytest.mark.parametrize(
    ("outcome", "reports"),
    [
        *(
            (fail_throttled(a_call(None, status=503), error_class=error_class), [(CRM, "well")])
            for error_class in ("rejected", "conflict", "redirect", "bad_answer", "not_found")
        ),
        (fail_throttled(a_call(None, "fetch"), error_class="auth"), [(IDENTITY, "refused")]),
        (fail_throttled(a_call(None, "fetch"), a_call(None), error_class="server_error"), [(IDENTITY, "well"), (CRM, "unwell")]),
        (Delivered((a_call(None, "fetch"), a_call(None)), "updated"), [(IDENTITY, "well"), (CRM, "well")]),
    ],
)  # fmt: skip
def test_each_called_endpoint_is_reported_to_its_breaker_and_a_response_is_a_success(
    outcome: Outcome, reports: list[tuple[gates.GateKey, gates.Health]]
) -> None:
    assert sorted((each.key, each.health) for each in policy.list_breaker_reports(outcome, POLICY)) == sorted(reports)


def test_an_attempt_that_a_limit_cut_short_is_not_counted_and_no_breaker_hears_of_trouble() -> None:
    outcome = msgspec.structs.replace(fail_throttled(a_call(30)), retry_after=30.0)
    fact = decide(a_delivery(attempt=4), outcome, POLICY, NOW)
    assert isinstance(fact, facts.AttemptFailed)
    assert (fact.counted, fact.due_at) == (False, NOW), "the gate delays it, which an operator can open"
    assert list(policy.list_breaker_reports(outcome, POLICY)) == [gates.Report(CRM, "well", "")]
    assert policy.needs_history(outcome, POLICY)


def test_a_limit_too_small_for_a_single_attempt_uses_up_the_schedule_in_the_end() -> None:
    outcome = fail_throttled(a_call(30))
    counts = [
        decide(a_delivery(attempt=1), outcome, POLICY, NOW, History(same))
        for same in (policy.HELD_AT_MOST - 1, policy.HELD_AT_MOST)
    ]
    assert [getattr(fact, "counted", None) for fact in counts] == [False, True]
    assert isinstance(decide(a_delivery(attempt=4), outcome, POLICY, NOW, History(policy.HELD_AT_MOST)), facts.Dead)


@pytest.mark.parametrize(
    "error_class", sorted(RULES.keys() - {"throttled", "auth", "gone", "conflict", "stale", "lease_lost"})
)
def test_a_hold_beside_any_other_failure_excuses_nothing(error_class: ErrorClass) -> None:
    held, plain = (
        fail_throttled(a_call(30), error_class=error_class),
        fail_throttled(a_call(None), error_class=error_class),
    )
    facts_of = [decide(a_delivery(attempt=1), outcome, POLICY, NOW) for outcome in (held, plain)]
    assert [getattr(fact, "counted", None) for fact in facts_of] == [True, True]


# --- Rate limits in the headers of an answer: read where they are numbers, and ignored where a downstream writes nonsense


EPOCH = int(NOW.timestamp())
USED_UP = {"X-RateLimit-Remaining": "0"}


def holds_for(headers: Mapping[str, str], status: int = 200) -> float | None:
    hold = read_rate_hold(headers, status, NOW)
    return None if hold is None else hold.seconds


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ({"X-RateLimit-Reset": str(EPOCH + 90)}, 90),
        ({"X-RateLimit-Reset": str((EPOCH + 90) * 1000)}, 90),
        ({"X-RateLimit-Reset": "30"}, 30),
        ({"X-RateLimit-Reset-After": "0.25"}, 0.25),
        ({"X-Rate-Limit-Remaining": "0", "X-Rate-Limit-Reset": str(EPOCH + 5), "X-RateLimit-Remaining": "9"}, 5),
        ({"X-RateLimit-Reset": str(EPOCH + 90), "Date": "Thu, 01 Jan 2026 00:01:00 GMT"}, 30),
        ({"X-RateLimit-Remaining": "1", "X-RateLimit-Reset": "30"}, None),
        ({"X-RateLimit-Reset": str(EPOCH - 1)}, None),
        ({"X-RateLimit-Reset": "soon"}, None),
        ({"X-RateLimit-Reset": "9" * 10_000}, None),
        ({"X-RateLimit-Reset": "253402300799"}, None),  # year 9999 in seconds is 1978 in milliseconds
        ({"X-RateLimit-Reset": "99999999999"}, LONGEST_SECONDS),  # year 5138
        ({}, None),
    ],
)
def test_a_limit_that_is_used_up_holds_until_its_reset(headers: dict[str, str], expected: float | None) -> None:
    assert holds_for({**USED_UP, **headers}) == expected


NO_LIMIT = {202, 301, 400, 404, 500, 503}


@pytest.mark.parametrize("status", [200, 201, 202, 204, 301, 400, 403, 404, 429, 500, 503])
def test_retry_after_counts_where_it_means_a_limit(status: int) -> None:
    assert holds_for({"Retry-After": "9"}, status) == (None if status in NO_LIMIT else 9)


NAMES = [
    "Retry-After", "X-RateLimit-Remaining", "X-RateLimit-Reset", "X-Rate-Limit-Remaining", "X-Rate-Limit-Reset",
    "RateLimit-Remaining", "RateLimit-Reset", "X-RateLimit-Reset-After", "Date",
]  # fmt: skip
VALUES = st.text() | st.integers().map(str) | st.sampled_from(["0", "Fri, 31 Dec 9999 23:59:59 -2359", "٣", "²"])


@given(st.dictionaries(st.sampled_from(NAMES), VALUES), st.integers(100, 599))
def test_a_hold_is_none_or_bounded_by_any_header(headers: dict[str, str], status: int) -> None:
    found = holds_for(headers, status)
    assert found is None or 0 < found <= LONGEST_SECONDS
    assert found is None or NOW + timedelta(seconds=found) < datetime(2026, 1, 2, 1, tzinfo=UTC)
