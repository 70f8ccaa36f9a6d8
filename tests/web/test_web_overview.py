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
from relay.web.screens.overview import Button, button_of
from tests.helpers.databases import ON_BOTH, ON_POSTGRES
from tests.helpers.page import Page
from tests.helpers.relaying import DONE, HOPELESS, Steps, work_of
from tests.helpers.storing import START, an_event
from tests.helpers.tables import counted_statements
from tests.helpers.waiting import stand_still

HOSTILE = "\u202e<script>alert(1)</script>"


def seen(**parts: Any) -> Overview:  # noqa: ANN401  # fields of Overview
    empty: dict[str, Any] = dict.fromkeys(("routes", "gates", "relays", "alerts", "commands", "sweeps"), ())
    return Overview(START, **{**empty, **parts})


CRM = RouteState("crm", is_configured=True)
PAUSED = HeldGate("destination", "crm", "open", "503", None, START, None, ("crm",))


# --- findings and their buttons


def all_of(overview: Overview, *checked: Finding) -> list[Finding]:
    return list(findings(overview, checked, 5))


def test_a_healthy_installation_has_nothing_to_do() -> None:
    assert all_of(seen(routes=(CRM,))) == []


def test_an_alert_says_since_when_and_why_about_the_problem_that_has_the_button() -> None:
    dead = msgspec.structs.replace(CRM, open=2, dead=2)
    alert = FiringAlert("delivery_dead", "crm", START, "route crm has dead deliveries: mapping")
    (found,) = all_of(seen(routes=(dead,), alerts=(alert,)))
    assert (found.sentence, found.why, found.since) == ("route crm: 2 deliveries are dead", alert.text, START)
    assert button_of(found) == Button("Dead letters", path="/dead?route=crm")


def test_an_alert_whose_dead_letters_are_replayed_is_no_finding_any_more() -> None:
    alert = FiringAlert("delivery_dead", "crm", START, "route crm has dead deliveries: mapping")
    assert all_of(seen(routes=(CRM,), alerts=(alert,))) == []


def test_an_open_breaker_and_its_alert_are_one_finding_with_a_button() -> None:
    alert = FiringAlert("breaker_open", "destination crm", START, "destination crm is not called for now: 503")
    (found,) = all_of(seen(gates=(PAUSED,), alerts=(alert,)))
    assert button_of(found) == Button("Resume", "/acts/resume?destination=crm", is_act=True)
    assert (found.why, found.since) == ("503", START)


def test_an_entity_is_resumed_by_its_three_fields() -> None:
    gate = msgspec.structs.replace(PAUSED, kind="entity", name=entity_key("trivore", "USER", "a|b")[1], state="paused")
    (found,) = all_of(seen(gates=(gate,)))
    button = button_of(found)
    assert button is not None
    assert button.path == "/acts/resume?source=trivore&entity_type=USER&entity_id=a%7Cb"


def test_a_blocked_lane_and_the_death_that_blocks_it_are_one_finding() -> None:
    blocked = msgspec.structs.replace(CRM, open=1, blocked=1)
    alert = FiringAlert("delivery_dead", "crm", START, "route crm has dead deliveries: mapping")
    check = Finding("blocked", "warning", "route crm: 1 lane is blocked", "crm", remedy="x", fields={"route": "crm"})
    (found,) = all_of(seen(routes=(blocked,), alerts=(alert,)), check)
    assert found == check
    assert button_of(found) == Button("Dead letters", path="/dead?route=crm")


def test_critical_ones_come_first_and_alerts_of_other_things_are_kept() -> None:
    alerts = (
        FiringAlert("backlog_old", "crm", START, "route crm is behind"),
        FiringAlert("source_silent", "trivore", START, "source trivore is silent"),
    )
    stuck = Finding("stuck", "critical", "route crm: nothing moves", "crm", remedy="x", fields={"route": "crm"})
    found = all_of(seen(gates=(PAUSED,), alerts=alerts), stuck)
    assert [each.level for each in found] == ["critical", "warning", "warning", "information"]
    assert [each.sentence for each in found[1:3]] == [alert.text for alert in alerts]
    assert button_of(found[0]) == Button("Deliveries", path="/deliveries?route=crm")
    assert button_of(found[1]) == Button("Deliveries", path="/deliveries?route=crm")


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
    assert [each["sentence"] for each in found["findings"]] == ["no relay has sent a heartbeat for 15 s"]
    assert (sum(found["arrived"]), len(found["arrived"])) == (0, 60)
    assert page.get("/").status_code == 200


@ON_BOTH
def test_everything_is_there_in_html_and_json(page: Page, lived_in: Steps) -> None:
    found = page.json("/overview.json")
    assert not found["is_well"]
    assert sum(found["arrived"]) == 8, "neither duplicates nor what is older than an hour"
    assert (sum(found["ended"]), sum(found["failed"])) == (6, 1)
    strict = next(line for line in found["routes"] if line["state"]["route"] == "strict")
    assert (strict["word"], strict["state"]["dead"], strict["state"]["ready"]) == ("held back", 1, 1)
    assert sum(strict["ended"]) == 6
    assert [line["health"]["events_hour"] for line in found["sources"]] == [8]
    assert [row["name"] for row in found["destinations"]] == ["audit"]
    assert found["disk"]["size"] > 0
    assert lived_in.states()
    text = page.get("/").text
    for part in ("destination audit is paused", "source trivore is silent", "1 delivery is dead", "step claim fails"):
        assert part in text
    assert "/acts/resume?destination=audit" in text


def test_it_costs_few_statements_however_many_routes_there_are(page: Page, lived_in: Steps) -> None:
    page.json("/overview.json")
    with counted_statements() as statements:
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
