"""Gates: breakers, rate limits and pauses."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inbox.config.model import Config
from inbox.config.sources import NoAuth, Source
from relay.delivery.alerts import SENTENCES, Alert, Posted, changes, payload, sentence
from relay.delivery.gates import (
    Breaker,
    BreakerLimits,
    BreakerState,
    Gate,
    Gates,
    Health,
    RateLimit,
    after_result,
    entity_key,
    entity_of,
    probe,
)

NOW = datetime(2026, 1, 1, tzinfo=UTC)
LIMITS = BreakerLimits(calls=4, failed=0.5, window=60, open_for=30, longest=100)
CRM = ("destination", "crm")


def after(*reports: Health, breaker: Breaker | None = None, at: datetime = NOW) -> Breaker:
    state = breaker or Breaker()
    for health in reports:
        state = after_result(state, health, "answered 503", LIMITS, at)
    return state


def seconds(number: float) -> timedelta:
    return timedelta(seconds=number)


# --- the breaker


def test_it_opens_when_enough_of_enough_calls_in_a_window_failed() -> None:
    assert after("unwell", "unwell", "unwell").state is BreakerState.CLOSED
    assert after("well", "well", "well", "unwell").state is BreakerState.CLOSED
    opened = after("well", "unwell", "well", "unwell")
    assert (opened.state, opened.until, opened.cause) == (BreakerState.OPEN, NOW + seconds(30), "answered 503")


def test_calls_of_a_window_before_do_not_count() -> None:
    before = after("unwell", "unwell", "unwell")
    assert after("unwell", breaker=before, at=NOW + seconds(59)).state is BreakerState.OPEN
    assert after("unwell", breaker=before, at=NOW + seconds(60)).state is BreakerState.CLOSED


def test_refused_credentials_open_it_at_once_and_a_410_retires_the_endpoint() -> None:
    assert after("refused").state is BreakerState.OPEN
    retired = after("retired")
    assert retired.state is BreakerState.RETIRED
    assert retired.lets_claim(NOW + seconds(10**6)) == "none"
    assert after("well", "unwell", breaker=retired) == retired


def test_what_began_before_it_opened_changes_nothing() -> None:
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
def test_however_often_it_has_opened_it_opens_again_for_no_longer_than_the_longest(
    open_count: int, open_for: float, longest: float
) -> None:
    limits = BreakerLimits(open_for=open_for, longest=longest)
    trying = Breaker(BreakerState.HALF_OPEN, NOW, "answered 503", open_count)
    opened = after_result(trying, "unwell", "answered 503", limits, NOW)
    assert opened.until is not None
    assert min(open_for, longest) - 1e-6 <= (opened.until - NOW).total_seconds() <= max(open_for, longest) + 1e-6
    assert opened.open_count <= 2**31 - 1, "the column holds no more"


def test_the_shortest_time_to_open_for_comes_to_the_longest_that_can_be_configured() -> None:
    limits = BreakerLimits(open_for=0.001, longest=366 * 86400.0)
    breaker, began = after("refused"), NOW
    for _ in range(2000):
        breaker = after_result(probe(breaker, began, seconds(60)), "unwell", "answered 503", limits, began)
    assert breaker.until == began + timedelta(days=366)


def test_successes_are_of_interest_while_there_was_trouble_lately() -> None:
    limits = {CRM: LIMITS}
    failed = {CRM: after("unwell")}
    assert Gates(NOW, breakers=failed).recently_failing(limits) == {CRM}
    assert Gates(NOW + seconds(60), breakers=failed).recently_failing(limits) == frozenset()
    assert Gates(NOW + seconds(60), breakers={CRM: after("refused")}).recently_failing(limits) == {CRM}
    assert Gates(NOW, breakers={CRM: Breaker()}).recently_failing(limits) == frozenset()


# --- rates


@pytest.mark.parametrize(("rate", "burst"), [(10.0, 10), (0.01, 2), (2.5, 2)])
def test_a_second_s_worth_of_calls_may_go_out_at_once_and_two_at_least(rate: float, burst: int) -> None:
    assert RateLimit(CRM, rate, 1).affords(None, NOW) == burst
    assert RateLimit(CRM, rate, 1).affords(NOW - seconds(1000), NOW) == burst


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
            used, made = rate_limit.used(used, now, attempts), made + attempts
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


def test_whoever_asks_twice_a_second_gets_the_whole_rate() -> None:
    for rate in (1.0, 2.0, 3.0, 10.0, 0.5):
        rate_limit, used, made = RateLimit(CRM, rate, 1), None, 0
        for step in range(2000):
            now = NOW + seconds(step / 2)
            attempts = max(rate_limit.affords(used, now), 0)
            used, made = rate_limit.used(used, now, attempts), made + attempts
        assert made >= rate * 1000 * 0.999


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
    kind, name = entity_key(*entity)
    assert kind == "entity"
    assert entity_of(name) == entity


def test_a_name_that_no_entity_has_pauses_nothing() -> None:
    assert entity_of("trivore|USER") is None


CONFIG = Config(sources={"trivore": Source(name="trivore", preset="trivore", auth=NoAuth())})


@pytest.mark.parametrize(
    ("gate", "mistake"),
    [
        (Gate(source="trivore"), None),
        (Gate(source="trivore", entity_type="USER", entity_id="u1"), None),
        (Gate(), "name one of"),
        (Gate(source="trivore", route="users"), "name one of"),
        (Gate(source="trivore", entity_type="USER"), "an entity is named by"),
        (Gate(entity_type="USER", entity_id="u1"), "name one of"),
        (Gate(source="github"), "there is no source 'github'; valid here: trivore"),
        (Gate(api="identity"), "there is no api 'identity'; none is configured"),
    ],
)
def test_a_gate_that_does_not_exist_is_a_mistake_that_is_told(gate: Gate, mistake: str | None) -> None:
    told = gate.mistake(CONFIG)
    assert told == mistake if mistake is None else str(told).startswith(mistake)


# --- alerts


def transitions(*states: Breaker) -> list[tuple[str, bool]]:
    return [
        (alert.kind, alert.firing) for before, now in pairwise(states) for alert in changes({CRM: before}, {CRM: now})
    ]


def test_a_breaker_that_opens_again_and_again_is_one_change() -> None:
    opened, trying = after("refused"), probe(after("refused"), NOW, seconds(60))
    assert transitions(Breaker(), opened, trying, opened, trying) == [("breaker_open", True)]
    assert transitions(opened, after("retired")) == [("endpoint_retired", True)]
    assert transitions(after("retired"), Breaker()) == [("breaker_open", False), ("endpoint_retired", False)]


def test_an_alert_is_a_sentence_and_all_of_it_as_json_or_a_message_for_slack() -> None:
    alert = Alert("breaker_open", "destination crm", firing=True, detail={"cause": "answered <503> & more"})
    posted = Posted(7, NOW, alert)
    assert sentence(alert) == "destination crm is not called for now: answered <503> & more"
    assert payload(posted, "json") == {
        "id": 7,
        "at": "2026-01-01T00:00:00Z",
        "kind": "breaker_open",
        "subject": "destination crm",
        "firing": True,
        "text": sentence(alert),
        "detail": {"cause": "answered <503> & more"},
    }
    assert payload(posted, "slack") == {
        "text": ":red_circle: destination crm is not called for now: answered &lt;503&gt; &amp; more"
    }


def test_no_cause_mentions_anybody_forges_a_line_or_hides_a_link_in_a_message_for_slack() -> None:
    cause = "a|b <!here> @channel\n:large_green_circle: all is well [crm](https://evil.example)"
    for kind in SENTENCES:
        detail = dict.fromkeys(("cause", "error", "seq", "age_seconds", "silent_seconds", "missed", "compared"), cause)
        text = payload(Posted(7, NOW, Alert(kind, cause, firing=True, detail=detail)), "slack")["text"]
        assert "\n" not in text
        assert "](" not in text
        assert "@channel" not in text
        assert "<" not in text
        assert text.startswith(":red_circle: ")
