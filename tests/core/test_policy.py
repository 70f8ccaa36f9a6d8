"""Policies, and the fact that an outcome leads to."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from inbox.config.model import Retry
from inbox.config.sync import Find
from inbox.config.values import Duration
from inbox.loader.load import parse_config
from relay.delivery import facts, gates, policy
from relay.delivery.facts import get_detail
from relay.delivery.gates import BREAKER, Breaker, BreakerState, Gate, GateKey, Gates, RateLimit
from relay.delivery.lifecycle import OpenDelivery, State
from relay.delivery.outcome import (
    AGAIN_AT_MOST,
    RULES,
    Call,
    CallStep,
    Delivered,
    ErrorClass,
    Failed,
    Outcome,
    RateHold,
    Rule,
    Sent,
    Skipped,
)
from relay.delivery.policy import History, RoutePolicy, Schedule, decide, policies
from tests.helpers.delivering import a_delivery

NOW = datetime(2026, 1, 1, tzinfo=UTC)
EXACT = Schedule(Retry(schedule=(Duration(5), Duration(30), Duration(300))), jitter=0)
POLICY = RoutePolicy("strict", blocks_on_death=False, schedule=EXACT)
RETRYABLE = sorted(name for name, rule in RULES.items() if rule is Rule.RETRY)
HOPELESS = sorted(name for name, rule in RULES.items() if rule is Rule.DEAD)


@pytest.mark.parametrize(("find", "calls"), [(None, 1), (Find(path="/c"), 2)])
def test_an_attempt_pays_for_as_many_calls_as_it_may_make(find: Find | None, calls: int) -> None:
    route = CONFIG.routes["synced"]
    assert route.sync is not None
    searching = replace(route, sync=replace(route.sync, find=find))
    limits = policies(replace(CONFIG, routes={"synced": searching}))["synced"].rate_limits
    assert limits == (RateLimit(KEY, 10.0, calls), RateLimit(("api", "people"), 20.0, 1))


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
    assert policy.needs_history(stale, POLICY)


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
    bounded = RoutePolicy("strict", blocks_on_death=False, schedule=schedule)
    began = History(began_at=NOW - timedelta(seconds=31))
    assert decide(a_delivery(attempt=2), Failed((), "unknown", "cut"), bounded, NOW, began) == facts.Dead(
        cause="exhausted", error="cut"
    )


def test_a_death_blocks_the_lane_when_the_route_says_so() -> None:
    blocking = RoutePolicy("strict", blocks_on_death=True, schedule=EXACT)
    fact = decide(a_delivery(attempt=1), Failed((), "mapping", "no"), blocking, NOW)
    assert isinstance(fact, facts.Dead)
    assert fact.blocks_lane


@pytest.mark.parametrize(
    ("asked", "waits"),
    [(None, 5), (1.0, 5), (7.5, 7.5), (10.0**12, policy.LONGEST_RETRY_AFTER.total_seconds())],
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
    assert policy.can_be_given_back(outcome)


@pytest.mark.parametrize("step", ["forward", "create", "update", "delete"])
@pytest.mark.parametrize("sent", ["unknown", "answered"])
def test_an_attempt_that_the_other_side_may_have_acted_on_is_not_given_back(step: CallStep, sent: Sent) -> None:
    assert not policy.can_be_given_back(cut(("fetch", "answered"), (step, sent), ("find", "not_sent")))


@pytest.mark.parametrize(
    "outcome",
    [Delivered((), "forwarded"), Skipped((), "no"), Failed((a_call("forward", "not_sent"),), "not_sent", "no")],
)
def test_an_attempt_that_ended_by_itself_is_not_given_back(outcome: Delivered | Skipped | Failed) -> None:
    assert not policy.can_be_given_back(outcome)


@pytest.mark.parametrize(
    ("error_class", "is_stopped"),
    [("auth", False), ("gone", False), ("server_error", True)],
    ids=["auth", "gone", "probe"],
)
def test_a_delivery_behind_a_breaker_is_due_when_the_breaker_opens(error_class: ErrorClass, is_stopped: bool) -> None:
    """The schedule's delay for the attempt, which did not count, would come on top of the breaker's."""
    fact = decide(a_delivery(attempt=3), Failed((), error_class, "no"), POLICY, NOW, is_stopped=is_stopped)
    assert isinstance(fact, facts.AttemptFailed)
    assert (fact.counted, fact.due_at) == (False, NOW)


# --- Edges of gates and policies: each case differs from its neighbour in one thing


LATER = NOW + timedelta(minutes=5)
KEY: GateKey = ("destination", "crm")
CONFIG = parse_config("""
[sources.shop]
preset = "trivore"
clock_skew = "7s"
auth = { kind = "none" }
[apis.people]
base_url = "https://people.example"
rate = "20/s"
[destinations.crm]
kind = "sync"
base_url = "https://crm.example"
rate = "10/s"
outcomes = { not_found = "dead" }
breaker = { open_for = "45s" }
[destinations.logged]
kind = "forward"
url = "https://logged.example/hook"
rate = "10/s"
signing_secret = "made-up"
[routes.synced]
source = "shop"
destination = "crm"
on_dead = "block"
retry = { schedule = ["7s", "9s"] }
[routes.synced.sync]
fetch = { api = "people", path = "/u" }
create = { path = "/c" }
delete = { path = "/c" }
map = { id = "event.entity_id" }
[routes.forwarded]
source = "shop"
destination = "logged"
""")


def policy_of(route: str = "synced") -> RoutePolicy:
    """Made by each test, since a mutant is not yet active when the file is read."""
    return policies(CONFIG)[route]


def seconds(number: float) -> timedelta:
    return timedelta(seconds=number)


def row_of(state: State, seq: int = 1, *, attempt: int = 0, due_in: float | None = None) -> OpenDelivery:
    due_at = None if due_in is None else NOW + seconds(due_in)
    return OpenDelivery(seq, "r", "USER|u1", NOW + seconds(seq), state, attempt=attempt, due_at=due_at)


def call_of(step: CallStep = "update", status: int | None = 200, hold: float | None = None) -> Call:
    asked = None if hold is None else RateHold(hold, "Retry-After")
    return Call(step, "POST", "https://crm.example/", "answered", 1.0, status, hold=asked)


# --- Gates


@pytest.mark.parametrize("breaker", [Breaker(BreakerState.OPEN), Breaker(BreakerState.RETIRED, NOW)])
def test_a_breaker_that_has_no_time_or_is_retired_lets_nothing_through(breaker: Breaker) -> None:
    assert breaker.lets_claim(LATER) == "none"


def test_a_breaker_keeps_the_reason_for_which_it_opened_or_retired_last() -> None:
    half_open = Breaker(BreakerState.HALF_OPEN, LATER, "old", open_count=1)
    assert gates.apply_result(half_open, "unwell", "new", BREAKER, NOW).cause == "new"
    assert gates.apply_result(Breaker(), "refused", "401", BREAKER, NOW).cause == "401"
    assert gates.apply_result(half_open, "retired", "410", BREAKER, NOW) == replace(
        half_open, state=BreakerState.RETIRED, until=None, cause="410"
    )


def test_a_rate_is_used_up_from_now_or_from_its_end_for_as_long_as_the_calls_take() -> None:
    limit = RateLimit(KEY, rate=4.0, calls=2)
    assert limit.use(None, NOW, 3) == NOW + seconds(1.5)
    assert limit.use(NOW + seconds(1), NOW, 1) == NOW + seconds(1.5)


@pytest.mark.parametrize(("ahead", "attempts"), [(0.0, 4), (0.5, 2), (2.0, -4), (2.01, 4), (2.5, 4), (3.0, 4)])
def test_a_rate_that_is_used_for_longer_than_a_burst_lasts_is_of_a_clock_set_back(ahead: float, attempts: int) -> None:
    assert RateLimit(KEY, rate=4.0, calls=1).affords(NOW + seconds(ahead), NOW) == attempts


@pytest.mark.parametrize(
    ("gate", "key", "mistake"),
    [
        (Gate(route="synced"), ("route", "synced"), None),
        (Gate(destination="crm"), ("destination", "crm"), None),
        (Gate(api="people"), ("api", "people"), None),
        (Gate(source="shop"), ("source", "shop"), None),
        (Gate(route="crm"), ("route", "crm"), "there is no route 'crm'"),
        (Gate(destination="people"), ("destination", "people"), "there is no destination 'people'"),
    ],
)
def test_a_gate_is_named_by_its_kind(gate: Gate, key: GateKey, mistake: str | None) -> None:
    assert gate.key == key
    assert (gate.mistake(CONFIG) or "").startswith(mistake or "")
    assert (gate.mistake(CONFIG) is None) == (mistake is None)


def test_a_hold_ends_at_its_time() -> None:
    held = {KEY: gates.Held(LATER, "429")}
    assert Gates(LATER - seconds(1), held=held).admit([KEY]) == "none"
    assert Gates(LATER, held=held).admit([KEY]) == "all"
    assert Gates(NOW, held=held).admit([("api", "people")]) == "all"


def test_a_breaker_without_a_failure_in_its_window_needs_no_reports() -> None:
    assert Gates(NOW, breakers={KEY: Breaker(calls=3, window_began_at=NOW)}).list_recently_failing() == frozenset()


def test_a_gate_without_a_whole_name_is_a_mistake() -> None:
    entity = Gate(source="shop", entity_type="USER")
    for gate, mistake in ((Gate(), "name one of"), (entity, "an entity is named by")):
        assert str(gate.mistake(CONFIG)).startswith(mistake)
    assert replace(entity, entity_id="u1").mistake(CONFIG) is None


def test_the_command_that_opens_a_gate_names_it() -> None:
    assert gates.parse_entity_key("shop|USER") is None
    assert gates.format_resume_command("route", "to crm") == "relay resume --route 'to crm'"
    assert (
        gates.format_resume_command("entity", "shop|USER|u 1", "pause")
        == "relay pause --source shop --entity 'USER/u 1'"
    )
    assert gates.format_resume_command("route", "shop|USER|u1") == "relay resume --route 'shop|USER|u1'"


# --- Policies


def test_a_route_has_the_policy_of_its_settings() -> None:
    synced, forwarded = policy_of(), policy_of("forwarded")
    crm, people = ("destination", "crm"), ("api", "people")
    assert (synced.ordering, synced.blocks_on_death, synced.fetches) == ("latest", True, True)
    assert (synced.outcomes, synced.skew) == ({"not_found": "dead"}, seconds(7))
    assert synced.gates == (("source", "shop"), ("route", "synced"), crm, people)
    assert synced.breakers == {crm: replace(BREAKER, open_for=45.0), people: BREAKER}
    assert (synced.schedule.first_delay, synced.schedule.delay_after(2)) == (seconds(7), seconds(9))
    assert (forwarded.ordering, forwarded.blocks_on_death, forwarded.fetches) == ("strict", False, False)
    assert forwarded.rate_limits == (RateLimit(("destination", "logged"), 10.0, 1),)
    assert policy.UNKNOWN_ROUTE.schedule.first_delay == timedelta(seconds=CONFIG.routes["forwarded"].retry.schedule[0])


def test_a_schedule_ends_with_its_last_delay_or_its_window() -> None:
    retry = replace(CONFIG.routes["synced"].retry, window=60.0)
    assert Schedule(retry).delay_after(1, seconds(52.9)) == seconds(7)
    assert Schedule(retry).delay_after(1, seconds(53)) is None
    assert Schedule(replace(retry, schedule=())).first_delay == seconds(0)


@pytest.mark.parametrize(
    ("outcome", "window", "needs"),
    [
        (Failed((), "server_error", "503"), 60.0, True),
        (Failed((), "server_error", "503"), None, False),
        (Failed((), "conflict", "409"), None, True),
        (Delivered((), "updated"), 60.0, False),
    ],
)
def test_only_a_failure_with_a_counting_rule_needs_history(outcome: Outcome, window: float | None, needs: bool) -> None:
    retry = replace(CONFIG.routes["synced"].retry, window=window)
    assert (
        policy.needs_history(outcome, RoutePolicy("strict", blocks_on_death=False, schedule=Schedule(retry))) is needs
    )


def test_a_fact_keeps_all_that_its_outcome_tells() -> None:
    did = Delivered((call_of("fetch"), call_of()), "updated", NOW, LATER, b"\x0f", stale_suspected=True)
    delivery = a_delivery(lane="|k1")
    assert decide(delivery, did, policy_of(), NOW) == facts.DeliveredFact(
        did="updated", calls=did.calls, lane="event", fetch_began_at=NOW, last_modified=LATER, applied_hash="0f",
        stale_suspected=True,
    )  # fmt: skip
    failed = Failed((call_of(status=503),), "server_error", "503")
    fact = decide(delivery, failed, policy_of(), NOW)
    assert fact == facts.AttemptFailed(
        error_class="server_error", error="503", due_at=NOW + seconds(7), calls=failed.calls
    )
    assert get_detail(fact)["due_at"] == NOW + seconds(7)
    hopeless = replace(failed, error_class="mapping")
    dead = facts.Dead(cause="mapping", error="503", calls=failed.calls, blocks_lane=True)
    assert decide(delivery, hopeless, policy_of(), NOW) == dead


@pytest.mark.parametrize("route", ["synced", "forwarded", None])
def test_the_last_of_some_crashes_in_a_row_is_the_end_where_the_route_is_known(route: str | None) -> None:
    known = None if route is None else policy_of(route)
    crashed = replace(row_of(State.IN_FLIGHT), crashes=policy.CRASHES_UNTIL_DEAD - 2)
    assert policy.decide_abandoned(crashed, "r1", known) == facts.Abandoned(relay_node="r1")
    fact = policy.decide_abandoned(replace(crashed, crashes=policy.CRASHES_UNTIL_DEAD - 1), "r1", known)
    if known is None:
        assert fact == facts.Abandoned(relay_node="r1")
    else:
        assert isinstance(fact, facts.Dead)
        assert (fact.cause, fact.blocks_lane) == ("crash_loop", known.blocks_on_death)
        assert fact.error == "3 attempts in a row were abandoned, the last one by r1"


def test_an_endpoint_that_was_called_before_the_last_is_well() -> None:
    synced = policy_of()
    failed = Failed((call_of("fetch"), call_of(status=503)), "server_error", "503")
    reports = [gates.Report(("api", "people"), "well", ""), gates.Report(KEY, "unwell", "503")]
    assert list(policy.list_breaker_reports(failed, synced)) == reports
    assert list(policy.list_breaker_reports(Delivered((call_of(),), "updated"), synced)) == [
        gates.Report(KEY, "well", "")
    ]
    assert policy.judge_health(Failed((call_of(),), "gone", "410"), synced) == ("retired", "410")
    assert policy.find_endpoint(Delivered((), "nothing_to_delete"), synced) is None
    assert policy.find_called_endpoint(call_of("fetch"), policy_of("forwarded")) is None


def test_the_longest_hold_that_was_asked_for_first_counts() -> None:
    asked = [policy.HoldRequest(KEY, seconds(number), why) for number, why in ((9, "a"), (5, "b"), (9, "c"))]
    assert policy.extend_holds(asked, {}, NOW) == {KEY: (NOW + seconds(9), "a")}
    assert policy.extend_holds(asked, {KEY: NOW + seconds(9)}, NOW) == {}
