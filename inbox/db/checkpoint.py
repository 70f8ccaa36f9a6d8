"""When SQLite's write-ahead log is copied back into the file: never while another connection may commit.

SQLite up to 3.51.2 can lose committed transactions (sqlite.org/wal.html, "the WAL-reset bug"): after a checkpoint has copied the
whole log, a second one runs while another connection's commit begins the log anew. Automatic checkpoints run beside commits, so
they are switched off on every connection (`inbox.db.engine`), and each writer makes a FULL one now and then: that takes the write
lock first, so that nobody commits meanwhile.
"""

from __future__ import annotations

import sqlite3
from typing import Any

from sqlalchemy import Engine, PoolProxiedConnection
from sqlalchemy.engine.interfaces import DBAPICursor
from sqlalchemy.ext.asyncio import AsyncConnection

EVERY_ROWS = 1000
LONGEST_EVERY_ROWS = 64_000
_WAIT_MILLISECONDS = 50
"""For the write lock, and for readers of an older state: somebody's long read must not hold up the receiver."""


class Checkpoints:
    """Tells a writer when its next checkpoint is due. While a long read keeps the log from being copied, less and less often."""

    def __init__(self) -> None:
        self._every = EVERY_ROWS
        self._written = 0

    def due(self, rows: int) -> bool:
        """Count rows that were written; whether a checkpoint is due now."""
        self._written += rows
        return self._written >= self._every

    def made(self, *, complete: bool) -> None:
        """A checkpoint was made; `complete` if it copied everything."""
        self._written = 0
        self._every = EVERY_ROWS if complete else min(self._every * 2, LONGEST_EVERY_ROWS)


def checkpoint(engine: Engine) -> bool:
    """Copy the log back into the file, outside any transaction. Returns whether all of it was copied."""
    connection = engine.raw_connection()
    try:
        return _copy_back(connection)
    finally:
        connection.close()


async def checkpoint_async(connection: AsyncConnection) -> bool:
    """As `checkpoint`, on a connection that is in no transaction."""
    return await connection.run_sync(lambda synchronous: _copy_back(synchronous.connection))


def _copy_back(connection: PoolProxiedConnection) -> bool:
    """What the writer wrote before is committed whatever happens here: at worst the log stays longer."""
    cursor = connection.cursor()
    usual_wait = _pragma(cursor, "busy_timeout")[0]
    _pragma(cursor, f"busy_timeout = {_WAIT_MILLISECONDS}")
    try:
        busy, in_log, copied = _pragma(cursor, "wal_checkpoint(FULL)")
    except sqlite3.OperationalError:
        return False
    finally:
        _pragma(cursor, f"busy_timeout = {usual_wait}")
        cursor.close()
    return not busy and in_log == copied


def _pragma(cursor: DBAPICursor, pragma: str) -> Any:  # noqa: ANN401  # a row of the driver
    cursor.execute(f"PRAGMA {pragma}")
    return cursor.fetchone()
