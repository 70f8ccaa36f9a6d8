"""The target of a copy: empty or half copied, with the copy's position in it, and without its triggers meanwhile.

A half copied database has a revision that no program works with. The last transaction gives it the right one.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from sqlalchemy import Connection, Engine, inspect, text

from inbox.db import leaves, migrate, views
from inbox.db.copying.tables import CopiedTable, Key
from inbox.db.dialect import SQLITE
from inbox.db.engine import reading
from inbox.errors import ConfigError

PROGRESS = "copy_progress"
"""Table of the copy's state, only while it is unfinished."""

_AFTER = "after "
_MOST_LEAVES = 50
_SEED = re.compile(r"INSERT INTO (\w+)")


def seeded_tables(dialect: str) -> frozenset[str]:
    """Return the tables that have rows from the beginning."""
    return frozenset(found[1] for statement in views.statements(dialect) if (found := _SEED.match(statement.strip())))


def is_unfinished(engine: Engine, source: str, tables: Sequence[CopiedTable]) -> bool:
    """Return whether the database holds the unfinished copy of this source; else it is empty.

    Raises:
        ConfigError: it is neither, or of another version.
    """
    if _is_absent(engine):
        return False
    revision = migrate.revision_of(engine)
    if revision is None:
        return False
    if revision == migrate.UNFINISHED_COPY:
        with engine.connect() as connection, reading(connection).begin():
            other = _values(connection)["source"]
        if other != source:
            raise ConfigError(
                f"the target holds an unfinished copy of {other}: finish that one, or name an empty database"
            )
        return True
    migrate.require_current(engine)
    with engine.connect() as connection, reading(connection).begin():
        for table in tables:
            if table.name in seeded_tables(engine.dialect.name):
                continue
            if connection.execute(text(f"SELECT 1 FROM {table.name} LIMIT 1")).first():
                rows = connection.execute(text(f"SELECT count(*) FROM {table.name}")).scalar_one()
                raise ConfigError(
                    f"the target is not empty: {table.name} has {rows:,} {'row' if rows == 1 else 'rows'}."
                    " Name an empty database; a copy never adds to another installation"
                )
    return False


def _is_absent(engine: Engine) -> bool:
    """Return whether it is a SQLite file to be made: looking into it would make it."""
    if engine.dialect.name != SQLITE or not engine.url.database:
        return False
    path = Path(engine.url.database)
    return path.parent.is_dir() and not path.exists()


def begin(engine: Engine, source: str, tables: Sequence[CopiedTable], last_seq: int = 0) -> None:
    """Make an empty database the unfinished copy of a source: migrated, without triggers and without the first rows.

    Payloads up to `last_seq` get leaves, so that retention can give back their space as it does of others.
    """
    migrate.upgrade(engine)
    with engine.begin() as connection:
        revision = connection.execute(text("SELECT version_num FROM alembic_version")).scalar_one()
        connection.execute(text(f"CREATE TABLE {PROGRESS} (name text PRIMARY KEY, value text NOT NULL)"))
        for lo, hi in [] if engine.dialect.name == SQLITE else _leaves(last_seq):
            connection.execute(text("SELECT inbox_payload_add_leaf(:lo, :hi)"), {"lo": lo, "hi": hi})
        _put(connection, "triggers", json.dumps(_suspend_triggers(connection, tables)))
        for name in seeded_tables(engine.dialect.name):
            connection.execute(text(f"DELETE FROM {name}"))
        _put(connection, "revision", revision)
        _put(connection, "source", source)
        connection.execute(text("UPDATE alembic_version SET version_num = :n"), {"n": migrate.UNFINISHED_COPY})


class CopyPosition(NamedTuple):
    """The place of a copy in a table."""

    rows: int
    after: Key | None
    """Key of the last copied row."""


def positions(connection: Connection) -> dict[str, CopyPosition]:
    """Return the place of the copy in each table that it has begun."""
    found = {}
    for name, value in _values(connection).items():
        if name.startswith(_AFTER):
            rows, after = json.loads(value)
            found[name.removeprefix(_AFTER)] = CopyPosition(rows, tuple(after))
    return found


def remember(connection: Connection, table: CopiedTable, rows: int, after: Key) -> None:
    """Note the place of the copy, in the transaction that writes the rows before it."""
    _put(connection, f"{_AFTER}{table.name}", json.dumps([rows, after]))


def finish(connection: Connection, tables: Sequence[CopiedTable], counters: Mapping[str, int]) -> None:
    """Make the copy a database that programs work with. `counters` has the largest number that each table ever gave."""
    kept = _values(connection)
    for table in tables:
        if table.counter and counters.get(table.name):
            _set_counter(connection, table.name, table.counter, counters[table.name])
    if connection.dialect.name == SQLITE:
        for statement in json.loads(kept["triggers"]):
            connection.exec_driver_sql(statement)
    else:
        for table in tables:
            connection.execute(text(f"ALTER TABLE {table.name} ENABLE TRIGGER USER"))
            connection.execute(text(f"ANALYZE {table.name}"))
    connection.execute(text(f"DROP TABLE {PROGRESS}"))
    connection.execute(text("UPDATE alembic_version SET version_num = :n"), {"n": kept["revision"]})


def counters(connection: Connection, tables: Sequence[CopiedTable]) -> dict[str, int]:
    """Return the largest number that each table gave, even where its row has been deleted since."""
    counted = [table for table in tables if table.counter]
    if connection.dialect.name == SQLITE:
        given = {row.name: row.seq for row in connection.execute(text("SELECT name, seq FROM sqlite_sequence"))}
        return {table.name: given[table.name] for table in counted if table.name in given}
    found = {}
    for table in counted:
        name = connection.execute(_SEQUENCE, {"table": table.name, "column": table.counter}).scalar_one()
        last, is_called = connection.execute(text(f"SELECT last_value, is_called FROM {name}")).one()
        if is_called:
            found[table.name] = int(last)
    return found


def _leaves(last_seq: int) -> list[tuple[int, int]]:
    """Return the ranges of the leaves between the first one and a number; each ends before its second number."""
    size = min(max(leaves.FIRST_LEAF, last_seq // _MOST_LEAVES), leaves.MOST_EVENTS)
    return [(first, first + size) for first in range(1 + leaves.FIRST_LEAF, last_seq + 1, size)]


def _set_counter(connection: Connection, table: str, column: str, last: int) -> None:
    if connection.dialect.name == SQLITE:
        given = {"name": table, "last": last}
        connection.execute(text("DELETE FROM sqlite_sequence WHERE name = :name"), given)
        connection.execute(text("INSERT INTO sqlite_sequence (name, seq) VALUES (:name, :last)"), given)
        return
    name = connection.execute(_SEQUENCE, {"table": table, "column": column}).scalar_one()
    connection.execute(text("SELECT setval(CAST(:name AS regclass), :last)"), {"name": name, "last": last})


def _suspend_triggers(connection: Connection, tables: Sequence[CopiedTable]) -> list[str]:
    """Switch the triggers off. Returns the statements that make them again, where they had to be dropped."""
    if connection.dialect.name != SQLITE:
        for table in tables:
            connection.execute(text(f"ALTER TABLE {table.name} DISABLE TRIGGER USER"))
        return []
    found = connection.execute(text("SELECT name, tbl_name, sql FROM sqlite_master WHERE type = 'trigger'")).all()
    ours = [row for row in found if row.tbl_name in {table.name for table in tables}]
    for row in ours:
        connection.execute(text(f"DROP TRIGGER {row.name}"))
    return [row.sql for row in ours]


def _values(connection: Connection) -> dict[str, str]:
    if not inspect(connection).has_table(PROGRESS):
        raise ConfigError(f"the target holds an unfinished copy without its table {PROGRESS}: drop the database")
    return {row.name: row.value for row in connection.execute(text(f"SELECT name, value FROM {PROGRESS}"))}


def _put(connection: Connection, name: str, value: str) -> None:
    statement = f"""
INSERT INTO {PROGRESS} (name, value) VALUES (:name, :value) ON CONFLICT (name) DO UPDATE SET value = excluded.value
"""
    connection.execute(text(statement), {"name": name, "value": value})


_SEQUENCE = text("SELECT pg_get_serial_sequence(:table, :column)")
