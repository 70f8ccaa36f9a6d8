"""Reads for listings: rows of the public views, as they are."""

from __future__ import annotations

from datetime import datetime
from functools import cache

from sqlalchemy import TextClause, text

from inbox.db.dialect import Sql
from inbox.db.reads import Row
from inbox.events.timestamps import time_text
from relay.store.database import Database


def backlog(database: Database) -> list[Row]:
    """The view `backlog`: open deliveries of each route by state."""
    with database.read() as transaction:
        return transaction.rows_of(text("SELECT * FROM backlog ORDER BY route"))


def relay_nodes(database: Database) -> list[Row]:
    """Relay processes that have not stopped in order, and the age of each heartbeat."""
    with database.read() as transaction:
        return transaction.rows_of(_nodes(database.sql))


@cache
def _nodes(sql: Sql) -> TextClause:
    return text(f"""
SELECT id, host, pid, version, started_at, heartbeat_at,
       {sql.seconds_between("heartbeat_at", f"(SELECT {sql.now})")} AS silent_seconds
FROM relay_node
WHERE stopped_at IS NULL
ORDER BY started_at
""")


def sweeps(database: Database) -> list[Row]:
    """The table `sweep_watermark`: the place of each sweep, and what the last one found."""
    with database.read() as transaction:
        return transaction.rows_of(SWEEPS)


SWEEPS = text("SELECT * FROM sweep_watermark ORDER BY source, entity_type")


def dead_letters(
    database: Database, *, route: str | None, cause: str | None, since: datetime | None, limit: int
) -> list[Row]:
    """Rows of the view `dead_letter`, the newest death first."""
    with database.read() as transaction:
        since_text = None if since is None else time_text(since)
        return transaction.rows_of(_dead(database.sql), route=route, cause=cause, since=since_text, limit=limit)


@cache
def _dead(sql: Sql) -> TextClause:
    return text(f"""
SELECT * FROM dead_letter
WHERE {sql.optional("route", "text")} AND {sql.optional("cause", "text")}
  AND {sql.optional("died_at", "time", parameter="since", operator=">=")}
ORDER BY died_at DESC, seq DESC
LIMIT :limit
""")
