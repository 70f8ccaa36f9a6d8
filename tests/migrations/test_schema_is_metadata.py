"""Migrations from an empty database build what `inbox.db` declares, by alembic and by text, with every comment."""

from __future__ import annotations

from alembic import command
from sqlalchemy import Engine, inspect, text

from inbox.db import migrate
from inbox.db.schema import metadata
from inbox.db.views import VIEWS
from tests.helpers.databases import ON_POSTGRES, ON_SQLITE
from tests.helpers.tables import rows
from tests.migrations.ddl import differences, schema_of

# --- Migrations from an empty database build `inbox.db.schema` and `inbox.db.views`, compared by alembic and by text


def test_alembic_check_passes(engine: Engine) -> None:
    config = migrate._alembic()
    with engine.begin() as connection:
        config.attributes["connection"] = connection
        command.check(config)


def test_the_migrations_build_the_text_and_the_rows_of_the_metadata(engine: Engine, empty: Engine) -> None:
    metadata.create_all(empty)
    assert differences(schema_of(engine), schema_of(empty)) == []
    for made in (engine, empty):
        for table in ("order_lock", "write_probe"):
            assert rows(made, f"SELECT id FROM {table}") == [{"id": 1}]


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
