"""Reads for listings: rows of the public views, as they are."""

from __future__ import annotations

from functools import cache

from sqlalchemy import TextClause, text

from inbox.db.dialect import Sql
from inbox.db.following import Feed
from inbox.db.reads import Row
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


RETENTION = text("""
SELECT kind, pruned_until, rows, bytes, behind_seconds, behind_since, ran_at, passed_over, error
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
"""The facts of all deliveries, as they are recorded."""
