"""Findings in the database's settings, sequences, rights and schema, findings about relays, and the report."""

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
from relay.doctor.examinations import EXAMINATIONS
from relay.store.nodes import hash_config
from tests.doctor.examining import (
    HOST,
    all_findings,
    environment_of,
    examine,
    findings_of,
    installation,
    run_sql,
    start_a_relay,
)
from tests.helpers.databases import grant_roles, open_engine
from tests.helpers.processes import invoke
from tests.helpers.relaying import give_up
from tests.helpers.webhooks import config_text, moment

HOSTILE = "a\x1b]0;owned\x07 [red]`$(id)'"


def ago(**span: float) -> str:
    return time_text(SystemClock().now() - timedelta(**span))


def test_settings_that_a_guarantee_needs_are_verified(
    tmp_path: Path, postgres_database_url: str, postgres_engine: Engine
) -> None:
    place = installation(tmp_path, postgres_database_url)
    of_the_owner = {"fsync", "full_page_writes"}  # of the tests' Postgres, which does not sync its files
    assert {subject for kind, subject in findings_of(place, "durability") if kind == "setting_doubtful"} == of_the_owner
    run_sql(
        postgres_engine,
        "CREATE FUNCTION at_login() RETURNS event_trigger LANGUAGE plpgsql AS"
        " $$ BEGIN PERFORM set_config('synchronous_commit', 'off', false); END $$",
        "CREATE EVENT TRIGGER at_login ON login EXECUTE FUNCTION at_login()",
    )
    lost = all_findings(installation(tmp_path, postgres_database_url), "durability")["setting_lost"].sentence
    assert lost.startswith("the database has synchronous_commit = off")


def test_a_sequence_behind_its_table_is_found_and_the_remedy_repairs_it(
    tmp_path: Path, postgres_database_url: str, postgres_engine: Engine
) -> None:
    alert = "INSERT INTO alert (id, at, kind, subject, firing, detail) VALUES (70, now(), 'k', 's', false, '{}')"
    run_sql(postgres_engine, alert)
    place = installation(tmp_path, postgres_database_url)
    assert "the sequence public.alert_id_seq is behind" in all_findings(place, "durability")["setting_lost"].sentence
    run_sql(postgres_engine, all_findings(place, "durability")["setting_lost"].remedy)
    assert "setting_lost" not in all_findings(place, "durability")


def test_stored_times_in_the_future_are_found(tmp_path: Path, database_url: str, engine: Engine) -> None:
    insert = (
        "INSERT INTO delivery_log (at, seq, route, kind, state, attempt, detail)"
        " VALUES (:at, 1, 'r', 'delivered', 'ended', 1, '{}')"
    )
    run_sql(engine, insert, at=ago(hours=-1))
    assert ("clock_went_back", "delivery_log.at") in findings_of(installation(tmp_path, database_url), "relay")


def test_an_owner_without_a_transaction_timeout_is_found_until_the_roles_are_made(
    tmp_path: Path, postgres_database_url: str, postgres_engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    prefix = f"limit{os.getpid()}"
    monkeypatch.setattr(migrate, "DEFAULT_PREFIX", prefix)  # all databases of the server share its roles
    place = installation(tmp_path, postgres_database_url)
    with monkeypatch.context() as patch:
        patch.setattr(migrate, "lacking_rights", lambda _engine: ["mine"])
        assert findings_of(place, "rights") == [("rights_lacking", "mine")]
    assert findings_of(place, "rights") == []  # where there are no roles
    with grant_roles(postgres_database_url, prefix) as roles:
        assert findings_of(place, "rights") == []
        owner = postgres_engine.url.username
        run_sql(postgres_engine, f'ALTER ROLE "{owner}" IN DATABASE "{postgres_engine.url.database}" RESET ALL')
        assert findings_of(place, "rights") == [("owner_unlimited", owner)]
        roles.grant()
        assert findings_of(place, "rights") == []


# --- relays, and conditions that need an operator


def test_a_relay_of_another_version_or_configuration_is_found(
    tmp_path: Path, database_url: str, engine: Engine
) -> None:
    place = installation(tmp_path, database_url)
    start_a_relay(engine, version="'0.0.9'", config_hash=f"'{hash_config(place.config)}'")
    start_a_relay(engine, "r2", host="elsewhere", config_hash="'other'")
    assert sorted(findings_of(place, "relays")) == [
        ("configuration_changed", "relay elsewhere pid 4711"),
        ("version_differs", f"relay {HOST} pid 4711"),
    ]


def test_the_doctor_and_the_status_report_the_same_conditions(
    tmp_path: Path, database_url: str, engine: Engine
) -> None:
    config = config_text(database_url).replace("{", "{{").replace("}", "}}")
    give_up(engine, database_url, [("u1", moment(1)), ("u2", moment(2))])
    pause = "INSERT INTO gate (kind, name, paused_at, paused_by, pause_reason) VALUES ('api', 'a', :at, 'kim', :why)"
    run_sql(engine, pause, at=ago(days=4), why=HOSTILE)
    place = installation(tmp_path, database_url, config=config)
    kinds = [kind for kind, _ in findings_of(place, "relay")]
    assert kinds == ["no_relay", "gate_closed", "delivery_dead"]
    dead = all_findings(place, "relay")["delivery_dead"]
    assert (dead.sentence, dead.remedy) == ("route everything: 2 deliveries are dead", "relay dead --route everything")
    assert all(each.why and each.remedy for each in examine(place, "relay").findings)
    status = json.loads(invoke("relay", "status", "--json", **environment_of(place)).stdout)
    commands = [each.remedy for each in examine(place, "relay").findings]
    assert [each["command"] for each in status["next"]] == commands
    shown = invoke("inbox", "doctor", "--only", "relay", **environment_of(place))
    assert (shown.status, "\x1b" in shown.stdout, "[red]`$(id)'" in shown.stdout) == (1, False, True)


# --- Changes of the schema are found; additional indexes and views are not


HEAD, TRIGGER = "ux_open_delivery_head", "delivery_log_deletes_old_attempts_only"
FUNCTION = "inbox_is_not_truncated"

OTHER_HEAD = f"CREATE {{}}INDEX {HEAD} ON open_delivery (route, lane) WHERE state = 'in_flight'"
CHANGES = {
    "a row that keeps a place": ("sqlite", ("DELETE FROM pruner",), "pruner"),
    "a missing index": ("sqlite", ("DROP INDEX ix_open_delivery_ready",), "ix_open_delivery_ready"),
    "a changed index": ("sqlite", (f"DROP INDEX {HEAD}", OTHER_HEAD.format("")), HEAD),
    "a missing trigger": ("sqlite", ("DROP TRIGGER delivery_log_refuses_update",), "delivery_log_refuses_update"),
    "a changed view": (
        "sqlite",
        ("DROP VIEW backlog", "CREATE VIEW backlog AS SELECT 1 AS open"),
        "backlog",
    ),
    "a column too many": ("sqlite", ("ALTER TABLE gate ADD COLUMN extra TEXT",), "gate"),
    "a row to lock": ("postgres", ("DELETE FROM payload_lock",), "payload_lock"),
    "an index's predicate": ("postgres", (f"DROP INDEX {HEAD}", OTHER_HEAD.format("UNIQUE ")), HEAD),
    "an index that is not unique": (
        "postgres",
        (f"DROP INDEX {HEAD}", OTHER_HEAD.format("").replace("= 'in_flight'", "IN ('ready', 'in_flight', 'blocked')")),
        HEAD,
    ),
    "an index that is not valid": (
        "postgres",
        ("UPDATE pg_index SET indisvalid = false WHERE indexrelid = CAST('ix_relay_command_open' AS regclass)",),
        "ix_relay_command_open",
    ),
    "a disabled trigger": ("postgres", (f"ALTER TABLE delivery_log DISABLE TRIGGER {TRIGGER}",), TRIGGER),
    "a constraint that holds only for new rows": (
        "postgres",
        (
            "ALTER TABLE order_lock DROP CONSTRAINT ck_order_lock_one_row",
            "ALTER TABLE order_lock ADD CONSTRAINT ck_order_lock_one_row CHECK (id = 1) NOT VALID",
        ),
        "ck_order_lock_one_row",
    ),
    "a type": ("postgres", ("ALTER TABLE gate ALTER COLUMN calls TYPE bigint",), "gate.calls"),
    "a column that may be empty": ("postgres", ("ALTER TABLE gate ALTER COLUMN calls DROP NOT NULL",), "gate.calls"),
    "a function without its search_path": ("postgres", (f"ALTER FUNCTION {FUNCTION}() RESET search_path",), FUNCTION),
    "a function of another's rights": ("postgres", (f"ALTER FUNCTION {FUNCTION}() SECURITY DEFINER",), FUNCTION),
    "a view with another condition": ("postgres", ("backlog",), "backlog"),
    "a function with another body": ("postgres", (FUNCTION,), FUNCTION),
}


def write_change(engine: Engine, change: str) -> str:
    """Return the statement of a change; for the name of a view or function, one that replaces it by an extended one."""
    if " " in change:
        return change
    with engine.begin() as connection:
        if change == FUNCTION:
            query = f"SELECT pg_get_functiondef('{change}'::regproc)"
            return str(connection.exec_driver_sql(query).scalar_one()).replace("BEGIN", "BEGIN\n    RETURN NULL;", 1)
        view = str(connection.exec_driver_sql(f"SELECT pg_get_viewdef('{change}'::regclass)").scalar_one()).rstrip(";")
        return f"CREATE OR REPLACE VIEW {change} AS SELECT * FROM ({view}) b WHERE b.route <> 'hidden'"


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_is_found(change: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    kind, statements, subject = CHANGES[change]
    url = request.getfixturevalue(f"{kind}_database_url")
    with open_engine(url) as engine:
        for statement in statements:
            run_sql(engine, write_change(engine, statement))
    assert findings_of(installation(tmp_path, url), "schema") == [("schema_differs", subject)]


def test_an_index_and_a_view_of_a_dba_are_ignored(tmp_path: Path, database_url: str, engine: Engine) -> None:
    run_sql(engine, "CREATE INDEX mine ON inbox (received_at)", "CREATE VIEW my_view AS SELECT 1 AS one")
    assert findings_of(installation(tmp_path, database_url), "schema") == []


# --- The report of `inbox doctor`


def test_every_kind_of_finding_has_a_test() -> None:
    scenes = "".join(path.read_text(encoding="utf-8") for path in Path(__file__).parent.glob("test_*.py"))
    kinds = [kind.name for each in EXAMINATIONS if each.name != "relay" for kind in each.kinds]
    assert [name for name in kinds if f'"{name}"' not in scenes] == []
