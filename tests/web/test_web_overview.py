"""The overview with its findings, gates and sweeps, malformed rows, and the doctor."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Sequence
from datetime import timedelta
from typing import Any

import msgspec
import pytest
from sqlalchemy import insert

from inbox.clock import SystemClock
from inbox.db.schema import sweep_watermark, throughput_minute
from inbox.loader.load import parse_config
from relay.delivery.alerts import Alert
from relay.delivery.gates import make_entity_key
from relay.doctor.run import ExaminationResult, Installation
from relay.findings import Finding, list_findings
from relay.store import gates, nodes
from relay.store.alerts import store_alerts
from relay.store.overview import FiringAlert, HeldGate, Overview
from relay.store.route_states import RouteState
from relay.web.screens import overview
from relay.web.screens.overview import make_button
from tests.helpers.databases import ON_BOTH
from tests.helpers.page import OPERATOR, VIEWER, Page, on_database, serving
from tests.helpers.relaying import DONE, HOPELESS, FakeClock, Steps, work_of
from tests.helpers.storing import START, an_event
from tests.helpers.tables import record_statements
from tests.helpers.worlds import HOSTILE, fill_page

CRM = RouteState("crm", is_configured=True)
PAUSED = HeldGate("destination", "crm", "open", "503", None, START, None, ("crm",))
ENTITY = msgspec.structs.replace(
    PAUSED, kind="entity", name=make_entity_key("trivore", "USER", "a|b")[1], state="paused"
)
DIED = FiringAlert("delivery_dead", "crm", START, "route crm has dead deliveries: mapping")
OPENED = FiringAlert("breaker_open", "destination crm", START, "destination crm is not called for now: 503")
BEHIND = FiringAlert("backlog_old", "crm", START, "route crm is behind")
SILENT = FiringAlert("source_silent", "trivore", START, "source trivore is silent")
BLOCKED = Finding("blocked", "warning", "route crm: 1 lane is blocked", "crm", remedy="x", fields={"route": "crm"})
STUCK = Finding("stuck", "critical", "route crm: nothing moves", "crm", remedy="x", fields={"route": "crm"})


def judge(*checked: Finding, crm: RouteState = CRM, **parts: Any) -> list[tuple[object, ...]]:  # noqa: ANN401  # fields of Overview
    """Return the level, the reason, the time and the path of the button of each finding."""
    empty: dict[str, Any] = dict.fromkeys(("gates", "relays", "alerts", "commands", "sweeps"), ())
    found = list(list_findings(Overview(START, **{"routes": (crm,), **empty, **parts}), checked, 5))
    buttons = [make_button(each) for each in found]
    assert all(button is None or button.is_act == button.path.startswith("/acts/") for button in buttons)
    return [
        (each.level, each.why, each.since, button and button.path) for each, button in zip(found, buttons, strict=True)
    ]


def test_a_condition_is_one_finding_with_its_reason_time_and_button() -> None:
    dead, blocked = (msgspec.structs.replace(CRM, open=2, **{state: 2}) for state in ("dead", "blocked"))
    paused = ("information", "503", START, "/acts/resume?destination=crm")
    assert judge() == judge(alerts=(DIED,)) == [], "the dead deliveries were replayed"
    assert judge(crm=dead, alerts=(DIED,)) == [("warning", DIED.text, START, "/dead?route=crm")]
    assert judge(BLOCKED, crm=blocked, alerts=(DIED,)) == [("warning", "", None, "/dead?route=crm")]
    assert judge(gates=(PAUSED,), alerts=(OPENED,)) == [paused]
    (entity,) = judge(gates=(ENTITY,))
    assert entity[3] == "/acts/resume?source=trivore&entity_type=USER&entity_id=a%7Cb"
    several = judge(STUCK, gates=(PAUSED,), alerts=(BEHIND, SILENT))
    assert [each[0] for each in several] == ["critical", "warning", "warning", "information"]
    assert [each[3] for each in several[:2]] == ["/deliveries?route=crm"] * 2


# --- the page


@pytest.fixture
def lived_in(steps: Steps) -> Steps:
    """A dead, a delivered and a ready delivery, a pause, an alert, a failing relay, and counts of the last hour."""
    steps.clock.moment = SystemClock().now()
    steps.arrive(*(an_event(n, f"u{n}") for n in (1, 2, 3)))
    steps.attempt(HOPELESS)
    steps.attempt(DONE)
    nodes.describe(work_of(steps.database, node="r1"), "relay-1", 812, "1.0")
    nodes.heartbeat(steps.database, "r1", {"claim": HOSTILE})
    with steps.database.write() as transaction:
        gates.pause(transaction, ("destination", "audit"), who="kim", why=HOSTILE)
        alert = Alert("source_silent", "trivore", firing=True, detail={"silent_seconds": 900})
        store_alerts(transaction, [alert], transaction.take_order_lock())
    with steps.database.engine.begin() as connection:
        for kind, name, outcome, ago, count in (
            ("source", "trivore", "stored", 5, 7),
            ("source", "trivore", "swept", 5, 1),
            ("source", "trivore", "duplicate", 5, 100),
            ("source", "trivore", "stored", 70, 1000),
            ("source", "trivore", "stored", 3 * 1440, 20_000),
            ("route", "strict", "delivered", 3, 6),
            ("route", "strict", "dead", 3, 1),
            ("destination", "audit", "delivered", 3, 6),
        ):
            minute = (SystemClock().now() - timedelta(minutes=ago)).replace(second=0, microsecond=0)
            row = {"kind": kind, "name": name, "outcome": outcome, "minute": minute, "count": count, "bytes": 0}
            connection.execute(insert(throughput_minute).values(**row))
    return steps


def test_a_fresh_database_shows_that_no_relay_runs(page: Page) -> None:
    found = page.json("/overview.json")
    assert [each["kind"] for each in found["findings"]] == ["no_relay"]
    assert (sum(found["arrived"]), len(found["arrived"])) == (0, 60)
    assert page.get("/").status_code == 200


@ON_BOTH
@pytest.mark.usefixtures("lived_in")
def test_the_overview_has_routes_sources_destinations_and_counts_of_the_last_hour(page: Page) -> None:
    found = page.json("/overview.json")
    assert not found["is_well"]
    assert {each["kind"] for each in found["findings"]} >= {"alert", "delivery_dead", "gate_closed", "step_failed"}
    assert sum(found["arrived"]) == 8, "without duplicates and older events"
    assert (sum(found["ended"]), sum(found["failed"])) == (6, 1)
    strict = next(line for line in found["routes"] if line["state"]["route"] == "strict")
    assert (strict["state"]["dead"], strict["state"]["ready"], sum(strict["ended"])) == (1, 1, 6)
    assert [line["health"]["events_hour"] for line in found["sources"]] == [8]
    assert [row["name"] for row in found["destinations"]] == ["audit"]
    assert found["disk"]["size"] > 0
    text = page.get("/").text
    assert "/acts/resume?destination=audit" in text
    assert all(each["sentence"].partition(":")[0] in text for each in found["findings"])


@ON_BOTH
@pytest.mark.usefixtures("lived_in")
def test_the_figures_of_a_day_and_a_week_are_hourly_without_the_present_hour(page: Page) -> None:
    for path in ("/overview.json?range=", "/route.json?name=strict&range="):
        for span, hours in (("day", 24), ("week", 168)):
            found = page.json(path + span)
            arrived = found["arrived"] if "arrived" in found else found["line"]["arrived"]
            assert (found["step_seconds"], len(arrived)) == (3600, hours)
            assert sum(arrived) in {1000, 1008} if span == "day" else sum(arrived) in {21_000, 21_008}
        assert f"Last {span}" in page.get(path.replace("overview.json", "").replace(".json", "") + span).text


@pytest.mark.usefixtures("lived_in")
def test_a_route_shows_its_schedule_its_last_errors_and_its_latency(page: Page) -> None:
    found = page.json("/route.json?name=strict")
    assert [(row["seq"], row["kind"], row["cause"]) for row in found["errors"]] == [(1, "dead", "mapping")]
    assert found["settings"]["schedule"][:3] == [5, 30, 300]
    assert len(found["latency"]) == 2
    assert page.get("/route?name=strcit").status_code == 404


def test_the_overview_costs_few_statements(page: Page, lived_in: Steps) -> None:
    page.json("/overview.json")
    with record_statements() as statements:
        page.json("/overview.json")
    read = [each for each in statements if each.lstrip().startswith(("SELECT", "WITH"))]
    assert len(read) <= 24, read
    assert lived_in.states()


def test_quiet_routes_are_folded(page: Page, steps: Steps) -> None:
    steps.arrive(*(an_event(n, f"u{n}") for n in range(1, 26)))
    steps.do(*(f"UPDATE open_delivery SET route = 'r{n}' WHERE seq = {n}" for n in range(1, 26)))
    found = page.json("/overview.json")
    assert [sum(route["is_busy"] is busy for route in found["routes"]) for busy in (True, False)] == [25, 3]
    assert "3 routes with nothing open" in page.get("/").text


# --- Gates and sweeps


NOW = SystemClock().now()
SWEPT = parse_config("""
[apis.identity]
base_url = "https://identity.example.com"
rate = "30/m"

[sources.trivore]
preset = "trivore"
auth = { kind = "none" }
sweeps = [
  { api = "identity", path = "/users", entity_type = "USER", every = "1h" },
  { api = "identity", path = "/groups", entity_type = "GROUP" },
]
""")


@pytest.fixture
def swept_page(database_url: str, clock: FakeClock) -> Iterator[Page]:
    with serving(on_database(SWEPT, database_url), clock) as made:
        yield made


@pytest.mark.parametrize(
    ("query", "kinds"),
    [
        ("", ["source", "entity"]),  # entities, maybe thousands, come last
        ("kind=entity", ["entity"]),
        ("name=A%2FB", ["entity"]),
        ("kind=api", []),
        ("name=trivore", ["source", "entity"]),
    ],
)
def test_a_pause_shows_actor_and_reason_and_is_found_by_kind_and_part_of_its_name(
    swept_page: Page, steps: Steps, query: str, kinds: list[str]
) -> None:
    with steps.database.write() as transaction:
        gates.pause(transaction, make_entity_key("trivore", "USER", "a/b&c"), who="kim", why="odd")
        gates.pause(transaction, ("source", "trivore"), who="kim", why="maintenance")
    found = swept_page.json(f"/gates.json?{query}")["gates"]
    assert [gate["kind"] for gate in found] == kinds
    assert {(gate["by"], gate["why"]) for gate in found} <= {("kim", "odd"), ("kim", "maintenance")}
    shown = swept_page.get("/gates").text
    for act in ("resume?source=trivore&amp;entity_type=USER&amp;entity_id=a/b%26c", "sweep?source=trivore", "pause"):
        assert f'"/acts/{act}' in shown


@ON_BOTH
def test_a_sweep_shows_its_watermark_its_error_and_whether_it_runs(swept_page: Page, steps: Steps) -> None:
    with steps.database.engine.begin() as connection:
        for entity_type, lease_until in (("USER", NOW + timedelta(hours=1)), ("OLD", None)):
            row = {"source": "trivore", "entity_type": entity_type, "swept_at": NOW, "missed": 3, "error": "503 <b>"}
            connection.execute(insert(sweep_watermark).values(**row, lease_until=lease_until))
    found = swept_page.json("/gates.json")["sweeps"]
    running = {row["entity_type"]: row["is_running"] for row in found}
    assert running == {"USER": True, "GROUP": False, "OLD": False}
    assert found[0]["watermark"]["missed"] == 3
    assert "503 &lt;b&gt;" in swept_page.get("/gates").text


# --- Rows that were written by hand or by another version break no screen


AT = "'2026-01-01 00:00:30.000000Z'"
PATHS = ("", "/deliveries", "/events/1", "/events/2", "/events/3", "/dead", "/gates", "/commands",
         "/entity?source=trivore&type=USER&id=u1", "/commands/3", "/rejected", "/alerts")  # fmt: skip
HUGE = "9" * 400
DETAILS = (
    '{"calls": [null, 1, {"status": {}, "milliseconds": {}, "url": null, "excerpt": []}], "error": {"a": 1}, "cause": []}',
    f'{{"calls": [{{"status": {HUGE}, "milliseconds": {HUGE}}}], "error": null}}',
    '{"due_at": "soon", "who": {}, "why": [], "blocks_lane": "x"}',
    '{"due_at": "99999-01-01T00:00:00Z", "error": "{0} %s {x.__class__}"}',
    f'{{"error": "{"x" * 1_000_000}"}}',
)
LONE = '{"error": "\\ud800", "cause": "\\udfff", "calls": [{"url": "\\ud800", "error": "\\ud800"}]}'
"""Lone surrogates, which SQLite stores and UTF-8 cannot encode."""
COMMAND = (
    "INSERT INTO relay_command (kind, selection, reason, asked_by, state, answer, sample)"
    " VALUES ('cancel', '{}', 'r', 'x', 'done', '', '{{\"groups\": [1, null, {{}}], \"deliveries\": 5, \"left_out\": []}}')"
)


def a_fact(kind: str, detail: str, seq: int, route: str) -> str:
    return (
        "INSERT INTO delivery_log (at, seq, route, kind, state, attempt, detail)"
        f" VALUES ({AT}, {seq}, '{route}', '{kind}', 'dead', 1, '{detail}')"
    )


def assert_all_screens_work(page: Page) -> None:
    answers = {
        (path, actor.role): page.get(path, actor).status_code
        for each in PATHS
        for path in (each or "/", re.sub(r"$|(?=\?)", ".json", each or "/overview", count=1))
        for actor in (OPERATOR, VIEWER)
    }
    assert {key: status for key, status in answers.items() if status != 200} == {}


@ON_BOTH
def test_malformed_rows_break_no_screen(page: Page, steps: Steps) -> None:
    fill_page(steps)
    for detail, kind in itertools.product(DETAILS, ("dead", "rescheduled")):
        steps.do(*(a_fact(kind, detail, seq, route) for seq, route in ((1, "strict"), (2, "blocking"), (3, "latest"))))
    steps.do(
        COMMAND.format('{"later": [1, {"a": null}], "route": 5}'), a_fact("superseded", '{"by": "none"}', 1, "strict")
    )
    assert_all_screens_work(page)


def test_a_lone_surrogate_is_shown_as_an_escape(page: Page, steps: Steps) -> None:
    fill_page(steps)
    facts = (a_fact(kind, LONE, 2, "blocking") for kind in ("dead", "attempt_failed"))
    steps.do(*facts, COMMAND.format('{"route": "\\ud800"}'))
    assert_all_screens_work(page)
    assert page.json("/commands/3.json")["command"]["selection"] == {"route": "\\ud800"}


# --- The doctor


def test_the_doctor_examines_and_changes_nothing(page: Page, steps: Steps) -> None:
    found = page.json("/doctor.json")
    assert "no_relay" in [finding["kind"] for finding in found["findings"]]
    assert found["findings"][0]["level"] == "critical"
    assert found["seconds"] > 0
    assert "relay run" in page.get("/doctor", VIEWER).text, "a viewer sees the report"
    assert steps.states() == []


def test_a_report_is_cached_for_all_users_unless_it_failed(page: Page, monkeypatch: pytest.MonkeyPatch) -> None:
    runs: list[Installation] = []

    def count(installation: Installation, _examinations: Sequence[object]) -> list[ExaminationResult]:
        runs.append(installation)
        if len(runs) == 1:
            raise ValueError("broken")
        return []

    monkeypatch.setattr(overview, "run", count)
    assert page.get("/doctor").status_code == 500
    first = page.json("/doctor.json")
    assert page.json("/api/v1/doctor", VIEWER) == first
    assert len(runs) == 2
    monkeypatch.setattr(overview, "KEPT_SECONDS", 0.0)
    page.json("/doctor.json")
    assert len(runs) == 3
