"""Conditions that the daemon's probe reports as stuck, and those that it doesn't, on both databases."""

from __future__ import annotations

import msgspec
import pytest

from inbox.config.breaker import BreakerLimits
from relay.delivery.gates import GateKey, RateLimit, Report, entity_key
from relay.delivery.policy import RoutePolicy
from relay.operations.asks import Selection
from relay.store import gates, nodes
from relay.store.claim import claim
from relay.store.database import Database
from relay.store.leases import LEASE_SECONDS
from relay.store.operator import commands
from relay.store.stuck_check import (
    STUCK_AFTER_SECONDS,
    relays_in_trouble,
    stuck_routes,
    unordered,
    waits_for_a_person,
)
from tests.helpers.relaying import DONE, HOPELESS, POLICIES, UNWELL, FakeClock, Steps
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
    claim(database, "r1", [(["strict"], 2)])
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
