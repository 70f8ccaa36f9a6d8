"""Copies SQLite's write-ahead log back into the file, only while no other connection can commit.

SQLite up to 3.51.2 can lose committed transactions (https://sqlite.org/wal.html#walresetbug). A checkpoint reads the log's
length. A commit of another connection then restarts the log, and the checkpoint marks as copied in the new log the
pages that it has not. A later checkpoint leaves those pages out. So two conditions must hold during a checkpoint:

- No connection commits. One connection holds the write lock, and only its holder can commit or restart the log.
- There is one checkpoint at a time: SQLite has a lock for that, and the write lock separates ours as well.

A checkpoint of the mode FULL gives no such guarantee. It takes the write lock itself, but continues without it after its
busy timeout (`sqlite3WalCheckpoint` in wal.c: the mode becomes PASSIVE). So there are two connections here: one takes the
lock, or nothing is done; the other copies.

Automatic checkpoints run beside commits, so they are off on every connection (`inbox.db.engine`). The checkpoint of the
last connection that closes is safe: SQLite first makes sure that there is no other.
"""

from __future__ import annotations

import sqlite3
import time
from contextlib import closing
from pathlib import Path

from sqlalchemy import Engine

EVERY_ROWS = 1000
LONGEST_EVERY_ROWS = 64_000
_WAIT_SECONDS = 0.05
"""Wait for the write lock and for readers of an older state; a long read must not delay the receiver."""
_TICK = 0.002
"""Seconds between two checks whether such a reader has ended; most reads are shorter."""


class Checkpoints:
    """Schedule of a writer's checkpoints; its interval doubles while a long read keeps the log from being copied."""

    def __init__(self) -> None:
        self._every = EVERY_ROWS
        self._written = 0

    def due(self, rows: int) -> bool:
        """Count written rows; return whether a checkpoint is due now."""
        self._written += rows
        return self._written >= self._every

    def made(self, *, complete: bool) -> None:
        """Note a checkpoint; `complete` if it copied everything."""
        self._written = 0
        self._every = EVERY_ROWS if complete else min(self._every * 2, LONGEST_EVERY_ROWS)


def checkpoint(engine: Engine) -> bool:
    """Copy the log back into the file, outside any transaction of the caller. Returns whether all of it was copied.

    Earlier commits are safe whatever happens here; at worst the log stays longer.
    """
    path = Path(engine.url.database or "").absolute()
    try:
        with closing(_connect(path)) as holder, closing(_connect(path)) as copier:
            holder.execute("BEGIN IMMEDIATE")
            return _copy_all(copier, time.monotonic() + _WAIT_SECONDS)
    except sqlite3.Error:
        return False


def _connect(path: Path) -> sqlite3.Connection:
    """Open a separate connection, as a pool's may all be in use. Closing it ends its transaction and frees its lock."""
    return sqlite3.connect(path, timeout=_WAIT_SECONDS, isolation_level=None)


def _copy_all(copier: sqlite3.Connection, until: float) -> bool:
    """Copy until nothing is left or the time is over. Pages that a reader of an older state needs stay in the log."""
    while True:
        busy, in_log, copied = copier.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()
        if not busy and in_log == copied:
            return True
        if time.monotonic() >= until:
            return False
        time.sleep(_TICK)
