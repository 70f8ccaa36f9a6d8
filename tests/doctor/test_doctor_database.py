"""Findings in the database's clock, settings, sequences and rights, and of relays, by what a test stores."""

from __future__ import annotations

import json
import os
from datetime import timedelta
from pathlib import Path

import pytest
from sqlalchemy import Engine

from inbox.clock import SystemClock
from inbox.db import migrate
from inbox.events.timestamps import time_text
from relay.store.nodes import hash_of
from tests.doctor.examining import HOST, environment_of, examined, found, installation, run_sql, start_a_relay, told
from tests.helpers.databases import grant_roles
from tests.helpers.processes import invoke
from tests.helpers.relaying import give_up
from tests.helpers.webhooks import config_text, moment

HOSTILE = "a\x1b]0;owned\x07 [red]`$(id)'"


def ago(**span: float) -> str:
    return time_text(SystemClock().now() - timedelta(**span))


def test_settings_that_a_guarantee_needs_are_read_back(
    tmp_path: Path, postgres_database_url: str, postgres_engine: Engine
) -> None:
    place = installation(tmp_path, postgres_database_url)
    of_the_owner = {"fsync", "full_page_writes"}  # of the tests' own Postgres, which writes nothing through to its disk
    assert {subject for kind, subject in found(place, "durability") if kind == "setting_doubtful"} == of_the_owner
    run_sql(
        postgres_engine,
        "CREATE FUNCTION at_login() RETURNS event_trigger LANGUAGE plpgsql AS"
        " $$ BEGIN PERFORM set_config('synchronous_commit', 'off', false); END $$",
        "CREATE EVENT TRIGGER at_login ON login EXECUTE FUNCTION at_login()",
    )
    lost = told(installation(tmp_path, postgres_database_url), "durability")["setting_lost"].sentence
    assert lost.startswith("the database has synchronous_commit = off")


def test_a_sequence_behind_its_table_is_found_and_its_statement_mends_it(
    tmp_path: Path, postgres_database_url: str, postgres_engine: Engine
) -> None:
    alert = "INSERT INTO alert (id, at, kind, subject, firing, detail) VALUES (70, now(), 'k', 's', false, '{}')"
    run_sql(postgres_engine, alert)
    place = installation(tmp_path, postgres_database_url)
    assert "the sequence public.alert_id_seq is behind" in told(place, "durability")["setting_lost"].sentence
    run_sql(postgres_engine, told(place, "durability")["setting_lost"].remedy)
    assert "setting_lost" not in told(place, "durability")


def test_stored_times_in_the_future_are_found(tmp_path: Path, database_url: str, engine: Engine) -> None:
    insert = (
        "INSERT INTO delivery_log (at, seq, route, kind, state, attempt, detail)"
        " VALUES (:at, 1, 'r', 'delivered', 'ended', 1, '{}')"
    )
    run_sql(engine, insert, at=ago(hours=-1))
    assert ("clock_went_back", "delivery_log.at") in found(installation(tmp_path, database_url), "relay")


def test_an_owner_whose_transactions_may_stay_open_is_found_until_the_roles_are_made(
    tmp_path: Path, postgres_database_url: str, postgres_engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    prefix = f"limit{os.getpid()}"
    monkeypatch.setattr(migrate, "DEFAULT_PREFIX", prefix)  # roles are those of all the server's databases
    place = installation(tmp_path, postgres_database_url)
    with monkeypatch.context() as patch:
        patch.setattr(migrate, "lacking_rights", lambda _engine: ["mine"])
        assert found(place, "rights") == [("rights_lacking", "mine")]
    assert found(place, "rights") == []  # where there are no roles
    with grant_roles(postgres_database_url, prefix) as roles:
        assert found(place, "rights") == []
        owner = postgres_engine.url.username
        run_sql(postgres_engine, f'ALTER ROLE "{owner}" IN DATABASE "{postgres_engine.url.database}" RESET ALL')
        assert found(place, "rights") == [("owner_unlimited", owner)]
        roles.grant()
        assert found(place, "rights") == []


# --- relays and what needs a person


def test_a_relay_of_another_version_or_configuration_is_found(
    tmp_path: Path, database_url: str, engine: Engine
) -> None:
    place = installation(tmp_path, database_url)
    start_a_relay(engine, version="'0.0.9'", config_hash=f"'{hash_of(place.config)}'")
    start_a_relay(engine, "r2", host="elsewhere", config_hash="'other'")
    assert sorted(found(place, "relays")) == [
        ("configuration_changed", "relay elsewhere pid 4711"),
        ("version_differs", f"relay {HOST} pid 4711"),
    ]


def test_it_finds_what_needs_a_person_as_the_status_does(tmp_path: Path, database_url: str, engine: Engine) -> None:
    config = config_text(database_url).replace("{", "{{").replace("}", "}}")
    give_up(engine, database_url, [("u1", moment(1)), ("u2", moment(2))])
    pause = "INSERT INTO gate (kind, name, paused_at, paused_by, pause_reason) VALUES ('api', 'a', :at, 'kim', :why)"
    run_sql(engine, pause, at=ago(days=4), why=HOSTILE)
    place = installation(tmp_path, database_url, config=config)
    kinds = [kind for kind, _ in found(place, "relay")]
    assert kinds == ["no_relay", "gate_closed", "delivery_dead"]
    dead = told(place, "relay")["delivery_dead"]
    assert (dead.sentence, dead.remedy) == ("route everything: 2 deliveries are dead", "relay dead --route everything")
    assert all(each.why and each.remedy for each in examined(place, "relay").findings)
    status = json.loads(invoke("relay", "status", "--json", **environment_of(place)).stdout)
    commands = [each.remedy for each in examined(place, "relay").findings]
    assert [each["command"] for each in status["next"]] == commands
    shown = invoke("inbox", "doctor", "--only", "relay", **environment_of(place))
    assert (shown.status, "\x1b" in shown.stdout, "[red]`$(id)'" in shown.stdout) == (1, False, True)


def test_a_pause_of_today_is_information_for_the_doctor_and_nothing_for_the_check(
    tmp_path: Path, database_url: str, engine: Engine
) -> None:
    start_a_relay(engine)
    pause = "INSERT INTO gate (kind, name, paused_at, paused_by) VALUES ('api', 'a', :at, 'kim')"
    run_sql(engine, pause, at=ago(days=2))
    place = installation(tmp_path, database_url)
    assert [(each.kind, each.level) for each in examined(place, "relay").findings] == [("gate_closed", "information")]
    for side, *words in (("inbox", "doctor", "--only", "relay"), ("relay", "status", "--check")):
        ended = invoke(side, *words, **environment_of(place))
        assert ended.status == 0, ended
