"""Copies an installation into an empty database, and compares both ends: in one transaction of the target.

An interrupted copy leaves nothing behind, except empty tables. Nothing writes to the source meanwhile, so that every table
is of the same moment. Both ends are compared by their numbers of rows, and by a hash that doesn't depend on their order.
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

import msgspec
import psycopg
from sqlalchemy import (
    ColumnElement,
    Connection,
    Engine,
    LargeBinary,
    Row,
    Table,
    func,
    literal,
    select,
    text,
    true,
    tuple_,
)
from sqlalchemy.exc import DBAPIError

from inbox.db import leaves, migrate
from inbox.db.dialect import SQLITE, Sql, error_text, is_lock_wait
from inbox.db.engine import checkpoint, reading, snapshot
from inbox.db.schema import metadata
from inbox.db.views import ROWS
from inbox.errors import ConfigError, CopyFailed
from inbox.events.states import GONE_SECONDS

CHUNK_ROWS = 1000
CHUNK_BYTES = 4 * 1024 * 1024
"""Bodies of a chunk; a single one may be larger."""
_MOST_LEAVES = 50
_PROBE_SECONDS = 0.5

Report = Callable[[str, str, int], None]
"""Told about each chunk: the step (`copying` or `comparing`), the table, and the rows done so far."""
Rows = Sequence[Row[Any]]


class CopiedTable(msgspec.Struct, frozen=True):
    """A table that is the same on both ends."""

    table: str
    rows: int
    hash: str
    """The sum of the SHA-256 of its rows, equal on both ends."""


def plan(source: Engine, target: Engine) -> dict[str, int]:
    """Count the rows of each table of the source.

    Raises:
        ConfigError: the target is not empty, or of another version.
    """
    path = Path(target.url.database or "")
    is_absent = (
        target.dialect.name == SQLITE and path.parent.is_dir() and not path.exists()
    )  # a look would make the file
    if not is_absent and migrate.revision_of(target) is not None:
        migrate.require_current(target)
        with target.connect() as connection, reading(connection).begin():
            _require_empty(connection)
    with source.connect() as connection, snapshot(connection).begin():
        return {name: _count(connection, table) for name, table in metadata.tables.items()}


def running_programs(engine: Engine) -> list[str]:
    """List the relays that work on the database, the receivers that Postgres knows, and other programs with a SQLite file open."""
    sql = Sql(engine.dialect.name)
    silent = sql.seconds_between("heartbeat_at", sql.now)
    relays = text(f"""
SELECT host, pid FROM relay_node WHERE stopped_at IS NULL AND {silent} <= {GONE_SECONDS} ORDER BY host, pid
""")
    with engine.connect() as connection, reading(connection).begin():
        found = [f"relay {row.host} pid {row.pid}" for row in connection.execute(relays, {"now": None})]
        if sql.is_postgres:
            found += [f"receiver with the session pid {row.pid}" for row in connection.execute(_RECEIVERS)]
    engine.dispose()  # our own connections keep a SQLite file open too
    if not sql.is_postgres and not found and not _is_alone(engine.url.database or ""):
        found.append("program that has the file open (`fuser` names its pid)")
    return found


def copy(source: Engine, target: Engine, report: Report) -> list[CopiedTable]:
    """Copy everything into an empty target.

    Raises:
        ConfigError: the target is not empty, or another program writes to one of both.
        CopyFailed: a row can't be copied, or both ends differ.
    """
    migrate.upgrade(target)
    tables = metadata.tables.values()
    with _explaining_locks(), _held(source) as there, target.connect() as here:
        with here.begin():
            counters = _counters(there)
            triggers = _prepare(here, counters.get("inbox", 0))
            sums = [_copy(there, here, table, report) for table in tables]
            for table, (rows, total) in zip(tables, sums, strict=True):
                if _sum(here, table, report) != (rows, total):
                    raise CopyFailed(
                        f"{table.name} differs in the target, though all of it was copied: nothing is kept there"
                    )
            _finish(here, counters, triggers)
        if target.dialect.name == SQLITE:
            checkpoint(target)
    return [
        CopiedTable(str(table.name), rows, f"{total:064x}") for table, (rows, total) in zip(tables, sums, strict=True)
    ]


@contextmanager
def _held(engine: Engine) -> Iterator[Connection]:
    """Hold the source against writers; on SQLite each transaction takes the write lock."""
    with engine.connect() as connection, connection.begin():
        if engine.dialect.name != SQLITE:
            connection.execute(text("SET LOCAL idle_in_transaction_session_timeout = 0"))
            connection.execute(text(f"LOCK TABLE {', '.join(metadata.tables)} IN SHARE MODE"))
        yield connection


@contextmanager
def _explaining_locks() -> Iterator[None]:
    try:
        yield
    except DBAPIError as error:
        if not is_lock_wait(error):
            raise
        raise ConfigError(
            "a transaction of another program holds a lock: end it, and stop receivers and relays; then run it again"
        ) from None


def _prepare(target: Connection, last_seq: int) -> list[str]:
    """Switch triggers off, delete the first rows, and make leaves for payloads. Returns statements that make triggers again."""
    dropped: list[str] = []
    if target.dialect.name == SQLITE:
        for name, statement in target.execute(_TRIGGERS).all():
            target.execute(text(f"DROP TRIGGER {name}"))
            dropped.append(statement)
    else:
        target.execute(text("SET LOCAL idle_in_transaction_session_timeout = 0"))
        size = min(max(leaves.FIRST_LEAF, last_seq // _MOST_LEAVES), leaves.MOST_EVENTS)
        for first in range(1 + leaves.FIRST_LEAF, last_seq + 1, size):
            target.execute(text("SELECT inbox_payload_add_leaf(:lo, :hi)"), {"lo": first, "hi": first + size})
        for name in metadata.tables:
            target.execute(text(f"ALTER TABLE {name} DISABLE TRIGGER USER"))
    _require_empty(target)
    for name in ROWS:
        target.execute(text(f"DELETE FROM {name}"))
    return dropped


def _finish(target: Connection, counters: Mapping[str, int], triggers: Sequence[str]) -> None:
    for name, last in counters.items():
        if target.dialect.name == SQLITE:
            target.execute(text("DELETE FROM sqlite_sequence WHERE name = :name"), {"name": name})
            target.execute(text("INSERT INTO sqlite_sequence VALUES (:name, :last)"), {"name": name, "last": last})
        else:
            target.execute(
                text("SELECT setval(CAST(:name AS regclass), :last)"), {"name": _sequence(target, name), "last": last}
            )
    for statement in triggers:
        target.exec_driver_sql(statement)
    if target.dialect.name != SQLITE:
        for name in metadata.tables:
            target.execute(text(f"ALTER TABLE {name} ENABLE TRIGGER USER"))
            target.execute(text(f"ANALYZE {name}"))


def _copy(source: Connection, target: Connection, table: Table, report: Report) -> tuple[int, int]:
    """Copy a table. Returns its number of rows, and their sum."""
    done = total = 0
    for rows in _chunks(source, table):
        try:
            with target.begin_nested():
                _insert(target, table, rows)
        except _REJECTED:
            raise CopyFailed(_first_rejected(target, table, rows)) from None
        done, total = done + len(rows), total + sum(map(_digest, rows))
        report("copying", table.name, done)
    return done, total % _HASHES


def _sum(connection: Connection, table: Table, report: Report) -> tuple[int, int]:
    done = total = 0
    for rows in _chunks(connection, table):
        done, total = done + len(rows), total + sum(map(_digest, rows))
        report("comparing", table.name, done)
    return done, total % _HASHES


def _chunks(connection: Connection, table: Table) -> Iterator[Rows]:
    """Yield the rows in the order of their key, some at a time: bounded in rows and in bytes."""
    keys = tuple(table.primary_key)
    sizes = [func.coalesce(func.length(each), 0) for each in table.c if isinstance(each.type, LargeBinary)]
    beyond: ColumnElement[bool] = true()
    while found := connection.execute(
        select(*keys, sum(sizes, literal(0))).where(beyond).order_by(*keys).limit(CHUNK_ROWS)
    ).all():
        together, last = 0, found[0]
        for row in found:
            together += row[-1]
            if together > CHUNK_BYTES and row is not found[0]:
                break
            last = row
        end = tuple_(*(literal(value, key.type) for key, value in zip(keys, last, strict=False)))
        try:
            rows = connection.execute(select(table).where(beyond, tuple_(*keys) <= end)).all()
        except _UNREADABLE:
            raise CopyFailed(_first_unreadable(connection, table, found)) from None
        yield rows
        beyond = tuple_(*keys) > end


def _insert(target: Connection, table: Table, rows: Rows) -> None:
    """Insert rows; on Postgres by COPY, which is much faster."""
    if target.dialect.name == SQLITE:
        target.execute(table.insert(), [dict(zip(table.c.keys(), row, strict=True)) for row in rows])
        return
    driver: Any = target.connection.driver_connection
    with driver.cursor() as cursor, cursor.copy(f"COPY {table.name} ({', '.join(table.c.keys())}) FROM STDIN") as into:
        for row in rows:
            into.write_row([json.dumps(value) if isinstance(value, dict) else value for value in row])


def _first_rejected(target: Connection, table: Table, rows: Rows) -> str:
    for row in rows:
        try:
            with target.begin_nested():
                _insert(target, table, [row])
        except _REJECTED as error:
            return _blame(table, dict(row._mapping), f"the target rejects it: {error_text(error)}")  # noqa: SLF001  # SQLAlchemy's public name
    return f"{table.name}: the target rejects rows together that it takes one by one; run it again"


def _first_unreadable(connection: Connection, table: Table, keys: Sequence[Any]) -> str:
    for key in keys:
        is_it = (column == value for column, value in zip(table.primary_key, key, strict=False))
        try:
            connection.execute(select(table).where(*is_it)).all()
        except _UNREADABLE as error:
            return _blame(table, dict(key._mapping), f"it can't be read: {error}")  # noqa: SLF001  # as above
    return f"{table.name} has rows that can't be read together, but can one by one; run it again"


def _blame(table: Table, row: Mapping[str, Any], why: str) -> str:
    named = " ".join(f"{key.name}={row[key.name]}" for key in table.primary_key)
    return f"{table.name} {named}: {why}. Repair the row in the source, then run it again"


def _digest(row: Row[Any]) -> int:
    values = [_plain(value) if isinstance(value, dict) else value for value in row]
    return int.from_bytes(hashlib.sha256(json.dumps(values, sort_keys=True, default=_text).encode()).digest())


def _plain(value: Any) -> Any:  # noqa: ANN401  # any JSON value
    """Write whole numbers in one form: Postgres turns `1e2` into `100`."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _text(value: bytes | datetime) -> str:
    return value.hex() if isinstance(value, bytes) else value.isoformat()


def _require_empty(connection: Connection) -> None:
    for name, table in metadata.tables.items():
        if name not in ROWS and (rows := _count(connection, table)):
            raise ConfigError(
                f"the target is not empty: {name} has {rows:,} {'row' if rows == 1 else 'rows'}."
                " Name an empty database; a copy never adds to another installation"
            )


def _count(connection: Connection, table: Table) -> int:
    return int(connection.execute(select(func.count()).select_from(table)).scalar_one())


def _counters(connection: Connection) -> dict[str, int]:
    """Return the largest number that each table gave, even where its row has been deleted since."""
    if connection.dialect.name == SQLITE:
        return {
            row.name: row.seq for row in connection.execute(text("SELECT name, seq FROM sqlite_sequence WHERE seq > 0"))
        }
    counted = (name for name, table in metadata.tables.items() if table.dialect_options["sqlite"]["autoincrement"])
    last = {
        name: connection.execute(text(f"SELECT last_value, is_called FROM {_sequence(connection, name)}")).one()
        for name in counted
    }
    return {name: int(row.last_value) for name, row in last.items() if row.is_called}


def _sequence(connection: Connection, name: str) -> str:
    (column,) = metadata.tables[name].primary_key
    return str(connection.execute(_SEQUENCE, {"table": name, "column": column.name}).scalar_one())


def _is_alone(path: str) -> bool:
    """Return whether no other connection has the SQLite file open: only then can one have it alone."""
    with closing(sqlite3.connect(path, timeout=_PROBE_SECONDS, uri=path.startswith("file:"))) as connection:
        try:
            connection.execute("PRAGMA locking_mode = EXCLUSIVE")
            connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY:
                raise
            return False
    return True


_HASHES = 2**256
_REJECTED = (DBAPIError, psycopg.Error, OverflowError)
_UNREADABLE = (DBAPIError, ValueError, TypeError)
_TRIGGERS = text("SELECT name, sql FROM sqlite_master WHERE type = 'trigger'")
_SEQUENCE = text("SELECT pg_get_serial_sequence(:table, :column)")
_RECEIVERS = text("""
SELECT DISTINCT pid FROM pg_stat_activity
WHERE datname = current_database() AND application_name LIKE 'inbox-receiver%'
ORDER BY pid
""")
