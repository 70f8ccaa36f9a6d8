"""Dead letters by route, cause and error: groups of the newest ones, so that no number of them makes it slow."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from functools import cache

import msgspec
from sqlalchemy import TextClause, text

from inbox.db.dialect import Sql
from inbox.events.timestamps import as_time, time_text
from relay.store.transaction import Transaction

MOST_GROUPED = 5000
"""Dead letters that are grouped: the newest events."""
MOST_SHOWN = 300
"""Characters of an error that a group has."""


class DeadGroup(msgspec.Struct, frozen=True):
    """Dead letters with the same route, cause and whole error."""

    route: str
    cause: str | None
    error: str | None
    """Its first `MOST_SHOWN` characters."""
    error_sha256: str | None
    """SHA-256 of the whole error: the condition of an act on this group alone."""
    count: int
    blocked: int
    """Number of those that block their lane."""
    first_died_at: datetime | None
    last_died_at: datetime | None
    sample_seq: int
    """The newest event among them."""


class DeadGroups(msgspec.Struct, frozen=True):
    """The largest groups, and what they were made of."""

    groups: Sequence[DeadGroup]
    grouped: int
    """Dead letters that were looked at."""
    is_whole: bool
    """False: there are older dead letters, or smaller groups."""


def dead_groups(
    transaction: Transaction,
    *,
    route: str | None,
    cause: str | None,
    since: datetime | None,
    limit: int,
) -> DeadGroups:
    """Group the newest dead letters; `since` is the time of their death."""
    given = {"route": route, "cause": cause, "since": None if since is None else time_text(since)}
    rows = transaction.execute(_grouped(transaction.sql), **given, most=MOST_GROUPED, limit=limit + 1)
    groups = [
        DeadGroup(
            row.route,
            row.cause,
            row.error,
            row.error_sha256,
            int(row.count),
            int(row.blocked),
            _time(row.first_died_at),
            _time(row.last_died_at),
            int(row.sample_seq),
        )
        for row in rows
    ]
    looked_at = int(rows[0].looked_at) if rows else 0
    return DeadGroups(groups[:limit], looked_at, is_whole=len(groups) <= limit and looked_at < MOST_GROUPED)


def _time(value: datetime | str | None) -> datetime | None:
    return None if value is None else as_time(value)


@cache
def _grouped(sql: Sql) -> TextClause:
    newest = f"""SELECT o.seq, o.route, o.state FROM open_delivery o
    WHERE o.state IN ('dead', 'blocked') AND {sql.optional("o.route", "text", parameter="route")}
    ORDER BY o.seq DESC LIMIT :most"""
    deaths = "delivery_log f WHERE f.seq = n.seq AND f.route = n.route AND f.kind = 'dead'"
    died = f"delivery_log l ON l.id = (SELECT max(f.id) FROM {deaths})"
    if sql.has_lateral:  # one look instead of two
        died = f"""LATERAL (
        SELECT f.at, f.detail FROM {deaths}
        ORDER BY f.id DESC LIMIT 1) l ON true"""
    conditions = " AND ".join(
        (
            sql.optional("d.cause", "text", parameter="cause"),
            sql.optional("d.died_at", "time", parameter="since", operator=">="),
        )
    )
    return text(f"""
WITH newest AS (
    {newest}
), dead AS (
    SELECT n.seq, n.route, n.state, l.at AS died_at, l.detail ->> 'cause' AS cause, l.detail ->> 'error' AS error,
           {sql.sha256("l.detail ->> 'error'")} AS error_sha256
    FROM newest n LEFT JOIN {died}
)
SELECT d.route, d.cause, d.error_sha256, min(substr(d.error, 1, {MOST_SHOWN})) AS error, count(*) AS count,
       sum(CASE WHEN d.state = 'blocked' THEN 1 ELSE 0 END) AS blocked,
       min(d.died_at) AS first_died_at, max(d.died_at) AS last_died_at, max(d.seq) AS sample_seq,
       (SELECT count(*) FROM newest) AS looked_at
FROM dead d
WHERE {conditions}
GROUP BY d.route, d.cause, d.error_sha256
ORDER BY count(*) DESC, max(d.seq) DESC, d.route, d.cause
LIMIT :limit
""")
