"""The edges of the rules that decide, as `make mutants` looks for them: each case differs from its neighbour in one thing."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone

import pytest
from msgspec.structs import replace

from inbox.events import states, timestamps
from inbox.events.event import Identity, dedup_key, swept_parts
from inbox.events.strict_json import LONGEST_NUMBER, has_too_long_number, real
from inbox.loader.load import parse_config
from relay.delivery import facts
from relay.delivery.facts import detail_of
from relay.delivery.gates import (
    BREAKER,
    Breaker,
    BreakerState,
    Gate,
    GateKey,
    Gates,
    Held,
    RateLimit,
    Report,
    apply_result,
    entity_of,
    format_resume_command,
)
from relay.delivery.lifecycle import OpenDelivery, Standing, State, append, follows, restore
from relay.delivery.ordering import LastDelivered, covers, settle
from relay.delivery.outcome import Call, CallStep, Delivered, Failed, Outcome, RateHold
from relay.delivery.policy import (
    CRASHES_UNTIL_DEAD,
    UNKNOWN_ROUTE,
    HoldRequest,
    RoutePolicy,
    Schedule,
    asks_for_hold,
    decide,
    decide_abandoned,
    endpoint_of,
    endpoint_of_call,
    extend_holds,
    health_of,
    list_breaker_reports,
    needs_history,
    policies,
    read_hold_request,
)
from tests.helpers.delivering import a_delivery
from tests.helpers.storing import an_event

NOW = datetime(2026, 1, 1, tzinfo=UTC)
LATER = NOW + timedelta(minutes=5)
KEY: GateKey = ("destination", "crm")
CONFIG = parse_config("""
[sources.shop]
preset = "trivore"
clock_skew = "7s"
auth = { kind = "none" }
[apis.people]
base_url = "https://people.example"
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
    """Made by the test: a mutant of what makes it is not in force when the file is read."""
    return policies(CONFIG)[route]


def seconds(number: float) -> timedelta:
    return timedelta(seconds=number)


def a_row(state: State, seq: int = 1, *, attempt: int = 0, due_in: float | None = None) -> OpenDelivery:
    due_at = None if due_in is None else NOW + seconds(due_in)
    return OpenDelivery(seq, "r", "USER|u1", NOW + seconds(seq), state, attempt=attempt, due_at=due_at)


def a_call(step: CallStep = "update", status: int | None = 200, hold: float | None = None) -> Call:
    asked = None if hold is None else RateHold(hold, "Retry-After")
    return Call(step, "POST", "https://crm.example/", "answered", 1.0, status, hold=asked)


# --- Gates


@pytest.mark.parametrize("breaker", [Breaker(BreakerState.OPEN), Breaker(BreakerState.RETIRED, NOW)])
def test_a_breaker_that_has_no_time_or_is_retired_lets_nothing_through(breaker: Breaker) -> None:
    assert breaker.lets_claim(LATER) == "none"


def test_a_breaker_keeps_the_reason_for_which_it_opened_or_retired_last() -> None:
    half_open = Breaker(BreakerState.HALF_OPEN, LATER, "old", open_count=1)
    assert apply_result(half_open, "unwell", "new", BREAKER, NOW).cause == "new"
    assert apply_result(Breaker(), "refused", "401", BREAKER, NOW).cause == "401"
    assert apply_result(half_open, "retired", "410", BREAKER, NOW) == replace(
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
    held = {KEY: Held(LATER, "429")}
    assert Gates(LATER - seconds(1), held=held).admit([KEY]) == "none"
    assert Gates(LATER, held=held).admit([KEY]) == "all"
    assert Gates(NOW, held=held).admit([("api", "people")]) == "all"


def test_a_breaker_without_a_failure_in_its_window_needs_no_reports() -> None:
    assert Gates(NOW, breakers={KEY: Breaker(calls=3, window_began_at=NOW)}).list_recently_failing() == frozenset()


def test_the_command_that_opens_a_gate_names_it() -> None:
    assert entity_of("shop|USER") is None
    assert format_resume_command("route", "to crm") == "relay resume --route 'to crm'"
    assert format_resume_command("entity", "shop|USER|u 1", "pause") == "relay pause --source shop --entity 'USER/u 1'"
    assert format_resume_command("route", "shop|USER|u1") == "relay resume --route 'shop|USER|u1'"


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
    assert UNKNOWN_ROUTE.schedule.first_delay == timedelta(seconds=CONFIG.routes["forwarded"].retry.schedule[0])


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
def test_only_a_failure_whose_rule_counts_needs_the_attempts_before(
    outcome: Outcome, window: float | None, needs: bool
) -> None:
    retry = replace(CONFIG.routes["synced"].retry, window=window)
    assert needs_history(outcome, RoutePolicy("strict", blocks_on_death=False, schedule=Schedule(retry))) is needs


def test_a_fact_keeps_all_that_its_outcome_tells() -> None:
    did = Delivered((a_call("fetch"), a_call()), "updated", NOW, LATER, b"\x0f", stale_suspected=True)
    delivery = a_delivery(lane="|k1")
    assert decide(delivery, did, policy_of(), NOW) == facts.DeliveredFact(
        did="updated", calls=did.calls, lane="event", fetch_began_at=NOW, last_modified=LATER, applied_hash="0f",
        stale_suspected=True,
    )  # fmt: skip
    failed = Failed((a_call(status=503),), "server_error", "503")
    fact = decide(delivery, failed, policy_of(), NOW)
    assert fact == facts.AttemptFailed(
        error_class="server_error", error="503", due_at=NOW + seconds(7), calls=failed.calls
    )
    assert detail_of(fact)["due_at"] == NOW + seconds(7)
    hopeless = replace(failed, error_class="mapping")
    dead = facts.Dead(cause="mapping", error="503", calls=failed.calls, blocks_lane=True)
    assert decide(delivery, hopeless, policy_of(), NOW) == dead


@pytest.mark.parametrize("route", ["synced", "forwarded", None])
def test_the_last_of_some_crashes_in_a_row_is_the_end_where_the_route_is_known(route: str | None) -> None:
    policy = None if route is None else policy_of(route)
    crashed = replace(a_row(State.IN_FLIGHT), crashes=CRASHES_UNTIL_DEAD - 2)
    assert decide_abandoned(crashed, "r1", policy) == facts.Abandoned(relay_node="r1")
    fact = decide_abandoned(replace(crashed, crashes=CRASHES_UNTIL_DEAD - 1), "r1", policy)
    if policy is None:
        assert fact == facts.Abandoned(relay_node="r1")
    else:
        assert isinstance(fact, facts.Dead)
        assert (fact.cause, fact.blocks_lane) == ("crash_loop", policy.blocks_on_death)
        assert fact.error == "3 attempts in a row were abandoned, the last one by r1"


def test_an_endpoint_that_was_called_before_the_last_is_well() -> None:
    synced = policy_of()
    failed = Failed((a_call("fetch"), a_call(status=503)), "server_error", "503")
    reports = [Report(("api", "people"), "well", ""), Report(KEY, "unwell", "503")]
    assert list(list_breaker_reports(failed, synced)) == reports
    assert list(list_breaker_reports(Delivered((a_call(),), "updated"), synced)) == [Report(KEY, "well", "")]
    assert health_of(Failed((a_call(),), "gone", "410"), synced) == ("retired", "410")
    assert endpoint_of(Delivered((), "nothing_to_delete"), synced) is None
    assert endpoint_of_call(a_call("fetch"), policy_of("forwarded")) is None


@pytest.mark.parametrize(
    ("call", "lasts", "why"),
    [
        (a_call(hold=None), None, ""),
        (a_call(hold=0.0), None, ""),
        (a_call(hold=1e-9), None, ""),
        (a_call(hold=0.5, status=429), 0.5, "update answered 429: Retry-After"),
        (a_call(hold=0.5, status=None), 0.5, "update Retry-After"),
    ],
)
def test_an_answer_asks_for_a_hold_of_some_time(call: Call, lasts: float | None, why: str) -> None:
    expected = None if lasts is None else HoldRequest(KEY, seconds(lasts), why)
    assert read_hold_request(KEY, call) == expected
    assert asks_for_hold(Delivered((a_call(), call), "updated")) == (call.hold is not None)


def test_the_longest_hold_that_was_asked_for_first_counts() -> None:
    asked = [HoldRequest(KEY, seconds(number), why) for number, why in ((9, "a"), (5, "b"), (9, "c"))]
    assert extend_holds(asked, {}, NOW) == {KEY: (NOW + seconds(9), "a")}
    assert extend_holds(asked, {KEY: NOW + seconds(9)}, NOW) == {}


# --- Events


@pytest.mark.parametrize(
    ("ahead", "occurred", "stored"),
    [(5.0, 5.25, 5.25), (5.0, 5.3, 0.0), (5.0, -9.0, -9.0), (None, -9.0, 0.25)],
)
def test_an_event_is_stored_under_its_own_time_unless_that_lies_ahead(
    ahead: float | None, occurred: float, stored: float
) -> None:
    event = replace(an_event(1, "u1"), ahead=ahead, occurred_at=NOW + seconds(occurred))
    assert event.resolve_time(NOW + seconds(0.25)) == NOW + seconds(stored)


@pytest.mark.parametrize(
    ("attempts", "due_in", "state", "expected"),
    [(1, 1, "ready", True), (1, 0, "ready", False), (0, 1, "ready", False), (1, None, "ready", False), (1, 1, "dead", False)],
)  # fmt: skip
def test_a_delivery_is_retried_while_an_attempt_was_made_and_the_next_is_not_due(
    attempts: int, due_in: int | None, state: str, expected: bool
) -> None:
    due_at = None if due_in is None else NOW + seconds(due_in)
    assert states.is_retrying(states.State(state), attempts, due_at, NOW) is expected


@pytest.mark.parametrize(("reason", "says"), [("mended", True), (" …\n", False), ("", False), (None, False)])
def test_a_reason_says_something(reason: str | None, says: bool) -> None:
    assert states.says_why(reason) is says


@pytest.mark.parametrize(
    ("given", "time"),
    [
        ("90s", NOW - seconds(90)),
        ("2h", NOW - seconds(7200)),
        ("2025-12-31", NOW - seconds(86_400)),
        ("2025-12-31T23:00", NOW - seconds(3600)),
        ("2026-01-01T01:00:03+01:00", NOW + seconds(3)),
    ],
)
def test_a_time_is_given_back_from_now_or_in_full(given: str, time: datetime) -> None:
    assert timestamps.parse_time(given, NOW) == time


@pytest.mark.parametrize("given", ["yesterday", "9999999999d"])
def test_words_that_name_no_time_are_named(given: str) -> None:
    with pytest.raises(ValueError, match=given):
        timestamps.parse_time(given, NOW)


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
    assert entity_of("shop|USER|u1\\") == ("shop", "USER", "u1")


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
        rows = settle("latest", [head, a_row(State.RECEIVED, 2)], NOW, seconds(5))
        return next(row.facts for row in rows if row.seq == 2)

    assert taken(a_row(State.READY, due_in=0)) == ()
    for head in (a_row(State.READY, due_in=3), a_row(State.READY, attempt=1, due_in=0)):
        assert head.due_at is not None
        crashed = replace(head, crashes=2)
        assert taken(crashed) == (facts.TookOver(of=1, attempt=head.attempt, crashes=2, due_at=head.due_at),)


@pytest.mark.parametrize(("due_in", "first"), [(None, 1), (0.0, 1), (3.0, 2)])
def test_an_older_event_replaces_a_head_that_is_due_and_has_no_attempt(due_in: float | None, first: int) -> None:
    rows = settle("strict", [a_row(State.READY, 2, due_in=due_in), a_row(State.RECEIVED, 1)], NOW, seconds(5))
    assert [row.seq for row in rows if row.state is State.READY] == [first]


@pytest.mark.parametrize(("microsecond", "resolution"), [(0, 1_000_000), (2000, 1000), (2001, 1)])
@pytest.mark.parametrize("late", [0, 1])
def test_a_success_covers_an_event_that_is_older_by_more_than_skew_and_resolution(
    microsecond: int, resolution: int, late: int
) -> None:
    at, skew = NOW.replace(microsecond=microsecond), seconds(5)
    edge, one = at + timedelta(microseconds=resolution), timedelta(microseconds=late)
    assert covers(LastDelivered(edge + skew + one, seq=1), (at, 2), skew) == bool(late)
    assert covers(LastDelivered(NOW, seq=1, fetch_began_at=edge + skew + one), (at, 2), skew) == bool(late)
    newer = LastDelivered(NOW, seq=1, fetch_began_at=NOW, last_modified=edge - timedelta(microseconds=1 - late))
    assert covers(newer, (at, 2), skew) == bool(late)


# --- The lifecycle of a delivery


@pytest.mark.parametrize("fact", [facts.Replayed(who="ann", why="mended"), facts.Rearmed(duplicate=4)])
def test_a_new_run_begins_without_attempts_and_crashes(fact: facts.AnyFact) -> None:
    ended = replace(a_row(State.ENDED, attempt=3), run=1, crashes=2)
    assert append(ended, fact, NOW).standings == (Standing(State.RECEIVED, 0, 2, 0),)


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
        (a_row(State.WAITING), Standing(State.READY), None, State.WAITING, None),
        (a_row(State.WAITING), Standing(State.READY), LATER, State.RECEIVED, LATER),
        (a_row(State.READY, due_in=9), Standing(State.READY), NOW, State.READY, NOW + seconds(9)),
        (a_row(State.READY, due_in=900), Standing(State.DEAD), None, State.DEAD, None),
        (a_row(State.DEAD, due_in=900), Standing(State.READY), LATER, State.RECEIVED, LATER),
    ],
)
def test_a_row_keeps_its_state_and_time_where_its_last_fact_allows_them(
    row: OpenDelivery, standing: Standing, due_at: datetime | None, state: State, due: datetime | None
) -> None:
    restored = restore(row, replace(standing, attempt=2, run=1, crashes=2), due_at)
    assert (restored.state, restored.due_at) == (state, due)
    assert (restored.attempt, restored.run, restored.crashes) == (2, 1, 2)
