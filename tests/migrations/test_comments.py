"""Every table, column and view has a comment that a DBA finds, on SQLite in the text of the table."""

from __future__ import annotations

import pytest
from sqlalchemy import Engine, Table, create_engine, text

from inbox.db import engine as engines
from inbox.db.schema import metadata

TABLES = [pytest.param(table, id=table.name) for table in metadata.sorted_tables]


@pytest.mark.parametrize("table", TABLES)
def test_the_metadata_has_a_comment_for_every_table_and_column(table: Table) -> None:
    assert table.comment
    assert [column.name for column in table.c if not column.comment] == []


@pytest.mark.parametrize("table", TABLES)
def test_no_comment_holds_what_would_end_it_on_sqlite(table: Table) -> None:
    assert not any("\n" in (item.comment or "") for item in (table, *table.c))


def test_on_postgres_every_table_column_and_view_carries_its_comment(postgres_database_url: str) -> None:
    engine = engines.connect(postgres_database_url, application="tests")
    with engine.connect() as connection:
        without = connection.scalars(
            text("""
SELECT relname FROM pg_class
WHERE relnamespace = 'public'::regnamespace AND relkind IN ('r', 'v') AND obj_description(oid, 'pg_class') IS NULL
UNION ALL
SELECT c.relname || '.' || a.attname FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid
WHERE c.relnamespace = 'public'::regnamespace AND c.relkind = 'r' AND a.attnum > 0 AND NOT a.attisdropped
  AND col_description(c.oid, a.attnum) IS NULL
""")
        ).all()
    engine.dispose()
    assert [name for name in without if not name.startswith("alembic_version")] == []


@pytest.mark.parametrize("table", TABLES)
def test_on_sqlite_the_text_of_a_table_explains_it_and_each_column(sqlite_database_url: str, table: Table) -> None:
    engine = create_engine(sqlite_database_url)
    lines = [line.strip() for line in _ddl(engine, table.name).splitlines()]
    engine.dispose()

    assert lines[0] == f"CREATE TABLE {table.name} ( -- {table.comment}"
    for column in table.c:
        (at,) = (n for n, line in enumerate(lines) if line.startswith(f"{column.name} "))
        assert lines[at - 1] == f"-- {column.comment}"


def _ddl(engine: Engine, table: str) -> str:
    with engine.connect() as connection:
        return str(connection.scalar(text("SELECT sql FROM sqlite_master WHERE name = :name"), {"name": table}))
