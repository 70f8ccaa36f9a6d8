"""The overview: what needs a person comes first, with why, since when and the button; it costs few statements."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import msgspec
import pytest
from sqlalchemy import insert, text

from inbox.clock import SystemClock
from inbox.db import engine as engines
from inbox.db.schema import throughput_minute
from relay.delivery.alerts import Alert
from relay.delivery.gates import entity_key
from relay.findings import Finding, findings
from relay.store import gates, nodes
from relay.store.alerts import note
from relay.store.overview import FiringAlert, HeldGate, Overview
from relay.store.route_states import RouteState
from relay.web.screens.overview import button_of
from tests.helpers.databases import ON_BOTH, ON_POSTGRES
from tests.helpers.page import Page
from tests.helpers.relaying import DONE, HOPELESS, Steps, work_of
from tests.helpers.storing import START, an_event
from tests.helpers.tables import record_statements
from tests.helpers.waiting import stand_still
from tests.helpers.worlds import HOSTILE

CRM = RouteState("crm", is_configured=True)
PAUSED = HeldGate("destination", "crm", "open", "503", None, START, None, ("crm",))
ENTITY = msgspec.structs.replace(PAUSED, kind="entity", name=entity_key("trivore", "USER", "a|b")[1], state="paused")
DIED = FiringAlert("delivery_dead", "crm", START, "route crm has dead deliveries: mapping")
OPENED = FiringAlert("breaker_open", "destination crm", START, "destination crm is not called for now: 503")
BEHIND = FiringAlert("backlog_old", "crm", START, "route crm is behind")
SILENT = FiringAlert("source_silent", "trivore", START, "source trivore is silent")
BLOCKED = Finding("blocked", "warning", "route crm: 1 lane is blocked", "crm", remedy="x", fields={"route": "crm"})
STUCK = Finding("stuck", "critical", "route crm: nothing moves", "crm", remedy="x", fields={"route": "crm"})


def judged(*checked: Finding, crm: RouteState = CRM, **parts: Any) -> list[tuple[object, ...]]:  # noqa: ANN401  # fields of Overview
    """Level, reason, time and path of the button of each finding."""
    empty: dict[str, Any] = dict.fromkeys(("gates", "relays", "alerts", "commands", "sweeps"), ())
    found = list(findings(Overview(START, **{"routes": (crm,), **empty, **parts}), checked, 5))
    buttons = [button_of(each) for each in found]
    assert all(button is None or button.is_act == button.path.startswith("/acts/") for button in buttons)
    return [
        (each.level, each.why, each.since, button and button.path) for each, button in zip(found, buttons, strict=True)
    ]


def test_a_problem_is_one_finding_with_its_reason_its_time_and_its_button() -> None:
    dead, blocked = (msgspec.structs.replace(CRM, open=2, **{state: 2}) for state in ("dead", "blocked"))
    paused = ("information", "503", START, "/acts/resume?destination=crm")
    assert judged() == judged(alerts=(DIED,)) == [], "what died is replayed"
    assert judged(crm=dead, alerts=(DIED,)) == [("warning", DIED.text, START, "/dead?route=crm")]
    assert judged(BLOCKED, crm=blocked, alerts=(DIED,)) == [("warning", "", None, "/dead?route=crm")]
    assert judged(gates=(PAUSED,), alerts=(OPENED,)) == [paused]
    (entity,) = judged(gates=(ENTITY,))
    assert entity[3] == "/acts/resume?source=trivore&entity_type=USER&entity_id=a%7Cb"
    several = judged(STUCK, gates=(PAUSED,), alerts=(BEHIND, SILENT))
    assert [each[0] for each in several] == ["critical", "warning", "warning", "information"]
    assert [each[3] for each in several[:2]] == ["/deliveries?route=crm"] * 2


# --- the page


@pytest.fixture
def lived_in(steps: Steps) -> Steps:
    """One dead, one delivered, one ready; a pause; an alert; a relay that fails; figures of the last hour."""
    steps.clock.moment = SystemClock().now()
    steps.arrive(*(an_event(n, f"u{n}") for n in (1, 2, 3)))
    steps.attempt(HOPELESS)
    steps.attempt(DONE)
    nodes.describe(work_of(steps.database, node="r1"), "relay-1", 812, "1.0")
    nodes.heartbeat(steps.database, "r1", {"claim": HOSTILE})
    with steps.database.write() as transaction:
        gates.pause(transaction, ("destination", "audit"), who="kim", why=HOSTILE)
        alert = Alert("source_silent", "trivore", firing=True, detail={"silent_seconds": 900})
        note(transaction, [alert], transaction.take_order_lock())
    with steps.database.engine.begin() as connection:
        for kind, name, outcome, ago, count in (
            ("source", "trivore", "stored", 5, 7),
            ("source", "trivore", "swept", 5, 1),
            ("source", "trivore", "duplicate", 5, 100),
            ("source", "trivore", "stored", 70, 1000),
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
def test_routes_sources_destinations_and_figures_of_the_last_hour_are_there(page: Page) -> None:
    found = page.json("/overview.json")
    assert not found["is_well"]
    assert {each["kind"] for each in found["findings"]} >= {"alert", "delivery_dead", "gate_closed", "step_failed"}
    assert sum(found["arrived"]) == 8, "neither duplicates nor what is older than an hour"
    assert (sum(found["ended"]), sum(found["failed"])) == (6, 1)
    strict = next(line for line in found["routes"] if line["state"]["route"] == "strict")
    assert (strict["state"]["dead"], strict["state"]["ready"], sum(strict["ended"])) == (1, 1, 6)
    assert [line["health"]["events_hour"] for line in found["sources"]] == [8]
    assert [row["name"] for row in found["destinations"]] == ["audit"]
    assert found["disk"]["size"] > 0
    text = page.get("/").text
    assert "/acts/resume?destination=audit" in text
    assert all(each["sentence"].partition(":")[0] in text for each in found["findings"])


def test_it_costs_few_statements_however_many_routes_there_are(page: Page, lived_in: Steps) -> None:
    page.json("/overview.json")
    with record_statements() as statements:
        page.json("/overview.json")
    read = [each for each in statements if each.lstrip().startswith(("SELECT", "WITH"))]
    assert len(read) <= 24, read
    assert lived_in.states()


@ON_POSTGRES
def test_a_table_that_is_locked_makes_the_page_say_so_until_it_is_free(
    page: Page, lived_in: Steps, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engines, "LOCK_TIMEOUT_SECONDS", 0.1)
    with lived_in.database.engine.begin() as connection:
        stand_still(connection)
        connection.execute(text("LOCK TABLE rejected_request, pruning IN ACCESS EXCLUSIVE MODE"))
        answer = page.get("/")
        assert answer.status_code == 503
        assert "lock" in answer.text
    assert page.get("/").status_code == 200


def test_of_many_routes_the_quiet_ones_are_folded(page: Page, steps: Steps) -> None:
    steps.arrive(*(an_event(n, f"u{n}") for n in range(1, 26)))
    steps.do(*(f"UPDATE open_delivery SET route = 'r{n}' WHERE seq = {n}" for n in range(1, 26)))
    found = page.json("/overview.json")
    assert [sum(route["is_busy"] is busy for route in found["routes"]) for busy in (True, False)] == [25, 3]
    assert "3 routes with nothing open" in page.get("/").text
