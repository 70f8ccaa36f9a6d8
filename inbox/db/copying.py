"""Copy an installation into an empty database, and compare both ends, in one transaction of the target.

An interrupted copy leaves only empty tables behind. The source is locked against writers, so all tables are consistent.
Both ends are compared by row counts and by a hash that doesn't depend on the order of rows.
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from datetime import datetime
from functools import partial
from itertools import accumulate
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
    Select,
    Table,
    func,
    literal,
    select,
    text,
    tuple_,
)
from sqlalchemy.exc import DBAPIError

from inbox.db import leaves, migrate
from inbox.db.dialect import SQLITE, Sql, error_text
from inbox.db.engine import checkpoint, reading, snapshot
from inbox.db.schema import metadata
from inbox.db.views import ROWS
from inbox.errors import ConfigError, CopyFailed
from inbox.events.states import GONE_SECONDS

CHUNK_ROWS = 1000
CHUNK_BYTES = 4 * 1024 * 1024
"""Maximum bytes of bodies in a chunk; a single body may exceed it."""
_MOST_LEAVES = 50
_PROBE_SECONDS = 0.5

Report = Callable[[str, str, int], None]
"""Called for each chunk with the step (`copying` or `comparing`), the table, and the rows done so far."""
Rows = Sequence[Row[Any]]


class CopiedTable(msgspec.Struct, frozen=True):
    """A copied table, with the same rows in source and target."""

    table: str
    rows: int
    hash: str
    """Sum of the SHA-256 of its rows, equal on both ends."""


def plan(source: Engine, target: Engine) -> dict[str, int]:
    """Count the rows of each table of the source.

    Raises:
        ConfigError: the target is not empty, or has another version.
    """
    path = Path(target.url.database or "")
    is_absent = (
        target.dialect.name == SQLITE and path.parent.is_dir() and not path.exists()
    )  # opening it would create the file
    if not is_absent and migrate.read_revision(target) is not None:
        migrate.require_current(target)
        with target.connect() as connection, reading(connection).begin():
            _require_empty(connection)
    with source.connect() as connection, snapshot(connection).begin():
        return {name: _count(connection, table) for name, table in metadata.tables.items()}


def running_programs(engine: Engine) -> list[str]:
    """List the running relays, the receivers that Postgres knows, and other programs that have the SQLite file open."""
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
    """Copy all tables into an empty target.

    Raises:
        ConfigError: the target is not empty, or another program writes to either database.
        CopyFailed: a row can't be copied, or the ends differ.
    """
    migrate.upgrade(target)
    tables = metadata.tables.values()
    with _lock_source(source) as there, target.connect() as here:
        with here.begin():
            counters = _counters(there)
            triggers = _prepare(here, counters.get("inbox", 0))
            copied = [_read(there, table, partial(report, "copying", table.name), into=here) for table in tables]
            compared = [_read(here, table, partial(report, "comparing", table.name)) for table in tables]
            for was, found in zip(copied, compared, strict=True):
                if was != found:
                    raise CopyFailed(
                        f"{was.table} differs in the target, though all of it was copied: the copy was rolled back"
                    )
            _finish(here, counters, triggers)
        if target.dialect.name == SQLITE:
            checkpoint(target)
    return copied


@contextmanager
def _lock_source(engine: Engine) -> Iterator[Connection]:
    """Lock the source against writers; on SQLite every transaction takes the write lock."""
    with engine.connect() as connection, connection.begin():
        if engine.dialect.name != SQLITE:
            connection.execute(text("SET LOCAL idle_in_transaction_session_timeout = 0"))
            connection.execute(text(f"LOCK TABLE {', '.join(metadata.tables)} IN SHARE MODE"))
        yield connection


def _prepare(target: Connection, last_seq: int) -> list[str]:
    """Disable triggers, delete the initial rows, and create leaves. Returns the statements that recreate the triggers."""
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


def _read(
    connection: Connection, table: Table, report: Callable[[int], None], into: Connection | None = None
) -> CopiedTable:
    """Read a table in key order, in chunks limited in rows and bytes, and copy them `into` another database."""
    done = total = 0
    for keys in _chunks(connection, table):
        try:
            rows = _rows(connection, table, keys[0], keys[-1])
            _put(into, table, rows)
        except _REJECTED:
            raise CopyFailed(_first_bad(connection, table, keys, into)) from None
        done, total = done + len(rows), total + sum(map(_digest, rows))
        report(done)
    return CopiedTable(str(table.name), done, f"{total % _HASHES:064x}")


def _chunks(connection: Connection, table: Table) -> Iterator[Rows]:
    """Yield the keys of each chunk's rows, with the size of their bodies."""
    keys = tuple(table.primary_key)
    sizes = [func.coalesce(func.length(each), 0) for each in table.c if isinstance(each.type, LargeBinary)]
    statement: Select[Any] = select(*keys, sum(sizes, literal(0))).order_by(*keys).limit(CHUNK_ROWS)
    found = connection.execute(statement).all()
    while found:
        together = accumulate(row[-1] for row in found)
        chunk = [row for row, size in zip(found, together, strict=True) if size <= CHUNK_BYTES] or found[:1]
        yield chunk
        found = connection.execute(statement.where(tuple_(*keys) > _key(table, chunk[-1]))).all()


def _rows(connection: Connection, table: Table, first: Row[Any], last: Row[Any]) -> Rows:
    keys = tuple_(*table.primary_key)
    return connection.execute(select(table).where(keys >= _key(table, first), keys <= _key(table, last))).all()


def _key(table: Table, row: Row[Any]) -> ColumnElement[Any]:
    return tuple_(*(literal(value, key.type) for key, value in zip(table.primary_key, row, strict=False)))


def _put(target: Connection | None, table: Table, rows: Rows) -> None:
    """Insert rows inside a savepoint; without a target do nothing."""
    if target is not None:
        with target.begin_nested():
            _insert(target, table, rows)


def _insert(target: Connection, table: Table, rows: Rows) -> None:
    """Insert rows, on Postgres by COPY, which is much faster."""
    if target.dialect.name == SQLITE:
        target.execute(table.insert(), [dict(zip(table.c.keys(), row, strict=True)) for row in rows])
        return
    driver: Any = target.connection.driver_connection
    with driver.cursor() as cursor, cursor.copy(f"COPY {table.name} ({', '.join(table.c.keys())}) FROM STDIN") as into:
        for row in rows:
            into.write_row([json.dumps(value) if isinstance(value, dict) else value for value in row])


def _first_bad(source: Connection, table: Table, keys: Rows, target: Connection | None) -> str:
    """Describe the first row of a chunk that can't be read or copied by itself."""
    for key in keys:
        said = "it can't be read"
        try:
            rows = _rows(source, table, key, key)
            said = "the target rejects it"
            _put(target, table, rows)
        except _REJECTED as error:
            named = " ".join(f"{column.name}={value}" for column, value in zip(table.primary_key, key, strict=False))
            return f"{table.name} {named}: {said}: {error_text(error)}. Repair the row in the source, then run the copy again"
    return f"{table.name} has rows that failed to copy together, but can be copied one by one; run the copy again"


def _digest(row: Row[Any]) -> int:
    values = [_plain(value) if isinstance(value, dict) else value for value in row]
    return int.from_bytes(hashlib.sha256(json.dumps(values, sort_keys=True, default=_text).encode()).digest())


def _plain(value: Any) -> Any:  # noqa: ANN401  # any JSON value
    """Normalise whole numbers, as Postgres turns `1e2` into `100`."""
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
    """Return the largest number assigned in each table, even if its row has been deleted."""
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
    """Return whether no other connection has the SQLite file open, by trying to lock it exclusively."""
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
_REJECTED = (DBAPIError, psycopg.Error, OverflowError, ValueError, TypeError)
_TRIGGERS = text("SELECT name, sql FROM sqlite_master WHERE type = 'trigger'")
_SEQUENCE = text("SELECT pg_get_serial_sequence(:table, :column)")
_RECEIVERS = text("""
SELECT DISTINCT pid FROM pg_stat_activity
WHERE datname = current_database() AND application_name LIKE 'inbox-receiver%'
ORDER BY pid
""")
