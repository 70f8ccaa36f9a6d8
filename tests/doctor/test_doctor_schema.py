"""Each change of a definition is found, with the statement that makes it again; what a DBA adds is no finding."""

from __future__ import annotations

from pathlib import Path

import pytest
from sqlalchemy import Engine

from tests.doctor.examining import found, installation, run_sql
from tests.helpers.databases import opened

HEAD = "ux_open_delivery_head"

SQLITE_CHANGES = {
    "a row that keeps a place": (("DELETE FROM pruner",), "pruner"),
    "a missing index": (("DROP INDEX ix_open_delivery_ready",), "ix_open_delivery_ready"),
    "a changed index": (
        (f"DROP INDEX {HEAD}", f"CREATE INDEX {HEAD} ON open_delivery (route, lane) WHERE state = 'in_flight'"),
        HEAD,
    ),
    "a missing trigger": (("DROP TRIGGER delivery_log_refuses_update",), "delivery_log_refuses_update"),
    "a changed view": (
        ("DROP VIEW backlog", "CREATE VIEW backlog AS SELECT route, 1 AS open FROM open_delivery"),
        "backlog",
    ),
    "a column too many": (("ALTER TABLE gate ADD COLUMN extra TEXT",), "gate"),
}
POSTGRES_CHANGES = {
    "a row to lock": (("DELETE FROM payload_lock",), "payload_lock"),
    "an index's predicate": (
        (f"DROP INDEX {HEAD}", f"CREATE UNIQUE INDEX {HEAD} ON open_delivery (route, lane) WHERE state = 'in_flight'"),
        HEAD,
    ),
    "an index that is not unique": (
        (
            f"DROP INDEX {HEAD}",
            f"CREATE INDEX {HEAD} ON open_delivery (route, lane) WHERE state IN ('ready', 'in_flight', 'blocked')",
        ),
        HEAD,
    ),
    "an index that is not valid": (
        ("UPDATE pg_index SET indisvalid = false WHERE indexrelid = CAST('ix_relay_command_open' AS regclass)",),
        "ix_relay_command_open",
    ),
    "a disabled trigger": (
        ("ALTER TABLE delivery_log DISABLE TRIGGER delivery_log_deletes_old_attempts_only",),
        "delivery_log_deletes_old_attempts_only",
    ),
    "a constraint that holds only for new rows": (
        (
            "ALTER TABLE order_lock DROP CONSTRAINT ck_order_lock_one_row",
            "ALTER TABLE order_lock ADD CONSTRAINT ck_order_lock_one_row CHECK (id = 1) NOT VALID",
        ),
        "ck_order_lock_one_row",
    ),
    "a type": (("ALTER TABLE gate ALTER COLUMN calls TYPE bigint",), "gate.calls"),
    "a column that may be empty": (("ALTER TABLE gate ALTER COLUMN calls DROP NOT NULL",), "gate.calls"),
    "a function without its search_path": (
        ("ALTER FUNCTION inbox_is_not_truncated() RESET search_path",),
        "inbox_is_not_truncated",
    ),
    "a function of another's rights": (
        ("ALTER FUNCTION inbox_is_not_truncated() SECURITY DEFINER",),
        "inbox_is_not_truncated",
    ),
}


@pytest.mark.parametrize(
    ("kind", "change"),
    [("sqlite", change) for change in SQLITE_CHANGES] + [("postgres", change) for change in POSTGRES_CHANGES],
)
def test_a_change_is_found(kind: str, change: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    url = request.getfixturevalue(f"{kind}_database_url")
    statements, subject = (SQLITE_CHANGES if kind == "sqlite" else POSTGRES_CHANGES)[change]
    with opened(url) as engine:
        run_sql(engine, *statements)
    assert found(installation(tmp_path, url), "schema") == [("schema_differs", subject)]


def test_a_view_with_another_condition_is_found(
    tmp_path: Path, postgres_database_url: str, postgres_engine: Engine
) -> None:
    definition = "SELECT pg_get_viewdef('backlog'::regclass)"
    with postgres_engine.begin() as connection:
        as_it_was = str(connection.exec_driver_sql(definition).scalar_one()).rstrip(";")
        connection.exec_driver_sql(
            f"CREATE OR REPLACE VIEW backlog AS SELECT * FROM ({as_it_was}) b WHERE b.route <> 'hidden'"
        )
    assert found(installation(tmp_path, postgres_database_url), "schema") == [("schema_differs", "backlog")]


def test_a_function_with_another_body_is_found(
    tmp_path: Path, postgres_database_url: str, postgres_engine: Engine
) -> None:
    with postgres_engine.begin() as connection:
        name, whole = connection.exec_driver_sql(
            "SELECT p.proname, pg_get_functiondef(p.oid) FROM pg_proc p JOIN pg_trigger t ON t.tgfoid = p.oid"
            " WHERE t.tgname = 'delivery_log_deletes_old_attempts_only'"
        ).one()
        connection.exec_driver_sql(whole.replace("BEGIN", "BEGIN\n    RETURN NULL;", 1))
    place = installation(tmp_path, postgres_database_url)
    assert found(place, "schema") == [("schema_differs", name)]


def test_an_index_and_a_view_of_a_dba_are_no_finding(tmp_path: Path, database_url: str, engine: Engine) -> None:
    run_sql(engine, "CREATE INDEX mine ON inbox (received_at)", "CREATE VIEW my_view AS SELECT 1 AS one")
    assert found(installation(tmp_path, database_url), "schema") == []
