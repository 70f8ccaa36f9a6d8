"""The overview of `relay status`, and findings about missing progress, by the view `stuck` and `relay status --check`."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import get_args

import msgspec
import pytest

from inbox.clock import SystemClock
from inbox.config.model import Config
from inbox.db.dialect import Sql
from inbox.db.health_views import AFTER_SECONDS, FAILED_FOR_SECONDS, Kind, branches
from relay.delivery.gates import BreakerLimits, Gate, GateKey, make_entity_key
from relay.delivery.outcome import Call, Failed, Outcome, Skipped, Unchanged
from relay.findings import read_stuck
from relay.operations.asks import Selection
from relay.store import nodes, route_states
from relay.store.database import Database
from relay.store.operator import commands, execution
from relay.store.overview import Overview, read_overview
from relay.store.route_states import RouteState
from tests.helpers.relaying import DONE, HOPELESS, POLICIES, FakeClock, Steps, work_of
from tests.helpers.storing import START, an_event

# --- The view `stuck` and `relay status --check` find the same, on both databases


ODD = r"u|1\|2"
"""An id whose gate has a name with escapes."""
TEN_MINUTES = timedelta(minutes=10)


@pytest.fixture
def long_ago(steps: Steps) -> Steps:
    """The relay's steps are done ten minutes ago. The view has the database's own clock, which can't be set."""
    steps.clock.moment = SystemClock().now() - TEN_MINUTES
    return steps


def now(steps: Steps) -> None:
    steps.clock.moment = SystemClock().now()


def alive(steps: Steps) -> None:
    now(steps)
    nodes.describe(work_of(steps.database, node="alive"), "h1", 7, "1")


def due(steps: Steps) -> None:
    steps.arrive(an_event(1), an_event(2, "u2", routes=["latest"]))


def lease(steps: Steps) -> None:
    steps.arrive(an_event(1))
    steps.claim()


def begin_call(steps: Steps) -> None:
    steps.arrive(an_event(1), an_event(2, "u2"))
    now(steps)
    steps.claim()


def moving(steps: Steps) -> None:
    steps.arrive(an_event(1), an_event(2, "u2"))
    now(steps)
    steps.attempt(DONE)


def ordering(steps: Steps) -> None:
    moving(steps)
    steps.receive(an_event(3, "u3"))


def block(steps: Steps) -> None:
    steps.arrive(an_event(1, routes=["blocking"]), an_event(2, "u2", routes=["blocking"]))
    steps.attempt_each(HOPELESS, HOPELESS, route="blocking")


def pausing(key: GateKey) -> Callable[[Steps], None]:
    def pause(steps: Steps) -> None:
        steps.arrive(an_event(1, ODD))
        steps.pause(key)

    return pause


def ask_replay(steps: Steps) -> None:
    commands.ask(steps.database, "replay", Selection(seq=1), who="kim", why="mended")


def fail_command(steps: Steps) -> None:
    number = commands.ask(steps.database, "pause", Gate(route="gone"), who="kim", why="maintenance")
    execution.work_on(steps.work, number)


def fail_in_part(steps: Steps) -> None:
    ask_replay(steps)
    steps.do("UPDATE relay_command SET state = 'running', failed = 3, error = 'seq=1: ValueError: x'")


def fail_long_ago(steps: Steps) -> None:
    steps.clock.moment -= timedelta(seconds=FAILED_FOR_SECONDS)
    fail_command(steps)


def failing(steps: Steps) -> None:
    now(steps)
    nodes.describe(work_of(steps.database, node="r1"), "h1", 8, "1")
    nodes.heartbeat(steps.database, "r1", {"claim": "ValueError: x", "rescue": "ValueError: y"})


def failing_route(steps: Steps) -> None:
    now(steps)
    steps.arrive(an_event(1))
    steps.attempt(REFUSED)


def differing(steps: Steps) -> None:
    steps.clock.moment = SystemClock().now() - timedelta(seconds=AFTER_SECONDS + 1)
    nodes.describe(work_of(steps.database, node="r1"), "h1", 8, "1")
    nodes.describe(work_of(steps.database, node="r2", config=Config()), "h1", 9, "1")
    now(steps)
    for node in ("r1", "r2"):
        nodes.heartbeat(steps.database, node)


def reloading(steps: Steps) -> None:
    differing(steps)
    nodes.describe(work_of(steps.database, node="r1", config=Config()), "h1", 8, "1")
    nodes.describe(work_of(steps.database, node="r1"), "h1", 8, "1")


def crash_loop(steps: Steps) -> None:
    steps.clock.moment = SystemClock().now() - timedelta(minutes=2)
    for number in range(3):
        nodes.describe(work_of(steps.database, node=f"dead-{number}"), "h2", number, "1")


ANSWERED = Call("forward", "POST", "https://audit.example.com/", "answered", 1.0, 503)
REFUSED = Failed((ANSWERED,), "server_error", "forward answered 503")


PAUSES = [("source", "trivore"), ("route", "strict"), make_entity_key("trivore", "USER", ODD)]
SCENES: dict[str, tuple[Callable[[Steps], object], set[tuple[Kind, str | None]]]] = {
    "nothing": (lambda _: None, set()),
    "due": (due, {("stuck", "strict"), ("stuck", "latest")}),
    "an expired lease": (lease, {("stuck", "strict")}),
    "a call under way": (begin_call, set()),
    "moving": (moving, set()),
    "unordered": (lambda steps: steps.receive(an_event(1)), {("unordered", None)}),
    "being ordered": (ordering, set()),
    "blocked": (block, {("blocked", "blocking")}),
    **{f"paused {kind}": (pausing((kind, name)), set()) for kind, name in PAUSES},
    "a command": (ask_replay, {("command", None)}),
    "a failed command": (fail_command, {("command_failed", None)}),
    "a command that fails for some": (fail_in_part, {("command_failed", None)}),
    "a command that failed long ago": (fail_long_ago, set()),
    "failing steps": (failing, {("step_failed", None)}),
    "a failing route": (failing_route, {("failing", "strict")}),
    "different configurations": (differing, {("config_differs", None)}),
    "different configurations for a moment": (reloading, set()),
    "a crash loop": (crash_loop, {("crash_loop", None)}),
}


def read_findings(database: Database) -> set[tuple[str, str | None]]:
    return {(each.kind, each.fields.get("route")) for each in read_stuck(database)}


@pytest.mark.parametrize("scene", SCENES)
def test_missing_progress_is_found(long_ago: Steps, scene: str) -> None:
    make, expected = SCENES[scene]
    make(long_ago)
    alive(long_ago)
    assert read_findings(long_ago.database) == expected


def test_it_misses_a_relay(long_ago: Steps) -> None:
    now(long_ago)
    assert read_findings(long_ago.database) == {("no_relay", None)}
    alive(long_ago)
    assert read_findings(long_ago.database) == set()
    assert [each.kind for each in read_stuck(long_ago.database, host="h2")] == ["no_relay"]
    assert read_stuck(long_ago.database, host="h1") == []


def test_every_finding_has_its_branch_and_its_scene() -> None:
    shown = {finding for _, found in SCENES.values() for finding, _ in found}
    assert set(branches(Sql("sqlite"))) == set(get_args(Kind)) == shown | {"no_relay"}


# --- gates on the way

CLOSED = "INSERT INTO gate (kind, name, {}) VALUES ('destination', 'audit', {})"
SOON = "'2999-01-01 00:00:00.000000Z'"
GATES = (
    CLOSED.format("breaker, breaker_until, breaker_cause", f"'open', {SOON}, '503'"),
    CLOSED.format("held_until, hold_reason", f"{SOON}, 'Retry-After'"),
    CLOSED.format("rate_used_until", SOON),
    CLOSED.format("paused_at, paused_by, pause_reason", "'2026-01-01 00:00:00.000000Z', 'kim', 'odd'"),
)


@pytest.mark.parametrize("statement", GATES)
def test_a_delivery_behind_a_gate_of_its_destination_is_not_stuck(long_ago: Steps, statement: str) -> None:
    due(long_ago)
    long_ago.do(statement)
    alive(long_ago)
    assert read_findings(long_ago.database) == set()
    nodes.stop_node(long_ago.database, "alive")
    assert ("stuck", "strict") in read_findings(long_ago.database), "no relay knows what is on its way"


# --- routes whose last attempt failed


def failing_now(steps: Steps) -> list[tuple[str, str]]:
    """The failing routes with their levels. The health of a route and of its endpoints follows the same rule."""
    rows = steps.rows("SELECT route, why FROM stuck WHERE finding = 'failing' ORDER BY route")
    found = [each for each in read_stuck(steps.database) if each.kind == "failing"]
    assert [f"route {row['route']}: {row['why']}" for row in rows] == [each.sentence for each in found]
    unwell = steps.rows("SELECT kind, name FROM destination_health WHERE health = 'failing' ORDER BY name DESC")
    assert [row["name"] for row in unwell if row["kind"] == "route"] == [each.subject for each in found]
    assert ("destination" in {row["kind"] for row in unwell}) == bool(found)
    return [(each.sentence.partition(": ")[2], each.level) for each in found]


ONCE = [("the last attempt failed: forward answered 503", "warning")]
TWICE = "the last 2 attempts failed: forward answered 503"


def test_a_route_fails_from_its_first_failed_attempt_to_its_next_success(steps: Steps) -> None:
    now(steps)
    steps.arrive(*(an_event(number, f"u{number}") for number in range(1, 5)))
    steps.attempt_each(DONE, REFUSED)
    assert failing_now(steps) == ONCE
    steps.attempt(REFUSED)
    assert failing_now(steps) == [(TWICE, "warning")], "calls at the same time may all fail once"
    steps.do("UPDATE route_failure SET began_at = '2026-01-01 00:00:00.000000Z'")
    assert failing_now(steps) == [(TWICE, "critical")]
    steps.advance(-3600)  # the clock was set back
    steps.arrive(an_event(5, "u5"))
    steps.attempt(DONE)
    assert failing_now(steps) == []


def test_of_outcomes_that_are_recorded_together_the_last_counts(steps: Steps) -> None:
    now(steps)
    steps.arrive(*(an_event(number, f"u{number}") for number in range(1, 7)))
    for outcomes, expected in (((REFUSED, DONE, REFUSED), ONCE), ((REFUSED, REFUSED, DONE), [])):
        steps.record(list(zip(steps.claim_due(3), outcomes, strict=True)))
        assert failing_now(steps) == expected


NEUTRAL = (HOPELESS, Skipped((), "filtered"), Unchanged((FETCHED := msgspec.structs.replace(ANSWERED, step="fetch"),)),
           Failed((ANSWERED,), "lease_lost", "cut"), Failed((FETCHED,), "mapping", "email: no value"))  # fmt: skip


@pytest.mark.parametrize("outcome", NEUTRAL)
def test_an_outcome_without_a_call_to_the_destination_neither_makes_a_route_fail_nor_hides_it(
    steps: Steps, outcome: Outcome
) -> None:
    now(steps)
    steps.arrive(*(an_event(number, f"u{number}") for number in range(1, 5)))
    for before, expected in ((DONE, []), (REFUSED, ONCE)):
        steps.attempt_each(before)
        steps.record([(steps.claim_due(1)[0], outcome)])
        assert failing_now(steps) == expected


def test_a_failed_fetch_is_its_apis_until_a_fetch_works(steps: Steps) -> None:
    policy = msgspec.structs.replace(
        POLICIES["strict"], breakers={("destination", "audit"): BreakerLimits(), ("api", "crm"): BreakerLimits()}
    )
    steps.policies = {**POLICIES, "strict": policy}
    now(steps)
    steps.arrive(an_event(1), an_event(2, "u2"), an_event(3, "u3"))
    steps.attempt(Failed((FETCHED,), "server_error", "fetch answered 503"))
    health = "SELECT kind, name FROM destination_health WHERE health = 'failing' ORDER BY kind"
    assert [row["kind"] for row in steps.rows(health)] == ["api", "route"]
    steps.attempt(Unchanged((FETCHED,)))
    assert steps.rows(health) == []


def test_a_route_with_nothing_open_does_not_fail(steps: Steps) -> None:
    now(steps)
    steps.arrive(an_event(1))
    steps.attempt(REFUSED)
    assert failing_now(steps) == ONCE
    steps.do("DELETE FROM open_delivery")
    assert failing_now(steps) == []


@pytest.mark.parametrize("key", [("route", "strict"), ("destination", "audit")])
def test_a_route_that_a_person_paused_is_not_told_as_failing(steps: Steps, key: GateKey) -> None:
    steps.clock.moment = SystemClock().now()  # the view route_gate has the database's own
    nodes.describe(work_of(steps.database, node="r1"), "h1", 7, "1")
    steps.arrive(an_event(1))
    steps.attempt(REFUSED)
    assert failing_now(steps) == ONCE
    steps.pause(key)
    assert [each for each in read_stuck(steps.database) if each.kind == "failing"] == []


# --- The overview that `relay status` shows, on both databases: routes by state and rate, gates, relays, alerts, commands


def look(steps: Steps) -> Overview:
    return read_overview(steps.database, POLICIES)


def route(steps: Steps, name: str, most: int = route_states.MOST_COUNTED) -> RouteState:
    found = read_overview(steps.database, POLICIES, most)
    return next(each for each in found.routes if each.route == name)


def test_each_route_is_counted_by_state_and_a_retry_apart_from_what_is_due(lived_in: Steps) -> None:
    lived_in.receive(an_event(14, "u7"))
    lived_in.arrive(an_event(15, "u8"))
    lived_in.receive(an_event(16, "u9"))
    strict, blocking, latest = (route(lived_in, name) for name in ("strict", "blocking", "latest"))
    counts = (strict.received, strict.waiting, strict.ready, strict.retrying, strict.in_flight, strict.dead)
    assert (*counts, strict.open, strict.at_least) == (1, 2, 2, 1, 1, 1, 8, ())
    assert (blocking.blocked, blocking.waiting, blocking.open) == (1, 1, 2)
    assert (latest.open, latest.next_due_at, latest.oldest_received_at) == (0, None, None)
    assert strict.next_due_at is not None
    lived_in.clock.moment = strict.next_due_at
    later = route(lived_in, "strict")
    assert (later.ready, later.retrying, later.next_due_at) == (3, 0, None)


def test_counts_end_early_and_say_so_and_the_oldest_is_still_found(steps: Steps) -> None:
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


def test_relays_are_running_or_gone_with_what_they_have_in_flight(lived_in: Steps, clock: FakeClock) -> None:
    for name, seconds in (("old", 590), ("gone", 20), ("r1", 1)):
        nodes.describe(work_of(lived_in.database, node=name), "h1", 7, "1")
        clock.advance(seconds)
    nodes.heartbeat(lived_in.database, "r1", {"claim": "ValueError: x"})
    nodes.describe(work_of(lived_in.database, node="stopped"), "h1", 8, "1")
    nodes.stop_node(lived_in.database, "stopped")
    found = look(lived_in).relays
    assert [(relay.id, relay.health, relay.in_flight, relay.failing) for relay in found] == [
        ("r1", "running", 1, {"claim": "ValueError: x"}),
        ("gone", "gone", 0, {}),
    ], "one that died long ago is history"
