"""Conditions that the daemon's probe reports as stuck, and those that it doesn't, on both databases."""

from __future__ import annotations

from datetime import timedelta

import msgspec
import pytest

from inbox.clock import SystemClock
from inbox.config.values import Secret
from inbox.events.timestamps import time_text
from relay.delivery.gates import BreakerLimits, GateKey, RateLimit, Report, entity_key
from relay.delivery.policy import RoutePolicy
from relay.operations.asks import Selection
from relay.store import gates, nodes
from relay.store.claim import Room, claim
from relay.store.database import Database
from relay.store.leases import LEASE_SECONDS
from relay.store.operator import commands
from relay.store.stuck_check import (
    STUCK_AFTER_SECONDS,
    _branches,
    findings,
    relays_in_trouble,
    stuck_routes,
    unordered,
    waits_for_a_person,
)
from tests.helpers.relaying import CONFIG, DONE, HOPELESS, POLICIES, UNWELL, FakeClock, Steps
from tests.helpers.storing import an_event

CRM = ("destination", "crm")
POLICY = msgspec.structs.replace(
    POLICIES["strict"],
    gates=(("source", "trivore"), ("route", "strict"), CRM),
    breakers={CRM: BreakerLimits()},
    rate_limits=(RateLimit(CRM, 0.001, 1),),
)
A_MINUTE = STUCK_AFTER_SECONDS + 1


def stuck(database: Database, policy: RoutePolicy = POLICY) -> list[str]:
    return stuck_routes(database, {"strict": policy, "latest": POLICIES["latest"]})


def pause(database: Database, key: GateKey) -> None:
    with database.write() as transaction:
        gates.pause(transaction, key, who="kim", why="maintenance")


def test_a_route_is_stuck_when_something_was_due_a_minute_ago_and_nothing_has_moved_since(
    steps: Steps, database: Database
) -> None:
    steps.arrive(an_event(1), an_event(2, "u2"))
    assert stuck(database) == []
    steps.advance(A_MINUTE)
    assert stuck(database) == ["strict"]

    steps.attempt(DONE)
    assert stuck(database) == [], "the other is due for as long, and the route moves"
    steps.advance(A_MINUTE)
    assert stuck(database) == ["strict"]


def test_a_route_with_a_call_under_way_is_not_stuck_and_one_whose_lease_nobody_takes_back_is(
    steps: Steps, database: Database
) -> None:
    steps.arrive(an_event(1), an_event(2, "u2"))
    steps.advance(A_MINUTE)
    claim(database, "r1", [Room(["strict"], 2)])
    assert stuck(database) == []
    steps.advance(LEASE_SECONDS + A_MINUTE)
    assert stuck(database) == ["strict"]


def test_what_is_due_later_is_not_stuck(steps: Steps, database: Database) -> None:
    steps.arrive(an_event(1))
    for _ in range(4):  # the fourth is due in half an hour
        steps.advance(3600)
        steps.attempt(UNWELL)
    steps.advance(A_MINUTE)
    assert stuck(database) == []


@pytest.mark.parametrize("key", [("source", "trivore"), ("route", "strict"), CRM, entity_key("trivore", "USER", "u1")])
def test_what_a_person_holds_back_is_not_stuck(steps: Steps, database: Database, key: tuple[str, str]) -> None:
    steps.arrive(an_event(1))
    pause(database, key)
    steps.advance(A_MINUTE)
    assert stuck(database) == []


@pytest.mark.parametrize("entities", [["b", *["a"] * 9], [*["a"] * 9, "b"]])
def test_beside_much_that_is_paused_what_is_stuck_is_found_at_either_end(
    steps: Steps, database: Database, monkeypatch: pytest.MonkeyPatch, entities: list[str]
) -> None:
    monkeypatch.setattr("relay.store.stuck_check.PAGE", 3)
    pause(database, entity_key("trivore", "USER", "a"))
    for number, entity in enumerate(entities, 1):
        steps.advance(1)
        steps.arrive(an_event(number, entity))
        steps.do("UPDATE open_delivery SET lane = 'event|' || seq WHERE lane LIKE 'U%'")
    steps.advance(A_MINUTE)
    assert stuck(database) == ["strict"]
    pause(database, entity_key("trivore", "USER", "b"))
    assert stuck(database) == []


def test_what_a_breaker_or_a_rate_holds_back_is_not_stuck(steps: Steps, database: Database) -> None:
    steps.arrive(an_event(1))
    steps.advance(A_MINUTE)
    with database.write() as transaction:
        now = transaction.lock_order()
        gates.lock_all(transaction, [CRM])
        gates.use_rates(transaction, {CRM: POLICY.rate_limits[0].used(None, now, 1)})
    assert stuck(database) == []
    assert stuck(database, msgspec.structs.replace(POLICY, rate_limits=())) == ["strict"]
    with database.write() as transaction:
        gates.listen(transaction, [Report(CRM, "refused", "401")], {"strict": POLICY}, transaction.lock_order())
    assert stuck(database, msgspec.structs.replace(POLICY, rate_limits=())) == []


def test_what_has_arrived_is_unordered_when_nothing_moves_for_a_minute(steps: Steps, database: Database) -> None:
    steps.arrive(an_event(1, routes=["latest"]))
    steps.receive(an_event(2, "u2"))
    assert unordered(database) is None
    steps.advance(A_MINUTE)
    first = unordered(database)
    assert first is not None, "it is named, so that two looks can tell whether it is still the same"
    steps.attempt(DONE, route="latest")
    assert unordered(database) is None


def test_a_blocked_lane_and_a_command_that_nobody_takes_up_wait_for_a_person(steps: Steps, database: Database) -> None:
    assert waits_for_a_person(database) == []
    steps.arrive(an_event(1, routes=["blocking"]), an_event(2, routes=["blocking"]))
    steps.attempt(HOPELESS, "blocking")
    commands.ask(database, "replay", Selection(seq=1), who="kim", why="mended")
    steps.advance(A_MINUTE)
    assert [(trouble.finding, trouble.route, trouble.why) for trouble in waits_for_a_person(database)] == [
        ("blocked", "blocking", "route blocking: 1 lane is blocked: `relay dead` lists why"),
        ("command", None, "command 1 (replay): asked a minute ago, and no relay has taken it up"),
    ]


def test_a_step_that_fails_and_a_crash_loop_are_troubles_of_relays(database: Database, clock: FakeClock) -> None:
    nodes.start_node(database, "r1", "h1", 7, "1")
    nodes.heartbeat(database, "r1", {"claim": "ValueError: x"})
    assert [trouble.why for trouble in relays_in_trouble(database)] == [
        "relay h1 pid 7: step claim fails: ValueError: x"
    ]
    nodes.heartbeat(database, "r1")
    assert relays_in_trouble(database) == []
    for number in range(2, 4):
        nodes.start_node(database, f"r{number}", "h1", number, "1")
    clock.advance(60)
    assert [trouble.why for trouble in relays_in_trouble(database)] == [
        "host h1: 3 relays died soon after they had started"
    ]
    nodes.stop_node(database, "r3")
    assert relays_in_trouble(database) == []


# --- routes of which every attempt fails


def failing(steps: Steps) -> list[str]:
    """Routes that fail, as the check finds them by its own clock, and the view by the database's."""
    found = [trouble.why for trouble in findings(steps.database, POLICIES) if trouble.finding == "failing"]
    rows = steps.rows("SELECT route, why FROM stuck WHERE finding = 'failing' AND is_finding ORDER BY route")
    assert found == [f"route {row['route']}: {row['why']}" for row in rows]
    return found


FAILS = "route strict: every attempt since its last success failed: forward answered 503"


def test_a_route_fails_from_its_first_failed_attempt_until_its_next_success(steps: Steps) -> None:
    steps.arrive(an_event(1), an_event(2, "u2"))
    steps.attempt(DONE)
    assert failing(steps) == []
    steps.attempt(UNWELL)
    assert failing(steps) == [FAILS]
    steps.advance(A_MINUTE)
    steps.attempt(UNWELL)
    assert failing(steps) == [FAILS]
    steps.advance(3600)
    steps.attempt(DONE)
    assert failing(steps) == []


def test_a_route_whose_deliveries_die_at_once_fails_and_one_whose_dead_are_gone_does_not(steps: Steps) -> None:
    steps.arrive(an_event(1))
    steps.attempt(HOPELESS)
    assert failing(steps) == ["route strict: every attempt since its last success failed: email: no value"]
    steps.do("DELETE FROM open_delivery")
    assert failing(steps) == []


@pytest.mark.parametrize("key", [("route", "strict"), ("destination", "audit")])
def test_a_route_that_a_person_paused_is_not_told_as_failing(steps: Steps, key: GateKey) -> None:
    steps.clock.moment = SystemClock().now()  # the view route_gate has the database's own
    nodes.start_node(steps.database, "r1", "h1", 7, "1", policies=POLICIES)
    steps.arrive(an_event(1))
    steps.attempt(UNWELL)
    assert failing(steps) == [FAILS]
    pause(steps.database, key)
    assert failing(steps) == []


def test_a_route_of_which_the_newest_facts_have_no_attempt_is_judged_by_its_figures(
    steps: Steps, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps.arrive(an_event(1), an_event(2, "u2"))
    steps.attempt(UNWELL)
    monkeypatch.setattr(
        "inbox.db.stuck._NEWEST_ATTEMPTS", "SELECT n.id, n.route, n.kind, n.at FROM delivery_log n WHERE false"
    )
    _branches.cache_clear()
    now = steps.clock.now()

    def figure(outcome: str, minutes: int) -> None:
        minute = time_text(now + timedelta(minutes=minutes))
        steps.do(
            "INSERT INTO throughput_minute (kind, name, outcome, minute, count, bytes)"
            f" VALUES ('route', 'strict', '{outcome}', '{minute}', 1, 0)"
        )

    def found() -> list[str]:
        return [trouble.why for trouble in findings(steps.database, POLICIES) if trouble.finding == "failing"]

    assert found() == []
    figure("attempt_failed", 0)
    assert found() == [FAILS]
    figure("delivered", 1)
    assert found() == []
    figure("dead", 2)
    assert found() == [FAILS]
    _branches.cache_clear()


def test_relays_with_different_configurations_are_found_until_they_agree(database: Database) -> None:
    def differ() -> list[str]:
        return [trouble.why for trouble in findings(database, POLICIES) if trouble.finding == "config_differs"]

    told = ["relays h1 pid 7 and h2 pid 8 run with different routes or destinations"]
    nodes.start_node(database, "r1", "h1", 7, "1", policies=POLICIES, config=CONFIG)
    nodes.start_node(database, "r2", "h2", 8, "1", policies=POLICIES, config=CONFIG)
    assert differ() == []
    less = msgspec.structs.replace(CONFIG, routes={"strict": CONFIG.routes["strict"]})
    nodes.describe_routes(database, "r2", POLICIES, less)
    assert differ() == told
    elsewhere = msgspec.structs.replace(CONFIG.destinations["audit"], url=Secret("https://other.example.com"))
    nodes.describe_routes(database, "r2", POLICIES, msgspec.structs.replace(CONFIG, destinations={"audit": elsewhere}))
    assert differ() == told
    nodes.stop_node(database, "r2")
    assert differ() == []
