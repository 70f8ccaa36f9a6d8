"""Reads for the page and the command line: backlogs, sweeps, new facts, groups of dead letters, reveals and sizes."""

from __future__ import annotations

import os
from datetime import datetime
from pathlib import Path

import msgspec
from sqlalchemy import text

from inbox.config.model import Config
from inbox.db.dialect import SQLITE
from inbox.db.engine import parse_url
from inbox.db.following import Feed
from inbox.db.reads import Row
from relay.store.database import Database
from relay.store.statement import Statement, sql
from relay.store.transaction import Transaction


def read_backlog(database: Database) -> list[Row]:
    """Read the view `backlog`: open deliveries of each route by state."""
    with database.read() as transaction:
        return transaction.fetch_rows(text("SELECT * FROM backlog ORDER BY route"))


RETENTION = text("""
SELECT kind, pruned_until, rows, behind_seconds, behind_since, ran_at, passed_over, error
FROM pruning ORDER BY kind
""")
SWEEPS = text("SELECT * FROM sweep_watermark ORDER BY source, entity_type")


OUTCOMES = Feed(
    "outcome",
    "delivery_log",
    "id",
    "at",
    "SELECT t.id, t.at, t.seq, t.route, t.kind, t.attempt, t.relay_node, t.detail,"
    " i.source, i.entity_type, i.entity_id, i.event_type FROM delivery_log t LEFT JOIN inbox i ON i.seq = t.seq",
)
"""The feed of all facts as they are recorded."""

MOST_REVEALS = 50


def record_reveal(database: Database, seq: int, *, who: str, reason: str) -> int:
    """Record a reveal of an event's headers and body before they are shown. Returns the id of the row.

    Raises:
        IntegrityError: `who` or `reason` is empty.
    """
    with database.write() as transaction:
        return int(transaction.execute(_INSERT_REVEAL, seq=seq, who=who, reason=reason)[0].id)


def read_reveals(database: Database, seq: int) -> list[Row]:
    """Read the last `MOST_REVEALS` reveals of an event, the newest first: `id`, `at`, `who` and `reason`."""
    with database.read() as transaction:
        return transaction.fetch_rows(_REVEALS, seq=seq, most=MOST_REVEALS)


_INSERT_REVEAL = Statement(
    f"INSERT INTO payload_reveal (at, seq, who, reason) VALUES ({sql.now}, :seq, :who, :reason) RETURNING id"
)


_REVEALS = text("SELECT id, at, who, reason FROM payload_reveal WHERE seq = :seq ORDER BY id DESC LIMIT :most")


MOST_GROUPED = 5000
"""Maximum number of dead letters to group, those of the newest events."""
MOST_SHOWN = 300
"""Characters of the error that a group shows."""


class DeadGroup(msgspec.Struct, frozen=True):
    """Dead letters with the same route, cause and full error."""

    route: str
    cause: str | None
    error: str | None
    """First `MOST_SHOWN` characters of the error."""
    error_sha256: str | None
    """SHA-256 of the full error: the condition for acting on this group alone."""
    count: int
    blocked: int
    """Number of dead letters that block their lane."""
    first_died_at: datetime | None
    last_died_at: datetime | None
    sample_seq: int
    """The newest event among them."""


def group_dead_letters(
    transaction: Transaction,
    *,
    route: str | None,
    cause: str | None,
    since: datetime | None,
    limit: int,
) -> tuple[list[DeadGroup], int, bool]:
    """Group the newest dead letters, the largest groups first; `since` applies to the time of their death.

    Returns:
        The groups, the number of dead letters examined, and whether these are all dead letters and all groups.
    """
    given = {"route": route, "cause": cause, "since": since}
    rows = transaction.fetch_rows(_GROUPED, **given, most=MOST_GROUPED, limit=limit + 1)
    looked_at = max((row.pop("among") for row in rows), default=0)
    groups = [DeadGroup(**row) for row in rows]
    return groups[:limit], looked_at, len(groups) <= limit and looked_at < MOST_GROUPED


_GROUPED = Statement(f"""
WITH newest AS (
    SELECT o.seq, o.route, o.state FROM open_delivery o
    WHERE o.state IN ('dead', 'blocked') AND {sql.optional("o.route", "text", parameter="route")}
    ORDER BY o.seq DESC LIMIT :most
), dead AS (
    SELECT n.seq, n.route, n.state, l.at AS died_at, l.detail ->> 'cause' AS cause, l.detail ->> 'error' AS error,
           {sql.sha256("l.detail ->> 'error'")} AS error_sha256
    FROM newest n LEFT JOIN delivery_log l ON l.id = (
        SELECT max(f.id) FROM delivery_log f WHERE f.seq = n.seq AND f.route = n.route AND f.kind = 'dead')
)
SELECT d.route, d.cause, d.error_sha256, min(substr(d.error, 1, {MOST_SHOWN})) AS error, count(*) AS count,
       sum(CASE WHEN d.state = 'blocked' THEN 1 ELSE 0 END) AS blocked,
       min(d.died_at) AS first_died_at, max(d.died_at) AS last_died_at, max(d.seq) AS sample_seq,
       (SELECT count(*) FROM newest) AS among
FROM dead d
WHERE {sql.optional("d.cause", "text", parameter="cause")}
  AND {sql.optional("d.died_at", "time", parameter="since", operator=">=")}
GROUP BY d.route, d.cause, d.error_sha256
ORDER BY count(*) DESC, max(d.seq) DESC, d.route, d.cause
LIMIT :limit
""")


# --- sizes of the database

_MOST_TABLES = 5


class TableSize(msgspec.Struct, frozen=True):
    """A table with its indexes."""

    name: str
    bytes: int
    rows: int | None
    """Estimate from the database's statistics."""


class Disk(msgspec.Struct, frozen=True):
    """The disk usage of the database, in bytes; None if unknown, as for a database on another host."""

    size: int | None
    free: int | None
    largest: tuple[TableSize, ...] = ()
    """The largest tables; empty on SQLite, which knows only the size of its file."""


def sqlite_file(config: Config) -> Path | None:
    """Return the SQLite file of a configuration; None on Postgres, and for an SQLite URI."""
    parsed = parse_url(config.database.url)
    name = parsed.database or ""
    return None if parsed.get_backend_name() != SQLITE or name.startswith("file:") else Path(name).absolute()


class Space(msgspec.Struct, frozen=True):
    """The disk of the database's folder; sizes in bytes."""

    folder: Path
    free: int
    """Free space for users other than root."""
    whole: int


def read_space(transaction: Transaction, sqlite_file: Path | None) -> Space | None:
    """Read the free space of the database's disk; None if the database is on another host or hides its folder."""
    folder = None if sqlite_file is None else sqlite_file.parent
    if transaction.sql.is_postgres:
        folder = next((Path(row.folder) for row in transaction.execute(_FOLDER) if row.folder), None)
    if folder is None:
        return None
    try:
        found = os.statvfs(folder)
    except OSError:
        return None
    return Space(folder, found.f_bavail * found.f_frsize, found.f_blocks * found.f_frsize)


def read_disk(transaction: Transaction, sqlite_file: Path | None) -> Disk:
    """Read the size of the database and the free space."""
    space = read_space(transaction, sqlite_file)
    free = space.free if space else None
    if not transaction.sql.is_postgres:
        return Disk(transaction.execute(_FILE_SIZE)[0].bytes, free)
    tables = [TableSize(row.name, row.bytes, row.rows) for row in transaction.execute(_TABLE_SIZES)]
    return Disk(sum(table.bytes for table in tables), free, tuple(tables[:_MOST_TABLES]))


_FILE_SIZE = text("SELECT page_count * page_size AS bytes FROM pragma_page_count, pragma_page_size")
_TABLE_SIZES = text("""
SELECT coalesce(p.relname, c.relname) AS name, CAST(sum(pg_total_relation_size(c.oid)) AS bigint) AS bytes,
       CAST(sum(CASE WHEN c.reltuples >= 0 THEN c.reltuples ELSE s.n_live_tup END) AS bigint) AS rows
FROM pg_class c
LEFT JOIN pg_inherits h ON h.inhrelid = c.oid
LEFT JOIN pg_class p ON p.oid = h.inhparent
LEFT JOIN pg_stat_all_tables s ON s.relid = c.oid
WHERE c.relkind = 'r' AND c.relnamespace = (SELECT o.relnamespace FROM pg_class o WHERE o.oid = CAST('inbox' AS regclass))
GROUP BY coalesce(p.relname, c.relname)
ORDER BY 2 DESC
""")
# pg_settings omits settings that the role may not see; current_setting would raise.
_FOLDER = text("""
SELECT s.setting AS folder
FROM pg_settings s
WHERE s.name = 'data_directory' AND coalesce(inet_server_addr() <<= '127.0.0.0/8' OR inet_server_addr() = '::1', true)
""")
