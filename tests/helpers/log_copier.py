"""Copies SQLite's write-ahead log as litestream documents it, so that a database can be put together from the copies.

It holds a read transaction, which keeps every other program from restarting the log, and copies its new frames. Now and then it
lets go, makes a checkpoint, and holds on again. When the log was restarted meanwhile, without its having copied all of it, it
begins with a new copy of the file (https://litestream.io/how-it-works/, and `db.go` of its sources).
"""

from __future__ import annotations

import shutil
import sqlite3
import struct
from pathlib import Path

_HEADER, _FRAME = 32, 24


class LogCopier:
    """One copier; `snapshots` counts how often it began with the file anew."""

    def __init__(self, database: Path, replica: Path) -> None:
        self._path, self._log = database, database.with_name(f"{database.name}-wal")
        self._replica = replica
        self._connection = sqlite3.connect(database, timeout=1, isolation_level=None)
        self._connection.execute("PRAGMA wal_autocheckpoint = 0")
        self._connection.execute("CREATE TABLE IF NOT EXISTS _litestream_seq (id INTEGER PRIMARY KEY, seq INTEGER)")
        self._connection.execute("CREATE TABLE IF NOT EXISTS _litestream_lock (id INTEGER)")
        self._touch()
        self.snapshots = 0
        self._salt = b""
        self._offset = 0
        self._hold()
        self._snapshot()

    def sync(self) -> None:
        """Copy the frames of every transaction that was committed since the last time."""
        with self._log.open("rb") as log:
            header = log.read(_HEADER)
            assert header[16:24] == self._salt, "somebody restarted the log although it is being read"
            size = struct.unpack(">I", header[8:12])[0]
            log.seek(self._offset)
            frames: list[tuple[int, bytes]] = []
            while len(frame := log.read(_FRAME + size)) == _FRAME + size and frame[8:16] == self._salt:
                page, pages_after_commit = struct.unpack(">II", frame[:8])
                frames.append((page, frame[_FRAME:]))
                if pages_after_commit:
                    self._apply(frames, size, pages_after_commit)
                    self._offset = log.tell()
                    frames = []

    def checkpoint(self) -> None:
        """Let go of the log, copy it back into the file, and hold on again."""
        self.sync()
        self._connection.execute("ROLLBACK")
        self._connection.execute("BEGIN IMMEDIATE")  # a bug of SQLite before 3.51.3 needs that nobody commits meanwhile
        self._copy_back()
        self._connection.execute("COMMIT")
        self._touch()
        self._hold()
        with self._log.open("rb") as log:
            salt = log.read(_HEADER)[16:24]
        if salt != self._salt:
            self._snapshot()
        self.sync()

    def close(self) -> None:
        """Copy the rest, and end."""
        self.sync()
        self._connection.close()

    def _copy_back(self) -> None:
        copier = sqlite3.connect(self._path, timeout=1, isolation_level=None)
        copier.execute("PRAGMA wal_checkpoint(PASSIVE)")
        copier.close()

    def _touch(self) -> None:
        self._connection.execute(
            "INSERT INTO _litestream_seq VALUES (1, 1) ON CONFLICT (id) DO UPDATE SET seq = seq + 1"
        )

    def _hold(self) -> None:
        self._connection.execute("BEGIN")
        self._connection.execute("SELECT count(1) FROM _litestream_seq").fetchone()

    def _snapshot(self) -> None:
        with self._log.open("rb") as log:
            self._salt = log.read(_HEADER)[16:24]
        self._offset = _HEADER  # all frames of the log follow, whatever of them was in the file already
        shutil.copyfile(self._path, self._replica)
        self.snapshots += 1
        self.sync()

    def _apply(self, frames: list[tuple[int, bytes]], size: int, pages: int) -> None:
        with self._replica.open("r+b") as replica:
            for page, content in frames:
                replica.seek((page - 1) * size)
                replica.write(content)
            replica.truncate(pages * size)
