"""Migrations from an empty database build what `inbox.db` declares, by alembic and by text, with every comment."""

from __future__ import annotations

import re

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import Engine, inspect, text

from inbox.db import migrate, views
from inbox.db.dialect import POSTGRES
from inbox.db.schema import metadata
from inbox.db.views import VIEWS
from tests.helpers.kinds import ON_POSTGRES, ON_SQLITE
from tests.helpers.reading import rows
from tests.migrations.ddl import COMPARED, Schema, differences, schema

# --- Migrations from an empty database build `inbox.db.schema` and `inbox.db.views`, compared by alembic and by text


def schema_of(engine: Engine) -> Schema:
    with engine.connect() as connection:
        return schema(connection)


@pytest.fixture
def from_metadata(empty: Engine) -> Schema:
    metadata.create_all(empty)
    return schema_of(empty)


def test_alembic_check_passes(engine: Engine) -> None:
    config = migrate._alembic()
    with engine.begin() as connection:
        config.attributes["connection"] = connection
        command.check(config)


def test_the_migrations_build_the_text_of_the_metadata(engine: Engine, from_metadata: Schema) -> None:
    migrated = schema_of(engine)
    assert {key: migrated.get(key) for key in from_metadata} == from_metadata
    assert differences(migrated, from_metadata) == []


def test_the_text_covers_everything_that_was_made(from_metadata: Schema, engine: Engine) -> None:
    kinds = {kind for kind, _ in from_metadata}
    named = {name.rpartition(".")[2] for _, name in from_metadata}
    indexes = {str(index.name) for table in metadata.tables.values() for index in table.indexes}
    others = set(re.findall(r"CREATE (?:VIEW|TRIGGER|FUNCTION) (\w+)", "".join(views.statements(engine.dialect.name))))

    assert {"delivery", "dead_letter", "backlog"} < others
    assert indexes | others <= {name.partition("(")[0] for name in named}
    if engine.dialect.name == POSTGRES:
        assert kinds == {
            *("column", "index", "constraint", "view", "trigger", "function", "comment", "storage", "sequence"),
        }
        constraints = {str(c.name) for table in metadata.tables.values() for c in table.constraints if c.name}
        assert constraints <= named
    else:
        assert kinds == {"table", "index", "view", "trigger"}
        assert set(metadata.tables) <= named


def test_both_make_the_rows_that_always_exist(engine: Engine, empty: Engine) -> None:
    metadata.create_all(empty)
    for made in (engine, empty):
        with made.connect() as connection:
            assert connection.scalars(text("SELECT id FROM order_lock")).all() == [1]
            assert connection.scalars(text("SELECT id FROM write_probe")).all() == [1]


# --- The comparison by text detects changes, including those that alembic's own comparison ignores


HEAD = "ux_open_delivery_head"
HEAD_IN_FLIGHT_ONLY = f"CREATE UNIQUE INDEX {HEAD} ON open_delivery (route, lane) WHERE state = 'in_flight'"
DROP_HEAD = f"DROP INDEX {HEAD}"

SQLITE_CHANGES = {
    "an index's predicate": ([DROP_HEAD, HEAD_IN_FLIGHT_ONLY], [("index", HEAD)]),
    "a missing view": (["DROP VIEW backlog"], [("view", "backlog")]),
    "a trigger's condition": (
        [
            "DROP TRIGGER delivery_log_refuses_update",
            (
                "CREATE TRIGGER delivery_log_refuses_update BEFORE UPDATE ON delivery_log WHEN OLD.id > 5"
                " BEGIN SELECT RAISE(ABORT, 'delivery_log is append-only'); END"
            ),
        ],
        [("trigger", "delivery_log_refuses_update")],
    ),
    "a column too many": (["ALTER TABLE gate ADD COLUMN extra TEXT"], [("table", "gate")]),
}

POSTGRES_CHANGES = {
    "an index's predicate": ([DROP_HEAD, HEAD_IN_FLIGHT_ONLY], [("index", HEAD)]),
    "a check": (
        [
            "ALTER TABLE delivery_log DROP CONSTRAINT ck_delivery_log_kind",
            "ALTER TABLE delivery_log ADD CONSTRAINT ck_delivery_log_kind CHECK (kind <> '')",
        ],
        [("constraint", "delivery_log.ck_delivery_log_kind")],
    ),
    "a view's condition": (
        [
            (
                "CREATE OR REPLACE VIEW dead_letter AS SELECT seq, route, NULL::text AS lane, state, source, entity_type,"
                " entity_id, event_type, action, occurred_at, received_at, attempts, last_fact_at AS died_at, last_fact AS cause,"
                " last_error AS error, last_status FROM delivery WHERE state = 'dead'"
            )
        ],
        [("view", "dead_letter")],
    ),
    "a disabled trigger": (
        ["ALTER TABLE inbox DISABLE TRIGGER inbox_is_not_truncated"],
        [("trigger", "inbox.inbox_is_not_truncated")],
    ),
    "a function's body": (
        [
            (
                "CREATE OR REPLACE FUNCTION inbox_is_not_truncated() RETURNS trigger LANGUAGE plpgsql AS"
                " $$ BEGIN RETURN NEW; END $$"
            )
        ],
        [("function", "inbox_is_not_truncated()")],
    ),
    "a missing comment": (["COMMENT ON COLUMN lane.seq IS NULL"], [("comment", "lane.seq")]),
    "a fillfactor": (["ALTER TABLE open_delivery SET (fillfactor = 100)"], [("storage", "open_delivery")]),
}


def test_a_changed_copy_is_seen(engine: Engine) -> None:
    """Each change is undone: both databases change a schema in a transaction."""
    changes = POSTGRES_CHANGES if engine.dialect.name == POSTGRES else SQLITE_CHANGES
    for change, (statements, expected) in changes.items():
        with engine.connect() as connection:
            before = schema(connection)
            for statement in statements:
                connection.execute(text(statement))
            seen = differences(before, schema(connection))
            connection.rollback()
        assert set(seen) <= set(expected), change  # Postgres 18 and later keep NOT NULL as a constraint too
        assert expected[0] in seen, change


def test_alembic_alone_would_not_see_two_heads_let_into_a_lane(engine: Engine) -> None:
    with engine.connect() as connection:
        for statement in (DROP_HEAD, HEAD_IN_FLIGHT_ONLY):
            connection.execute(text(statement))
        assert compare_metadata(MigrationContext.configure(connection, opts=COMPARED), metadata) == []


# --- Every table, column and view has a comment that a DBA finds, on SQLite in the text of the table


def test_the_metadata_has_a_comment_for_every_table_and_column_and_none_holds_what_would_end_it_on_sqlite() -> None:
    for table in metadata.sorted_tables:
        for item in (table, *table.c):
            assert item.comment, item
            assert "\n" not in item.comment, item


@ON_POSTGRES
def test_on_postgres_every_table_column_and_view_carries_its_comment(engine: Engine) -> None:
    with engine.connect() as connection:
        without = connection.scalars(
            text("""
SELECT relname FROM pg_class
WHERE relnamespace = 'public'::regnamespace AND relkind IN ('r', 'v')
  AND NOT relispartition AND obj_description(oid, 'pg_class') IS NULL
UNION ALL
SELECT c.relname || '.' || a.attname FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid
WHERE c.relnamespace = 'public'::regnamespace AND c.relkind IN ('r', 'v')
  AND NOT c.relispartition AND a.attnum > 0 AND NOT a.attisdropped
  AND col_description(c.oid, a.attnum) IS NULL
""")
        ).all()
    assert [name for name in without if not name.startswith("alembic_version")] == []


@ON_SQLITE
def test_on_sqlite_the_text_of_a_table_explains_it_and_each_column(engine: Engine) -> None:
    for table in metadata.sorted_tables:
        (found,) = rows(engine, "SELECT sql FROM sqlite_master WHERE name = :name", name=table.name)
        lines = [line.strip() for line in found["sql"].splitlines()]
        assert lines[0] == f"CREATE TABLE {table.name} ( -- {table.comment}"
        for column in table.c:
            (at,) = (n for n, line in enumerate(lines) if line.startswith(f"{column.name} "))
            assert lines[at - 1] == f"-- {column.comment}", column


def test_every_column_of_every_view_is_explained_in_the_order_of_the_view(engine: Engine) -> None:
    made = set(inspect(engine).get_view_names())
    assert made == {view.name for view in VIEWS}
    for view in VIEWS:
        assert [column["name"] for column in inspect(engine).get_columns(view.name)] == list(view.columns)
        assert all(view.columns.values())
