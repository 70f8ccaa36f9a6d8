"""Plans of retention: for each kind about how much would go. The work is bounded, so that it can be asked at any time."""

from __future__ import annotations

from datetime import datetime
from functools import cache

import msgspec
from sqlalchemy import Connection, TextClause, text

from inbox.config.retention import Retention, RetentionKind
from inbox.db.dialect import Sql
from inbox.db.retention import kinds, walk
from inbox.db.retention.kinds import AGED, STEPS, WALKS, Aged
from inbox.db.retention.pruned import Estimate, Expiry
from inbox.db.retention.rounds import expiry_of
from inbox.events.timestamps import as_time, time_text


class KindPlan(msgspec.Struct, frozen=True):
    """Expired rows of a kind."""

    kind: RetentionKind
    age: str
    """The age as the configuration has it."""
    before: datetime | None
    """Rows older than this have expired; None: no age."""
    most: int | None
    """The cap, of kinds that have one."""
    rows: int
    is_estimate: bool
    """False when the rows were counted one by one."""
    bytes: int
    """Bytes in these rows, about; without indexes."""
    oldest: datetime | None
    """Time of the first row that goes."""


def plan(connection: Connection, retention: Retention, now: datetime) -> list[KindPlan]:
    """Estimate each kind in turn; `now` is the database's time."""
    return [_plan(connection, retention, kind, expiry_of(retention, kind, now)) for kind in STEPS]


def database_time(connection: Connection) -> datetime:
    """Return the database's time."""
    return as_time(connection.execute(_now(Sql(connection.dialect.name)), {"now": None}).scalar_one())


def _plan(connection: Connection, retention: Retention, kind: RetentionKind, expiry: Expiry) -> KindPlan:
    if kind in WALKS:
        found = walk.estimate(connection, WALKS[kind], expiry)
    elif expiry.before is None:
        found = Estimate()
    else:
        found = _of_aged(connection, AGED[kind], expiry.before)
    return KindPlan(
        kind,
        retention.age_of(kind).shown,
        expiry.before,
        expiry.most,
        found.rows,
        found.is_estimate,
        found.bytes,
        found.oldest,
    )


def _of_aged(connection: Connection, each: Aged, before: datetime) -> Estimate:
    statement = _count(Sql(connection.dialect.name), each)
    row = connection.execute(statement, {"before": time_text(before), "most": walk.MOST_COUNTED + 1}).one()
    oldest = None if row.oldest is None else as_time(row.oldest)
    return Estimate(row.number, row.number > walk.MOST_COUNTED, row.number * each.row_bytes, oldest)


@cache
def _count(sql: Sql, each: Aged) -> TextClause:
    return text(f"""
SELECT count(*) AS number, min(at) AS oldest
FROM (SELECT t.{each.time} AS at FROM {each.table} t WHERE {kinds.expired(sql, each)} ORDER BY t.{each.time} LIMIT :most) f
""")


@cache
def _now(sql: Sql) -> TextClause:
    return text(f"SELECT {sql.now} AS now")
