"""The overview that `relay status` shows, on both databases: routes by state and rate, gates, relays, alerts, commands."""

from __future__ import annotations

from datetime import timedelta

import msgspec

from relay.delivery.alerts import Alert
from relay.delivery.gates import BreakerLimits, Gate, RateLimit, Report, entity_key
from relay.delivery.outcome import Skipped
from relay.operations.asks import Selection
from relay.store import gates, nodes, route_states
from relay.store.alerts import note
from relay.store.database import Database
from relay.store.operator import commands, execution
from relay.store.overview import Overview, read_overview
from relay.store.route_states import RouteState
from tests.helpers.relaying import DONE, HOPELESS, POLICIES, UNWELL, FakeClock, Steps, work_of
from tests.helpers.storing import START, an_event

AUDIT = ("destination", "audit")


def look(steps: Steps) -> Overview:
    return read_overview(steps.database, POLICIES)


def route(steps: Steps, name: str, most: int = route_states.MOST_COUNTED) -> RouteState:
    found = read_overview(steps.database, POLICIES, most)
    return next(each for each in found.routes if each.route == name)


def test_an_empty_database_has_its_configured_routes_and_nothing_else(steps: Steps) -> None:
    found = look(steps)
    assert found.at == START
    assert [msgspec.structs.replace(each, route="") for each in found.routes] == [
        RouteState("", is_configured=True)
    ] * 3
    assert (found.gates, found.relays, found.alerts, found.commands, found.sweeps) == ((), (), (), (), ())


def test_each_route_is_counted_by_state_and_a_retry_apart_from_what_is_due(lived_in: Steps) -> None:
    lived_in.receive(an_event(14, "u7"))
    lived_in.arrive(an_event(15, "u8"))
    lived_in.receive(an_event(16, "u9"))
    strict = route(lived_in, "strict")
    counts = (strict.received, strict.waiting, strict.ready, strict.retrying, strict.in_flight, strict.dead)
    assert (*counts, strict.open, strict.at_least) == (1, 2, 2, 1, 1, 1, 8, ())
    assert strict.next_due_at is not None
    blocking, latest = route(lived_in, "blocking"), route(lived_in, "latest")
    assert (blocking.blocked, blocking.waiting, blocking.open) == (1, 1, 2)
    assert (latest.open, latest.next_due_at, latest.oldest_received_at) == (0, None, None)

    lived_in.clock.moment = strict.next_due_at
    later = route(lived_in, "strict")
    assert (later.ready, later.retrying, later.next_due_at) == (3, 0, None)


def test_the_oldest_is_that_of_what_is_not_dead(steps: Steps, clock: FakeClock) -> None:
    for number in range(1, 4):
        steps.arrive(
            msgspec.structs.replace(an_event(number, f"u{number}"), received_at=START + timedelta(minutes=number))
        )
    steps.attempt(HOPELESS)
    clock.moment = START + timedelta(minutes=10)
    found = route(steps, "strict")
    assert (found.oldest_received_at, found.oldest_age_seconds) == (START + timedelta(minutes=2), 480)


def test_counts_end_early_and_say_so_and_the_oldest_is_still_found(
    steps: Steps,
) -> None:
    for number, entity in enumerate(("z", "y", "x", "w", "v"), 1):
        steps.arrive(msgspec.structs.replace(an_event(number, entity), received_at=START + timedelta(seconds=number)))
    steps.do("UPDATE open_delivery SET due_at = '2025-12-31 00:00:00.000000Z' WHERE seq > 1")
    found = route(steps, "strict", 3)
    assert (found.ready, found.at_least) == (3, ("ready",))
    assert found.oldest_received_at == START + timedelta(seconds=1)
    steps.receive(*(an_event(number, "r") for number in range(6, 10)))
    for name in ("strict", "latest"):
        assert "received" in route(steps, name, 3).at_least, "whose they are is not known any more"


def test_a_route_that_the_configuration_lacks_is_there_while_something_is_open_on_it(steps: Steps) -> None:
    steps.arrive(an_event(1), an_event(2, "u2"))
    for state in ("ready", "waiting", "dead", "blocked"):
        due = "due_at" if state == "ready" else "NULL"
        steps.do(f"UPDATE open_delivery SET route = 'old-{state}', state = '{state}', due_at = {due} WHERE seq = 1")
        assert not route(steps, f"old-{state}").is_configured
        assert route(steps, f"old-{state}").open == 1
        steps.do("UPDATE open_delivery SET due_at = '2026-01-01 00:00:00.000000Z', state = 'ready' WHERE seq = 1")


def test_rates_are_of_the_last_minutes(steps: Steps, clock: FakeClock) -> None:
    def arrived(number: int) -> None:
        event = an_event(number, f"u{number}", routes=["strict", "latest"])
        steps.arrive(msgspec.structs.replace(event, received_at=clock.moment))

    arrived(1)
    steps.attempt(DONE)
    clock.advance(600)
    for number in range(2, 12):
        arrived(number)
    for outcome in (DONE, Skipped((), "gone"), DONE, UNWELL, HOPELESS):
        steps.attempt(outcome)
    clock.advance(60)
    strict, latest = route(steps, "strict"), route(steps, "latest")
    assert (strict.in_per_minute, strict.out_per_minute, strict.failed_per_minute) == (2.0, 0.6, 0.4)
    assert (latest.in_per_minute, latest.out_per_minute) == (2.0, 0)


def test_where_the_newest_rows_are_all_younger_the_rate_is_of_their_time(steps: Steps, clock: FakeClock) -> None:
    for number in range(20):
        steps.receive(msgspec.structs.replace(an_event(number + 1, f"u{number}"), received_at=clock.moment))
        clock.advance(6)
    assert route(steps, "strict", 10).in_per_minute == 10, "ten in the last minute"


def test_a_gate_tells_who_holds_back_what_why_and_since_when(steps: Steps) -> None:
    with steps.database.write() as transaction:
        gates.pause(transaction, AUDIT, who="kim", why="maintenance")
        gates.pause(transaction, entity_key("trivore", "USER", "u1"), who="kim", why="odd")
    held = look(steps).gates
    assert [(gate.kind, gate.name, gate.state, gate.by, gate.why, gate.since) for gate in held] == [
        ("destination", "audit", "paused", "kim", "maintenance", START),
        ("entity", "trivore|USER|u1", "paused", "kim", "odd", START),
    ]
    assert {gate.routes for gate in held} == {("blocking", "latest", "strict")}
    assert route(steps, "strict").held_back_by == ("destination audit",), "an entity's pause holds no route"


def test_a_breaker_tells_since_when_by_its_alert_and_until_when(steps: Steps, clock: FakeClock) -> None:
    policy = msgspec.structs.replace(POLICIES["strict"], breakers={AUDIT: BreakerLimits()})
    with steps.database.write() as transaction:
        gates.report_to_breakers(
            transaction, [Report(AUDIT, "refused", "401")], {"strict": policy}, transaction.take_order_lock()
        )
    clock.advance(5)
    found = look(steps)
    (gate,) = found.gates
    assert (gate.state, gate.why, gate.since) == ("open", "401", START)
    assert gate.until is not None
    assert [(alert.kind, alert.subject, alert.since, alert.text) for alert in found.alerts] == [
        ("breaker_open", "destination audit", START, "destination audit is not called for now: 401")
    ]
    with steps.database.write() as transaction:
        gates.resume(transaction, AUDIT, transaction.take_order_lock())
    assert (look(steps).gates, look(steps).alerts) == ((), ())


def test_a_rate_that_is_used_up_is_a_gate_until_it_has_room(steps: Steps) -> None:
    limit = RateLimit(AUDIT, 0.1, 1)
    limited = {"strict": msgspec.structs.replace(POLICIES["strict"], rate_limits=(limit,))}
    with steps.database.write() as transaction:
        now = transaction.take_order_lock()
        gates.lock_all(transaction, [AUDIT])
        gates.use_rates(transaction, {AUDIT: limit.used(None, now, 2)})
    found = read_overview(steps.database, limited)
    (gate,) = found.gates
    assert {each.held_back_by for each in found.routes} == {()}, "it is only slow"
    assert (gate.state, gate.until, gate.routes) == ("limited", START + timedelta(seconds=10), ("strict",))


def test_an_endpoint_that_asked_for_no_calls_is_held_until_then(steps: Steps) -> None:
    later = "2026-01-01 00:05:00.000000Z"
    steps.do(
        "INSERT INTO gate (kind, name, held_until, hold_reason)"
        f" VALUES ('destination', 'audit', '{later}', 'its rate limit is used up')"
    )
    (gate,) = look(steps).gates
    assert (gate.state, gate.why, gate.until) == ("held", "its rate limit is used up", START + timedelta(minutes=5))
    assert route(steps, "strict").held_back_by == ("destination audit",)


def test_relays_are_running_or_gone_with_what_they_have_in_flight(lived_in: Steps, clock: FakeClock) -> None:
    for name in ("old", "gone", "r1"):
        nodes.describe(work_of(lived_in.database, node=name), "h1", 7, "1")
        clock.advance({"old": 590, "gone": 20, "r1": 1}[name])
    nodes.heartbeat(lived_in.database, "r1", {"claim": "ValueError: x"})
    found = look(lived_in).relays
    assert [(relay.id, relay.health, relay.in_flight, relay.failing) for relay in found] == [
        ("r1", "running", 1, {"claim": "ValueError: x"}),
        ("gone", "gone", 0, {}),
    ], "one that died long ago is history"


def test_alerts_of_many_subjects_are_those_that_fire_now(steps: Steps) -> None:
    with steps.database.write() as transaction:
        now = transaction.take_order_lock()
        for number in range(5):
            again = Alert("step_failed", f"step {number}", firing=True, detail={"error": "x"})
            note(transaction, [again], now)
            if number % 2:
                note(transaction, [msgspec.structs.replace(again, firing=False)], now)
    assert [alert.subject for alert in look(steps).alerts] == ["step 0", "step 2", "step 4"]


def test_open_commands_and_those_that_failed_lately_are_listed(
    database: Database, steps: Steps, clock: FakeClock
) -> None:
    long_ago = commands.ask(database, "pause", Gate(route="gone"), who="kim", why="x")
    execution.work_on(work_of(database), long_ago)
    clock.advance(4000)
    failed = commands.ask(database, "pause", Gate(route="gone"), who="kim", why="x")
    execution.work_on(work_of(database), failed)
    asked = commands.ask(database, "replay", Selection(seq=1), who="kim", why="mended")
    found = look(steps).commands
    assert [(each["id"], each["kind"], each["state"]) for each in found] == [
        (asked, "replay", "asked"),
        (failed, "pause", "refused"),
    ]
    assert found[0]["selection"] == {"seq": 1}
