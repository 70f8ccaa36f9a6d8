"""Reads for listings: rows of the public views, as they are."""

from __future__ import annotations

from collections.abc import Collection
from datetime import datetime
from functools import cache

import msgspec
from sqlalchemy import TextClause, text

from inbox.db.dialect import Sql
from inbox.db.following import Feed
from inbox.db.listings import contains
from inbox.db.parameters import rows_param
from inbox.db.reads import Row
from inbox.events.timestamps import time_text
from relay.store.database import Database
from relay.store.transaction import Transaction


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


class DeadFilter(msgspec.Struct, frozen=True, kw_only=True):
    """Conditions on dead letters; None: any."""

    routes: Collection[str] | None = None
    source: str | None = None
    entity_type: str | None = None
    entity_id: str | None = None
    event_type: str | None = None
    cause: str | None = None
    status: int | None = None
    error: str | None = None
    """A part of the last error, in any case."""
    since: datetime | None = None
    """Died at or after."""
    until: datetime | None = None
    """Died before."""


_EQUAL = {
    "source": "source",
    "entity_type": "entity_type",
    "entity_id": "entity_id",
    "event_type": "event_type",
    "cause": "cause",
    "status": "last_status",
}
"""The column of the view that each condition is on."""


def dead_letters(database: Database, wanted: DeadFilter, limit: int) -> list[Row]:
    """Rows of the view `dead_letter`, the newest death first."""
    sql = database.sql
    values: dict[str, object] = {name: getattr(wanted, name) for name in _EQUAL if getattr(wanted, name) is not None}
    conditions = [f"{_EQUAL[name]} = :{name}" for name in values]
    if wanted.routes is not None:
        conditions.append(f"route IN (SELECT name FROM {sql.rows('routes', name='text')})")
        values["routes"] = rows_param({"name": name} for name in wanted.routes)
    if wanted.error is not None:
        conditions.append("lower(error) LIKE :error ESCAPE '!'")
        values["error"] = contains(wanted.error)
    for name, operator, moment in (("since", ">=", wanted.since), ("until", "<", wanted.until)):
        if moment is not None:
            conditions.append(f"died_at {operator} {sql.time(f':{name}')}")
            values[name] = time_text(moment)
    where = " AND ".join(conditions or ["1 = 1"])
    statement = text(f"SELECT * FROM dead_letter WHERE {where} ORDER BY died_at DESC, seq DESC, route LIMIT :limit")
    with database.read() as transaction:
        return transaction.rows_of(statement, **values, limit=limit)


class AlertFilter(msgspec.Struct, frozen=True, kw_only=True):
    """Conditions on rows of `alert`; None: any."""

    kind: str | None = None
    subject: str | None = None
    since: datetime | None = None
    until: datetime | None = None
    """Before this time."""
    before: int | None = None
    """Only below this id."""


def alerts(transaction: Transaction, wanted: AlertFilter, limit: int) -> list[Row]:
    """Rows of `alert`, the newest first."""
    values: dict[str, object] = {
        name: getattr(wanted, name) for name in ("kind", "subject") if getattr(wanted, name) is not None
    }
    conditions = [f"{name} = :{name}" for name in values]
    for name, operator, moment in (("since", ">=", wanted.since), ("until", "<", wanted.until)):
        if moment is not None:
            conditions.append(f"at {operator} {transaction.sql.time(f':{name}')}")
            values[name] = time_text(moment)
    if wanted.before is not None:
        conditions.append("id < :before")
        values["before"] = wanted.before
    where = " AND ".join(conditions or ["1 = 1"])
    statement = text(f"SELECT * FROM alert WHERE {where} ORDER BY id DESC LIMIT :limit")
    return transaction.rows_of(statement, **values, limit=limit)
