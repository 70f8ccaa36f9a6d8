"""Migrations from an empty database build `inbox.db.schema` and `inbox.db.views`, compared by alembic and by text."""

from __future__ import annotations

import re

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import Connection, Engine, text

from inbox.db import migrate, views
from inbox.db.dialect import POSTGRES
from inbox.db.schema import metadata
from tests.migrations.ddl import COMPARED, Schema, differences, schema


def schema_of(engine: Engine) -> Schema:
    with engine.connect() as connection:
        return schema(connection)


def alembic_differences(connection: Connection) -> list[object]:
    context = MigrationContext.configure(connection, opts=COMPARED)
    return list(compare_metadata(context, metadata))


@pytest.fixture
def from_metadata(empty: Engine) -> Schema:
    metadata.create_all(empty)
    return schema_of(empty)


def test_alembic_finds_no_difference_between_the_migrations_and_the_metadata(engine: Engine) -> None:
    with engine.connect() as connection:
        assert alembic_differences(connection) == []


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
