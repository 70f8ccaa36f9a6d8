"""The view `stuck` and `relay status --check` find the same, on both databases."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import get_args

import msgspec
import pytest

from inbox.clock import SystemClock
from inbox.config.model import Config
from inbox.config.values import Secret
from inbox.db.dialect import Sql
from inbox.db.health_views import AFTER_SECONDS, FAILED_FOR_SECONDS, Kind, branches
from relay.delivery.gates import Gate, GateKey, entity_key
from relay.findings import checked
from relay.operations.asks import Selection
from relay.store import gates, nodes
from relay.store.database import Database
from relay.store.operator import commands, execution
from tests.helpers.relaying import CONFIG, DONE, HOPELESS, POLICIES, UNWELL, Steps, work_of
from tests.helpers.storing import an_event

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
    nodes.start_node(work_of(steps.database, node="alive"), "h1", 7, "1")
    nodes.describe_routes(work_of(steps.database, node="alive"))


def due(steps: Steps) -> None:
    steps.arrive(an_event(1), an_event(2, "u2", routes=["latest"]))


def leased(steps: Steps) -> None:
    steps.arrive(an_event(1))
    steps.claim()


def under_way(steps: Steps) -> None:
    steps.arrive(an_event(1), an_event(2, "u2"))
    now(steps)
    steps.claim()


def moving(steps: Steps) -> None:
    steps.arrive(an_event(1), an_event(2, "u2"))
    now(steps)
    steps.attempt(DONE)


def unordered(steps: Steps) -> None:
    steps.receive(an_event(1))


def ordering(steps: Steps) -> None:
    moving(steps)
    steps.receive(an_event(3, "u3"))


def blocked(steps: Steps) -> None:
    steps.arrive(an_event(1, routes=["blocking"]), an_event(2, "u2", routes=["blocking"]))
    steps.attempt(HOPELESS, "blocking")
    steps.attempt(HOPELESS, "blocking")


def paused(key: GateKey) -> Callable[[Steps], None]:
    def pause(steps: Steps) -> None:
        steps.arrive(an_event(1, ODD))
        with steps.database.write() as transaction:
            gates.pause(transaction, key, who="kim", why="maintenance")

    return pause


def asked(steps: Steps) -> None:
    commands.ask(steps.database, "replay", Selection(seq=1), who="kim", why="mended")


def failed(steps: Steps) -> None:
    number = commands.ask(steps.database, "pause", Gate(route="gone"), who="kim", why="maintenance")
    execution.work_on(steps.work, number)


def failed_in_part(steps: Steps) -> None:
    asked(steps)
    steps.do("UPDATE relay_command SET state = 'running', failed = 3, error = 'seq=1: ValueError: x'")


def failed_long_ago(steps: Steps) -> None:
    steps.clock.moment -= timedelta(seconds=FAILED_FOR_SECONDS)
    failed(steps)


def failing(steps: Steps) -> None:
    now(steps)
    nodes.start_node(work_of(steps.database, node="r1"), "h1", 8, "1")
    nodes.heartbeat(steps.database, "r1", {"claim": "ValueError: x", "reap": "ValueError: y"})


def failing_route(steps: Steps) -> None:
    now(steps)
    steps.arrive(an_event(1))
    steps.attempt(UNWELL)
    nodes.flush_figures(steps.database, CONFIG.routes)


def differing(steps: Steps) -> None:
    now(steps)
    nodes.start_node(work_of(steps.database, node="r1"), "h1", 8, "1")
    nodes.start_node(work_of(steps.database, node="r2", config=Config()), "h1", 9, "1")


def crash_loop(steps: Steps) -> None:
    steps.clock.moment = SystemClock().now() - timedelta(minutes=2)
    for number in range(3):
        nodes.start_node(work_of(steps.database, node=f"dead-{number}"), "h2", number, "1")


PAUSES = [("source", "trivore"), ("route", "strict"), entity_key("trivore", "USER", ODD)]
SCENES: dict[str, tuple[Callable[[Steps], None], set[tuple[Kind, str | None]]]] = {
    "nothing": (lambda _: None, set()),
    "due": (due, {("stuck", "strict"), ("stuck", "latest")}),
    "an expired lease": (leased, {("stuck", "strict")}),
    "a call under way": (under_way, set()),
    "moving": (moving, set()),
    "unordered": (unordered, {("unordered", None)}),
    "being ordered": (ordering, set()),
    "blocked": (blocked, {("blocked", "blocking")}),
    **{f"paused {kind}": (paused((kind, name)), set()) for kind, name in PAUSES},
    "a command": (asked, {("command", None)}),
    "a failed command": (failed, {("command_failed", None)}),
    "a command that fails for some": (failed_in_part, {("command_failed", None)}),
    "a command that failed long ago": (failed_long_ago, set()),
    "failing steps": (failing, {("step_failed", None)}),
    "a failing route": (failing_route, {("failing", "strict")}),
    "different configurations": (differing, {("config_differs", None)}),
    "a crash loop": (crash_loop, {("crash_loop", None)}),
}


def of_check(database: Database) -> set[tuple[str, str | None]]:
    return {(each.kind, each.fields.get("route")) for each in checked(database)}


@pytest.mark.parametrize("scene", SCENES)
def test_it_finds_what_makes_no_progress(long_ago: Steps, scene: str) -> None:
    make, expected = SCENES[scene]
    make(long_ago)
    alive(long_ago)
    assert of_check(long_ago.database) == expected


def test_it_misses_a_relay(long_ago: Steps) -> None:
    now(long_ago)
    assert of_check(long_ago.database) == {("no_relay", None)}
    alive(long_ago)
    assert of_check(long_ago.database) == set()
    assert [each.kind for each in checked(long_ago.database, host="h2")] == ["no_relay"]
    assert checked(long_ago.database, host="h1") == []


def test_where_they_share_a_branch_they_share_the_words(long_ago: Steps) -> None:
    failed(long_ago)
    failing(long_ago)
    crash_loop(long_ago)
    asked(long_ago)
    now(long_ago)
    said = {each.sentence for each in checked(long_ago.database)}
    assert {row["why"] for row in long_ago.rows("SELECT why FROM stuck")} == said
    assert any(why.startswith("command 1 (pause): refused: ") and "gone" in why for why in said)
    assert "relay h1 pid 8: step claim fails: ValueError: x" in said


def test_an_answer_of_several_lines_is_one_line_of_the_check(long_ago: Steps) -> None:
    failed(long_ago)
    long_ago.do(
        "UPDATE relay_command SET answer = 'one' || chr(10) || 'two'"
        if long_ago.database.sql.is_postgres
        else "UPDATE relay_command SET answer = 'one' || char(10) || 'two'"
    )
    alive(long_ago)
    (found,) = checked(long_ago.database)
    assert found.sentence == "command 1 (pause): refused: one; two"


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
def test_what_waits_behind_a_gate_of_its_destination_is_not_stuck_once_a_relay_has_told_its_routes(
    long_ago: Steps, statement: str
) -> None:
    due(long_ago)
    long_ago.do(statement)
    alive(long_ago)
    assert of_check(long_ago.database) == set()
    nodes.stop_node(long_ago.database, "alive")
    assert ("stuck", "strict") in of_check(long_ago.database), "no relay knows what is on its way"


def test_a_route_that_no_running_relay_knows_is_told_as_such(long_ago: Steps) -> None:
    due(long_ago)
    now(long_ago)
    nodes.start_node(work_of(long_ago.database, node="alive"), "h1", 7, "1")
    nodes.describe_routes(work_of(long_ago.database, {"strict": POLICIES["strict"]}, node="alive"))
    why = {row["route"]: row["why"] for row in long_ago.rows("SELECT route, why FROM stuck")}
    assert why == {
        "strict": "due, and nothing moves on its route",
        "latest": "due, and no running relay knows its route: put it into inbox.toml again, or cancel its deliveries",
    }


def test_a_blocked_lane_tells_how_many_wait_behind_it(long_ago: Steps) -> None:
    long_ago.arrive(*(an_event(n, routes=["blocking"]) for n in range(1, 5)))
    long_ago.attempt(HOPELESS, "blocking")
    (row,) = long_ago.rows("SELECT waiting FROM stuck WHERE finding = 'blocked'")
    assert row["waiting"] == 3


@pytest.mark.parametrize("routes", ['{"strict": 7, "latest": [3, ["route"]]}', "{}"])
def test_routes_that_no_relay_wrote_break_no_view(long_ago: Steps, routes: str) -> None:
    due(long_ago)
    alive(long_ago)
    long_ago.do(f"UPDATE relay_node SET routes = '{routes}'")
    assert ("stuck", "strict") in of_check(long_ago.database)


# --- routes of which every attempt fails


def failing_now(steps: Steps) -> list[str]:
    """Routes that fail by the figures so far, as the check finds them by its own clock, and the view by the database's."""
    nodes.flush_figures(steps.database, CONFIG.routes)
    found = [each.sentence for each in checked(steps.database) if each.kind == "failing"]
    rows = steps.rows("SELECT route, why FROM stuck WHERE finding = 'failing' ORDER BY route")
    assert found == [f"route {row['route']}: {row['why']}" for row in rows]
    return found


FAILS = "route strict: every attempt since its last success failed: forward answered 503"


def test_a_route_fails_from_the_second_minute_after_its_last_success_until_its_next_success(steps: Steps) -> None:
    steps.arrive(an_event(1), an_event(2, "u2"))
    steps.attempt(DONE)
    assert failing_now(steps) == []
    steps.advance(2 * AFTER_SECONDS)
    steps.attempt(UNWELL)
    assert failing_now(steps) == [FAILS]
    steps.advance(3600)
    steps.attempt(DONE)
    assert failing_now(steps) == []


def test_a_route_whose_deliveries_die_at_once_fails_and_one_whose_dead_are_gone_does_not(steps: Steps) -> None:
    steps.arrive(an_event(1))
    steps.attempt(HOPELESS)
    assert failing_now(steps) == ["route strict: every attempt since its last success failed: email: no value"]
    steps.do("DELETE FROM open_delivery")
    assert failing_now(steps) == []


@pytest.mark.parametrize("key", [("route", "strict"), ("destination", "audit")])
def test_a_route_that_a_person_paused_is_not_told_as_failing(steps: Steps, key: GateKey) -> None:
    steps.clock.moment = SystemClock().now()  # the view route_gate has the database's own
    nodes.start_node(work_of(steps.database, node="r1"), "h1", 7, "1")
    steps.arrive(an_event(1))
    steps.attempt(UNWELL)
    assert failing_now(steps) == [FAILS]
    with steps.database.write() as transaction:
        gates.pause(transaction, key, who="kim", why="maintenance")
    assert failing_now(steps) == []


def test_relays_with_different_configurations_are_found_until_they_agree(steps: Steps) -> None:
    now(steps)
    database = steps.database

    def differ() -> list[str]:
        return [each.sentence for each in checked(database) if each.kind == "config_differs"]

    told = ["relays h1 pid 7 and h2 pid 8 run with different routes or destinations"]
    nodes.start_node(work_of(database, node="r1"), "h1", 7, "1")
    nodes.start_node(work_of(database, node="r2"), "h2", 8, "1")
    assert differ() == []
    less = msgspec.structs.replace(CONFIG, routes={"strict": CONFIG.routes["strict"]})
    nodes.describe_routes(work_of(database, node="r2", config=less))
    assert differ() == told
    elsewhere = msgspec.structs.replace(CONFIG.destinations["audit"], url=Secret("https://other.example.com"))
    nodes.describe_routes(
        work_of(database, node="r2", config=msgspec.structs.replace(CONFIG, destinations={"audit": elsewhere}))
    )
    assert differ() == told
    nodes.stop_node(database, "r2")
    assert differ() == []
