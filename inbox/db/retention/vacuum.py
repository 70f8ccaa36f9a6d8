"""Gives the space of deleted rows back: VACUUM, which no transaction may contain."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable
from contextlib import closing
from pathlib import Path

import msgspec
from sqlalchemy import Engine, text

from inbox.config.retention import RetentionKind
from inbox.db.checkpoint import checkpoint
from inbox.db.dialect import Sql
from inbox.db.retention.kinds import AGED, WALKS
from inbox.errors import ConfigError

_WAIT_SECONDS = 10.0
"""The longest wait for others."""


class Vacuumed(msgspec.Struct, frozen=True):
    """Sizes of the database in bytes, with its write-ahead log on SQLite."""

    before: int
    after: int


def tables_of(kinds: Iterable[RetentionKind]) -> tuple[str, ...]:
    """Return the tables that pruning these kinds touches. Pure."""
    found: list[str] = []
    for kind in kinds:
        walked = WALKS.get(kind)
        if walked is not None:
            found += [walked.table, *(table for table, _ in walked.companions)]
        elif kind in AGED:
            found.append(AGED[kind].table)
    return tuple(dict.fromkeys(found))


def vacuum(engine: Engine, tables: Iterable[str]) -> Vacuumed:
    """Vacuum these tables on Postgres, where nobody waits for it; on SQLite rewrite the file, which nobody can write meanwhile.

    Raises:
        ConfigError: SQLite can't do it now: somebody reads or writes, or the disk is full.
    """
    before = size_of(engine)
    if Sql(engine.dialect.name).is_postgres:
        with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            for table in tables:
                connection.execute(text(f"VACUUM (ANALYZE) {table}"))
    else:
        _rewrite(Path(engine.url.database or ""))
        checkpoint(engine)
    return Vacuumed(before, size_of(engine))


def _rewrite(path: Path) -> None:
    try:
        with closing(sqlite3.connect(path, timeout=_WAIT_SECONDS, isolation_level=None)) as connection:
            connection.execute("VACUUM")
    except sqlite3.Error as error:
        raise ConfigError(
            f"SQLite can't vacuum {path} now: {error}; it needs as much free disk as the file has, and a moment without"
            " another reader or writer, so stop the receiver and the relay first"
        ) from None


def size_of(engine: Engine) -> int:
    """Return the size of the database in bytes."""
    if Sql(engine.dialect.name).is_postgres:
        with engine.connect() as connection:
            return int(connection.execute(text("SELECT pg_database_size(current_database())")).scalar_one())
    path = Path(engine.url.database or "")
    return sum(each.stat().st_size for each in (path, path.with_name(f"{path.name}-wal")) if each.exists())
