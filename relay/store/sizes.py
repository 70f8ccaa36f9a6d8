"""Size, growth and free disk of the database, for the page and the metrics."""

from __future__ import annotations

import os
from pathlib import Path

import msgspec
from sqlalchemy import text

from inbox.config.model import Config
from inbox.db.dialect import SQLITE
from inbox.db.engine import parse_url
from relay.store.transaction import Transaction

_FILE = "(file)"
_MOST_TABLES = 5


class TableSize(msgspec.Struct, frozen=True):
    """A table with its indexes."""

    name: str
    bytes: int
    rows: int | None
    """Estimated by the database's statistics."""


class Disk(msgspec.Struct, frozen=True):
    """Disk of the database, in bytes; None where nobody here can tell."""

    size: int | None
    per_day: int | None
    """Growth by the figures of the last day."""
    free: int | None
    largest: tuple[TableSize, ...] = ()
    """The largest tables. SQLite knows the size of its file alone."""

    @property
    def days_left(self) -> float | None:
        """Return the days for which the free disk lasts."""
        return self.free / self.per_day if self.free is not None and self.per_day else None


NO_DISK = Disk(None, None, None)
"""Nothing is known."""


def sqlite_file(config: Config) -> Path | None:
    """Return the SQLite file of a configuration; None on Postgres, and for a URI of SQLite."""
    parsed = parse_url(config.database.url)
    name = parsed.database or ""
    return None if parsed.get_backend_name() != SQLITE or name.startswith("file:") else Path(name).absolute()


def read_disk(transaction: Transaction, sqlite_file: Path | None) -> Disk:
    """Read sizes by the view `table_size`, and ask the file system for the free space where the database is on this host."""
    rows = transaction.rows_of(_SIZES)
    per_day = sum(row["bytes_per_day"] or 0 for row in rows) or None
    if transaction.sql.is_postgres:
        tables = [
            TableSize(row["table_name"], (row["bytes"] or 0) + (row["index_bytes"] or 0), row["rows_estimated"])
            for row in rows
        ]
        largest = sorted(tables, key=lambda table: -table.bytes)[:_MOST_TABLES]
        found = transaction.execute(_FOLDER)
        folder = Path(found[0].folder) if found and found[0].folder else None
        return Disk(sum(table.bytes for table in tables), per_day, _free(folder), tuple(largest))
    size = next((row["bytes"] for row in rows if row["table_name"] == _FILE), None)
    return Disk(size, per_day, _free(sqlite_file.parent if sqlite_file else None))


def _free(folder: Path | None) -> int | None:
    if folder is None:
        return None
    try:
        found = os.statvfs(folder)
    except OSError:
        return None
    return found.f_bavail * found.f_frsize


_SIZES = text(
    "SELECT table_name, rows_estimated, bytes, index_bytes, free_bytes, bytes_per_day, dead_rows FROM table_size"
)
# pg_settings leaves out what the role may not see; current_setting would raise.
_FOLDER = text("""
SELECT s.setting AS folder
FROM pg_settings s
WHERE s.name = 'data_directory' AND coalesce(inet_server_addr() <<= '127.0.0.0/8' OR inet_server_addr() = '::1', true)
""")
