"""Findings in arriving webhooks, relays, gates and deliveries, by rows that a test stores."""

from __future__ import annotations

import json
from datetime import timedelta
from pathlib import Path

import pytest
from sqlalchemy import Engine

from inbox.clock import SystemClock
from inbox.doctor import traffic
from inbox.events.timestamps import time_text
from relay import doctor
from tests.doctor.examining import (
    HOST,
    environment_of,
    examined,
    found,
    installation,
    run_sql,
    start_a_relay,
    told,
)
from tests.helpers.filling import fill, give_up
from tests.helpers.processes import invoke
from tests.helpers.scripted import CERTIFICATE, answer, closed_port, serving
from tests.helpers.webhooks import config_text, moment

HOSTILE = "a\x1b]0;owned\x07 [red]`$(id)'"


def ago(**span: float) -> str:
    return time_text(SystemClock().now() - timedelta(**span))


# --- sources


def an_event(engine: Engine, source: str, received_at: str) -> None:
    routes = "'{}'" if engine.dialect.name == "postgresql" else "'[]'"
    digest = "CAST('x' AS bytea)" if engine.dialect.name == "postgresql" else "x'00'"
    run_sql(
        engine,
        "INSERT INTO inbox (source, dedup_key, event_type, action, occurred_at, received_at, routes, content_type,"
        f" body_bytes, body_sha256) VALUES (:source, :key, 'push', 'other', :at, :at, {routes}, 'application/json', 1, {digest})",
        source=source,
        key=received_at,
        at=received_at,
    )


SOURCES = "".join(
    f'[sources.{name}]\npreset = "github"\nsecrets = ["env:GITHUB_SECRET"]\nsilent_after = "1h"\n'
    for name in ("silent", "heard", "never", "old")
)


def test_a_source_that_went_silent_is_found(
    tmp_path: Path, database_url: str, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(traffic, "_MOST_EVENTS", 3)
    for source, hours in (("old", 30), ("github", 20), ("silent", 2), ("github", 1.5), ("heard", 0.5)):
        an_event(engine, source, ago(hours=hours))
    place = installation(tmp_path, database_url, SOURCES)
    assert found(place, "sources") == [("source_silent", "silent"), ("source_silent", "old")]
    whats = [each.what for each in examined(place, "sources").findings if each.name == "source_silent"]
    assert whats == [
        "source silent: nothing has arrived for 2.0 h",
        "source old: nothing has arrived for more than 2.0 h",  # it is not among the newest events
    ]
    assert told(place, "sources")["source_never_heard"].subject == "never"


# --- rejected requests


def reject(engine: Engine, times: int, received_at: str, source: str = "github") -> None:
    digest = "CAST('x' AS bytea)" if engine.dialect.name == "postgresql" else "x'00'"
    for _ in range(times):
        run_sql(
            engine,
            "INSERT INTO rejected_request (received_at, source, status, cause, reason, body_sha256)"
            f" VALUES (:at, :source, 401, 'not_authenticated', 'because', {digest})",
            at=received_at,
            source=source,
        )


def test_rejections_that_rise_are_found_and_a_steady_stream_is_not(
    tmp_path: Path, database_url: str, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(traffic, "_LEAST_IN_HOUR", 6)
    for hours in range(2, 6):
        reject(engine, 1, ago(hours=hours))
    reject(engine, 5, ago(minutes=5))
    assert found(installation(tmp_path, database_url), "rejected") == []
    reject(engine, 5, ago(minutes=4), source=HOSTILE)
    reject(engine, 1, ago(minutes=4))
    place = installation(tmp_path, database_url)
    assert found(place, "rejected") == [("rejections_rising", "github")]
    assert told(place, "rejected")["rejections_rising"].what == (
        "11 requests were rejected in the last hour, and 0 an hour before; 6 of them of source github as not_authenticated"
    )
    monkeypatch.setattr(traffic, "_MOST_REJECTED", 11)
    assert "11 or more requests" in told(place, "rejected")["rejections_rising"].what


def test_a_stream_of_rejections_that_was_there_before_is_no_finding(
    tmp_path: Path, database_url: str, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(traffic, "_LEAST_IN_HOUR", 3)
    for hours in (1.5, 2.5, 3.5):
        reject(engine, 10, ago(hours=hours))
    reject(engine, 12, ago(minutes=4))
    monkeypatch.setattr(traffic, "_MOST_REJECTED", 42)
    assert found(installation(tmp_path, database_url), "rejected") == []


# --- relays


def test_no_relay_and_one_that_died_soon_are_found(tmp_path: Path, database_url: str, engine: Engine) -> None:
    place = installation(tmp_path, database_url)
    assert found(place, "relays") == [("no_relay", "relay")]
    for number in range(3):
        start_a_relay(engine, f"dead{number}", started_at=f"'{ago(minutes=2)}'", heartbeat_at=f"'{ago(minutes=1)}'")
    died = [("relay_gone", f"{HOST} pid 4711")] * 3
    assert found(place, "relays") == [("no_relay", "relay"), ("crash_loop", "relay"), *died]
    start_a_relay(engine)
    assert found(place, "relays") == [("crash_loop", "relay"), *died]


def test_relays_that_fail_or_have_another_version_are_found(tmp_path: Path, database_url: str, engine: Engine) -> None:
    start_a_relay(engine, failing=f"'{json.dumps({'record': 'it broke'})}'", version="'0.0.9'")
    place = installation(tmp_path, database_url)
    assert found(place, "relays") == [("step_failed", "relay"), ("version_differs", f"{HOST} pid 4711")]


def test_relays_with_different_configurations_are_found(tmp_path: Path, database_url: str, engine: Engine) -> None:
    start_a_relay(engine, config_hash="'one'")
    start_a_relay(engine, "r2", host="elsewhere", config_hash="'two'")
    place = installation(tmp_path, database_url)
    assert found(place, "relays") == [("configuration_differs", "relay")]


def test_a_configuration_that_is_newer_than_a_relay_of_this_host_is_information(
    tmp_path: Path, database_url: str, engine: Engine
) -> None:
    start_a_relay(engine, started_at=f"'{ago(minutes=9)}'")
    start_a_relay(engine, "r2", host="elsewhere", started_at=f"'{ago(minutes=9)}'")
    place = installation(tmp_path, database_url)
    (finding,) = examined(place, "relays").findings
    assert (finding.name, finding.severity, finding.mend) == ("configuration_changed", "information", "kill -HUP 4711")


# --- gates


def test_gates_that_are_closed_for_long_are_found_with_the_command_that_opens_them(
    tmp_path: Path, database_url: str, engine: Engine
) -> None:
    pause = "INSERT INTO gate (kind, name, paused_at, paused_by, pause_reason) VALUES ('{}', :name, :at, 'kim', :why)"
    run_sql(engine, pause.format("route"), name="all", at=ago(days=4), why=HOSTILE)
    run_sql(engine, pause.format("source"), name="github", at=ago(hours=1), why="today")
    run_sql(engine, pause.format("entity"), name=r"github|USER|it's \| me", at=ago(days=5), why="why")
    breaker = "INSERT INTO gate (kind, name, breaker, breaker_until) VALUES ('destination', :name, :state, :until)"
    run_sql(engine, breaker, name="audit", state="open", until=ago(hours=-1))
    run_sql(engine, breaker, name="gone", state="retired", until=None)
    alert = "INSERT INTO alert (at, kind, subject, firing, detail) VALUES (:at, 'breaker_open', 'destination audit', true, '{}')"
    run_sql(engine, alert, at=ago(hours=2))
    place = installation(tmp_path, database_url)
    by_name = {(each.name, each.subject): each for each in examined(place, "gates").findings}
    assert set(by_name) == {
        ("paused_for_days", "route all"),
        ("paused_for_days", "github USER/it's | me"),
        ("gate_closed", "source github"),
        ("breaker_open_long", "destination audit"),
        ("endpoint_retired", "destination gone"),
    }
    entity = by_name["paused_for_days", "github USER/it's | me"]
    assert entity.mend == """relay resume --source github --entity 'USER/it'"'"'s | me'"""
    ended = invoke("inbox", "doctor", "--only", "gates", **environment_of(place))
    assert ended.status == 1
    assert "\x1b" not in ended.stdout
    assert "[red]`$(id)'" in ended.stdout


# --- deliveries and commands


def routed(database_url: str) -> str:
    """The configuration of the tests' one route, as a template."""
    return config_text(database_url).replace("{", "{{").replace("}", "}}")


def test_dead_deliveries_are_found(tmp_path: Path, database_url: str, engine: Engine) -> None:
    give_up(engine, database_url, [("u1", moment(1)), ("u2", moment(2))])
    place = installation(tmp_path, database_url, config=routed(database_url))
    assert found(place, "deliveries") == [("route_failing", "everything"), ("delivery_dead", "everything")]
    finding = told(place, "deliveries")["delivery_dead"]
    assert (finding.what, finding.mend) == ("route everything: 2 dead", "relay dead --route everything")


def test_what_stands_still_and_what_has_no_route_any_more_is_found(
    tmp_path: Path, database_url: str, engine: Engine
) -> None:
    fill(database_url, [("u1", moment(1))])
    due = "UPDATE open_delivery SET state = 'ready', due_at = :at"
    run_sql(engine, due, at=ago(minutes=5))
    place = installation(tmp_path, database_url, config=routed(database_url))
    assert found(place, "deliveries") == [("route_stuck", "everything")]
    run_sql(engine, "UPDATE open_delivery SET state = 'blocked', due_at = NULL, route = 'former'")
    assert found(place, "deliveries") == [("lanes_blocked", "former"), ("route_unconfigured", "former")]


def test_commands_sweeps_and_alerts_that_need_somebody_are_found(
    tmp_path: Path, database_url: str, engine: Engine
) -> None:
    selection = json.dumps({"route": "all"}).replace(":", "\\:")
    ask = "INSERT INTO relay_command (kind, selection, reason, asked_by, asked_at, state, finished_at, answer) VALUES"
    run_sql(engine, f"{ask} ('retry', '{selection}', 'why', 'kim', :at, 'asked', NULL, NULL)", at=ago(minutes=3))
    run_sql(
        engine,
        f"{ask} ('retry', '{selection}', 'why', 'kim', :at, 'failed', :at, :answer)",
        at=ago(minutes=3),
        answer=HOSTILE,
    )
    sweep = "INSERT INTO sweep_watermark (source, entity_type, swept_at, error) VALUES (:source, 'USER', :at, 'answered 403')"
    run_sql(engine, sweep, source="github", at=ago(minutes=3))
    alert = "INSERT INTO alert (at, kind, subject, firing, detail) VALUES (:at, :kind, 'receiver', true, :detail)"
    run_sql(engine, alert, at=ago(minutes=3), kind="intake_stopped", detail=json.dumps({"error": "no disk"}))
    run_sql(engine, alert, at=ago(minutes=3), kind="sweep_failed", detail="{}")
    place = installation(tmp_path, database_url)
    assert found(place, "commands") == [("command_waiting", "command"), ("command_failed", "command")]
    assert found(place, "sweeps") == [("sweep_failed", "github")]
    assert told(place, "sweeps")["sweep_failed"].mend == "relay sweep --source github"
    assert found(place, "alerts") == [("alert_open", "receiver")]
    assert "the receiver can store nothing: no disk" in told(place, "alerts")["alert_open"].what


# --- other systems


def destination(url: str, more: str = "") -> str:
    return f'[destinations.there]\nkind = "forward"\nurl = "{url}"\nallow_private = true\nallow_http = true\ntimeout = "3s"\n{more}'


def only_there(database_url: str, url: str, more: str = "") -> str:
    """A configuration with one destination and nothing else that could be asked."""
    return f"[database]\nurl = {database_url!r}\n" + destination(url, more)


def test_systems_that_are_not_reached_or_deny_are_found_and_asked_only_online(
    tmp_path: Path, sqlite_database_url: str
) -> None:
    with serving(answer(204), answer(401)) as server:
        place = installation(tmp_path, sqlite_database_url, config=only_there(sqlite_database_url, server.url))
        assert invoke("inbox", "doctor", **environment_of(place)).status == 1  # no relay runs
        assert server.seen == []
        assert found(place, "systems") == []
        assert found(place, "systems") == [("system_denied", "destinations.there")]
    url = f"http://127.0.0.1:{closed_port()}"
    place = installation(tmp_path, sqlite_database_url, config=only_there(sqlite_database_url, url))
    assert found(place, "systems") == [("system_unreached", "destinations.there")]
    ended = invoke("inbox", "doctor", "--online", "--only", "systems", **environment_of(place))
    assert ended.status == 1
    assert "system_unreached: destinations.there" in ended.stdout


def test_certificates_that_end_soon_or_are_not_accepted_are_found(
    tmp_path: Path, sqlite_database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with serving(tls=True) as server:
        url = server.url.replace("127.0.0.1", "localhost")
        trusted = only_there(sqlite_database_url, url, f'ca_file = "{CERTIFICATE}"\n')
        place = installation(tmp_path, sqlite_database_url, config=trusted)
        assert found(place, "tls") == []
        monkeypatch.setattr(doctor, "_SOON", timedelta(days=200_000))
        assert found(place, "tls") == [("tls_expiring", "destinations.there")]
        assert f"-connect {url.partition('://')[2]}" in told(place, "tls")["tls_expiring"].mend
        place = installation(tmp_path, sqlite_database_url, config=only_there(sqlite_database_url, url))
        assert found(place, "tls") == [("tls_rejected", "destinations.there")]
        assert "self-signed certificate" in told(place, "tls")["tls_rejected"].what
        assert server.seen == []
