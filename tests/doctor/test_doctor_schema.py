"""Each change of a definition is found, with the statement that makes it again; what a DBA adds is no finding."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import Engine
from sqlalchemy.exc import DBAPIError

from tests.doctor.examining import changing, examined, found, installation, run_sql


@pytest.fixture
def changing_engine(postgres_database_url: str) -> Iterator[Engine]:
    with changing(postgres_database_url) as engine:
        yield engine


HEAD = "ux_open_delivery_head"

SQLITE_CHANGES = {
    "a row that keeps a place": (("DELETE FROM pruner",), ("row_missing", "pruner"), True),
    "a missing index": (("DROP INDEX ix_open_delivery_ready",), ("object_missing", "ix_open_delivery_ready"), True),
    "a changed index": (
        (f"DROP INDEX {HEAD}", f"CREATE INDEX {HEAD} ON open_delivery (route, lane) WHERE state = 'in_flight'"),
        ("object_changed", HEAD),
        True,
    ),
    "a missing trigger": (
        ("DROP TRIGGER delivery_log_refuses_update",),
        ("object_missing", "delivery_log_refuses_update"),
        True,
    ),
    "a changed view": (
        ("DROP VIEW backlog", "CREATE VIEW backlog AS SELECT route, 1 AS open FROM open_delivery"),
        ("object_changed", "backlog"),
        True,
    ),
    "a column too many": (("ALTER TABLE gate ADD COLUMN extra TEXT",), ("object_changed", "gate"), False),
}
POSTGRES_CHANGES = {
    "a row to lock": (("DELETE FROM payload_lock",), ("row_missing", "payload_lock"), True),
    "a missing index": (("DROP INDEX ix_open_delivery_ready",), ("object_missing", "ix_open_delivery_ready"), True),
    "an index's predicate": (
        (f"DROP INDEX {HEAD}", f"CREATE UNIQUE INDEX {HEAD} ON open_delivery (route, lane) WHERE state = 'in_flight'"),
        ("object_changed", HEAD),
        True,
    ),
    "an index that is not unique": (
        (
            f"DROP INDEX {HEAD}",
            f"CREATE INDEX {HEAD} ON open_delivery (route, lane) WHERE state IN ('ready', 'in_flight', 'blocked')",
        ),
        ("object_changed", HEAD),
        True,
    ),
    "a disabled trigger": (
        ("ALTER TABLE delivery_log DISABLE TRIGGER delivery_log_deletes_old_attempts_only",),
        ("trigger_disabled", "delivery_log_deletes_old_attempts_only"),
        True,
    ),
    "a missing trigger": (
        ("DROP TRIGGER delivery_log_deletes_old_attempts_only ON delivery_log",),
        ("object_missing", "delivery_log_deletes_old_attempts_only"),
        True,
    ),
    "a missing view": (("DROP VIEW backlog",), ("object_missing", "backlog"), True),
    "a missing constraint": (
        ("ALTER TABLE order_lock DROP CONSTRAINT ck_order_lock_one_row",),
        ("object_missing", "ck_order_lock_one_row"),
        False,
    ),
    "a constraint that holds only for new rows": (
        (
            "ALTER TABLE order_lock DROP CONSTRAINT ck_order_lock_one_row",
            "ALTER TABLE order_lock ADD CONSTRAINT ck_order_lock_one_row CHECK (id = 1) NOT VALID",
        ),
        ("object_changed", "ck_order_lock_one_row"),
        True,
    ),
    "a type": (("ALTER TABLE gate ALTER COLUMN calls TYPE bigint",), ("object_changed", "gate.calls"), False),
    "a column that may be empty": (
        ("ALTER TABLE gate ALTER COLUMN calls DROP NOT NULL",),
        ("object_changed", "gate.calls"),
        False,
    ),
}


@pytest.mark.parametrize("change", SQLITE_CHANGES)
def test_a_change_on_sqlite_is_found_and_its_statement_mends_it(
    change: str, tmp_path: Path, sqlite_database_url: str
) -> None:
    with changing(sqlite_database_url) as engine:
        _is_found_and_mended(tmp_path, engine, *SQLITE_CHANGES[change])


@pytest.mark.parametrize("change", POSTGRES_CHANGES)
def test_a_change_on_postgres_is_found_and_its_statement_mends_it(
    change: str, tmp_path: Path, postgres_database_url: str
) -> None:
    with changing(postgres_database_url) as engine:
        _is_found_and_mended(tmp_path, engine, *POSTGRES_CHANGES[change])


def _is_found_and_mended(
    folder: Path, engine: Engine, statements: tuple[str, ...], expected: tuple[str, str], is_mended: bool
) -> None:
    run_sql(engine, *statements)
    url = engine.url.render_as_string(hide_password=False)
    assert found(installation(folder, url), "schema") == [expected]
    (finding,) = examined(installation(folder, url), "schema").findings
    if is_mended:
        for statement in _statements_of(finding.mend, engine):
            _run_alone(engine, statement)
        assert found(installation(folder, url), "schema") == []


def _run_alone(engine: Engine, statement: str) -> None:
    """Run a statement that may be one of those that no transaction can hold."""
    if engine.dialect.name == "sqlite":
        run_sql(engine, statement.replace(":", "\\:"))
        return
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.exec_driver_sql(statement)


def _statements_of(mend: str, engine: Engine) -> list[str]:
    """A trigger of SQLite has semicolons inside; one statement at a time is executed there."""
    if engine.dialect.name != "sqlite":
        return [part for part in mend.split("; ") if part]
    first, _, rest = mend.partition("; ") if mend.startswith("DROP") else ("", "", mend)
    return [each for each in (first, rest) if each]


def test_a_view_with_another_condition_is_found_and_mended(
    tmp_path: Path, postgres_database_url: str, changing_engine: Engine
) -> None:
    definition = "SELECT pg_get_viewdef('backlog'::regclass)"
    with changing_engine.begin() as connection:
        as_it_was = str(connection.exec_driver_sql(definition).scalar_one()).rstrip(";")
        connection.exec_driver_sql(
            f"CREATE OR REPLACE VIEW backlog AS SELECT * FROM ({as_it_was}) b WHERE b.route <> 'hidden'"
        )
    (finding,) = examined(installation(tmp_path, postgres_database_url), "schema").findings
    assert (finding.name, finding.subject) == ("object_changed", "backlog")
    run_sql(changing_engine, *(part.rstrip(";") for part in finding.mend.split("; ", 1)))
    assert found(installation(tmp_path, postgres_database_url), "schema") == []


def test_a_function_with_another_body_is_found_and_mended(
    tmp_path: Path, postgres_database_url: str, changing_engine: Engine
) -> None:
    with changing_engine.begin() as connection:
        name, whole = connection.exec_driver_sql(
            "SELECT p.proname, pg_get_functiondef(p.oid) FROM pg_proc p JOIN pg_trigger t ON t.tgfoid = p.oid"
            " WHERE t.tgname = 'delivery_log_deletes_old_attempts_only'"
        ).one()
        connection.exec_driver_sql(whole.replace("BEGIN", "BEGIN\n    RETURN NULL;", 1))
    place = installation(tmp_path, postgres_database_url)
    assert found(place, "schema") == [("object_changed", name)]
    (finding,) = examined(place, "schema").findings
    with changing_engine.begin() as connection:
        connection.exec_driver_sql(finding.mend)
    assert found(installation(tmp_path, postgres_database_url), "schema") == []


def test_a_function_without_its_search_path_is_found(
    tmp_path: Path, postgres_database_url: str, changing_engine: Engine
) -> None:
    run_sql(changing_engine, "ALTER FUNCTION inbox_is_append_only() RESET search_path")
    place = installation(tmp_path, postgres_database_url)
    assert found(place, "schema") == [("object_changed", "inbox_is_append_only")]
    run_sql(changing_engine, "ALTER FUNCTION inbox_is_append_only() SECURITY DEFINER SET search_path = public")
    assert found(place, "schema") == [("object_changed", "inbox_is_append_only")]


def test_an_index_that_could_not_be_made_is_found(
    tmp_path: Path, postgres_database_url: str, changing_engine: Engine
) -> None:
    run_sql(changing_engine, *(f"INSERT INTO gate (kind, name) VALUES ('route', '{name}')" for name in "ab"))
    with (
        changing_engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection,
        pytest.raises(DBAPIError),
    ):
        connection.exec_driver_sql('CREATE UNIQUE INDEX CONCURRENTLY "of a ""DBA" ON gate (kind)')
    place = installation(tmp_path, postgres_database_url)
    (finding,) = examined(place, "schema").findings
    assert (finding.name, finding.mend) == ("index_invalid", 'REINDEX INDEX CONCURRENTLY "of a ""DBA";')


def test_an_index_and_a_view_of_a_dba_are_no_finding(tmp_path: Path, database_url: str, engine: Engine) -> None:
    run_sql(engine, "CREATE INDEX mine ON inbox (received_at)", "CREATE VIEW my_view AS SELECT 1 AS one")
    assert found(installation(tmp_path, database_url), "schema") == []
