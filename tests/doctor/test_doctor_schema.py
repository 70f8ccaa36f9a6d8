"""Each change of a definition is found, with the statement that makes it again; what a DBA adds is no finding."""

from __future__ import annotations

from pathlib import Path

import pytest
from sqlalchemy import Engine

from tests.doctor.examining import found, installation, run_sql
from tests.helpers.databases import open_engine

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


def written(engine: Engine, change: str) -> str:
    """The statement of a change; of a view or function that is named alone, one that makes it anew with a part more."""
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
            run_sql(engine, written(engine, statement))
    assert found(installation(tmp_path, url), "schema") == [("schema_differs", subject)]


def test_an_index_and_a_view_of_a_dba_are_no_finding(tmp_path: Path, database_url: str, engine: Engine) -> None:
    run_sql(engine, "CREATE INDEX mine ON inbox (received_at)", "CREATE VIEW my_view AS SELECT 1 AS one")
    assert found(installation(tmp_path, database_url), "schema") == []
