"""Copies SQLite's write-ahead log back into the file, never while another connection may commit.

SQLite up to 3.51.2 can lose committed transactions (https://sqlite.org/wal.html#walresetbug). A checkpoint reads the log's
length; a commit of another connection then begins the log anew; and the checkpoint notes in the new log that it has copied
what it has not. A later checkpoint leaves those pages out. So two conditions have to hold during a checkpoint:

- Nobody commits. One connection holds the write lock, and only what holds it can commit or begin the log anew.
- There is one checkpoint at a time: SQLite has a lock for that, and the write lock keeps ours apart besides.

A checkpoint of the mode FULL is no such guarantee. It takes the write lock itself, but goes on without it when it can't have
it in its busy timeout (`sqlite3WalCheckpoint` in wal.c: the mode becomes PASSIVE). Hence two connections here: one takes
the lock, or nothing is done; the other copies.

Automatic checkpoints run beside commits, so they are switched off on every connection (`inbox.db.engine`). The one that the
last connection makes when it is closed is safe: SQLite first makes sure that there is no other.
"""

from __future__ import annotations

import asyncio
import sqlite3
import time
from contextlib import closing
from pathlib import Path

from sqlalchemy import URL, Engine
from sqlalchemy.ext.asyncio import AsyncConnection

EVERY_ROWS = 1000
LONGEST_EVERY_ROWS = 64_000
_WAIT_SECONDS = 0.05
"""For the write lock, and for readers of an older state: somebody's long read must not hold up the receiver."""
_TICK = 0.002
"""Seconds between two looks at whether such a reader has ended; most reads are shorter."""


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
    """Copy the log back into the file. The caller must be in no transaction. Returns whether all of it was copied."""
    return _copy_back(engine.url)


async def checkpoint_async(connection: AsyncConnection) -> bool:
    """As `checkpoint`, of the database of this connection, which must be in no transaction."""
    return await asyncio.to_thread(_copy_back, connection.engine.url)


def _copy_back(url: URL) -> bool:
    """What the writer wrote before is committed whatever happens here: at worst the log stays longer."""
    path = Path(url.database or "").absolute()
    try:
        with closing(_connected(path)) as holder, closing(_connected(path)) as copier:
            holder.execute("BEGIN IMMEDIATE")
            return _copied_whole(copier, time.monotonic() + _WAIT_SECONDS)
    except sqlite3.Error:
        return False


def _connected(path: Path) -> sqlite3.Connection:
    """A connection of its own: those of a pool may all be in use. Closing it ends its transaction and frees its lock."""
    return sqlite3.connect(path, timeout=_WAIT_SECONDS, isolation_level=None)


def _copied_whole(copier: sqlite3.Connection, until: float) -> bool:
    """Copy until nothing is left, or the time is over: what is needed by a reader of an older state stays in the log."""
    while True:
        busy, in_log, copied = copier.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()
        if not busy and in_log == copied:
            return True
        if time.monotonic() >= until:
            return False
        time.sleep(_TICK)
