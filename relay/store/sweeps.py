"""Sweeps in SQL: comparison with the inbox, watermarks, and turns of relays."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from datetime import datetime
from functools import cache

import msgspec
from sqlalchemy import TextClause, text

from inbox.config.model import Api
from inbox.db.dialect import Sql, rows_param
from inbox.events.event import swept_key
from inbox.events.timestamps import as_time, time_text, to_nanoseconds
from relay.delivery.alerts import Alert
from relay.store.alerts import note
from relay.store.database import Database
from relay.store.transaction import Transaction


class Listed(msgspec.Struct, frozen=True):
    """An entity, and the UTC time of its last change."""

    id: str
    modified: datetime


class Turn(msgspec.Struct, frozen=True):
    """A relay's turn to sweep one type of entity of a source; seconds count by the database's clock."""

    source: str
    entity_type: str
    node: str
    every: float | None
    """The pause after a complete sweep; None: it runs only when a command asks for it."""
    again: float
    """The pause after an incomplete sweep."""
    lease: float
    """The lease of a turn, unless it is renewed; a relay that dies delays the others no longer."""


LEASE_SECONDS = 30.0
"""Added to the time that a page and its token may take: a relay that dies delays the others no longer."""


def lease_seconds(api: Api) -> float:
    """The lease in seconds of a sweep that calls this api."""
    return LEASE_SECONDS + 2 * float(api.timeout)


def is_due(database: Database, turn: Turn) -> bool:
    """True when it is due and nobody has the turn, as far as a look without a lock can tell."""
    with database.read() as transaction:
        found = transaction.execute(_due(database.sql), **_named(turn, "every", "again"))
    return bool(found[0].is_due) if found else turn.every is not None


def take(database: Database, turn: Turn) -> bool:
    """Take the turn; true when it was due and nobody had it."""
    with database.write() as transaction:
        return bool(transaction.execute(_take(database.sql), **_named(turn, "node", "every", "again", "lease")))


def keep(database: Database, turn: Turn) -> bool:
    """Renew the lease. False when it expired, and another relay may have the turn."""
    with database.write() as transaction:
        return bool(transaction.execute(_keep(database.sql), **_named(turn, "node", "lease")))


def give_back(database: Database, turn: Turn, missed: int = 0, alerts: Iterable[Alert] = ()) -> None:
    """Give the turn back after an interruption; the sweep stays due. `missed` is added, since the next one won't find it."""
    with database.write() as transaction:
        now = transaction.lock_first()
        transaction.execute(_GIVE_BACK, **_named(turn, "node"))
        _add_missed(transaction, turn.source, turn.entity_type, missed)
        note(transaction, alerts, now)


def fail(database: Database, turn: Turn, error: str, alerts: Iterable[Alert], missed: int = 0) -> None:
    """Record a failed sweep: the watermark stays. `missed` is as in `give_back`."""
    with database.write() as transaction:
        now = transaction.lock_first()
        transaction.execute(_fail(database.sql), error=error, **_named(turn, "node"))
        _add_missed(transaction, turn.source, turn.entity_type, missed)
        note(transaction, alerts, now)


def broke_off(database: Database, source: str, entity_type: str, missed: int) -> None:
    """Record a failed sweep that had no turn, as an operator ran it. `missed` is as in `give_back`."""
    with database.write() as transaction:
        _add_missed(transaction, source, entity_type, missed)


def _add_missed(transaction: Transaction, source: str, entity_type: str, missed: int) -> None:
    """Apply also when another relay has the turn by now."""
    if missed:
        transaction.execute(_ADD_MISSED, source=source, entity_type=entity_type, missed=missed)


class SweepResult(msgspec.Struct, frozen=True):
    """The result of the last sweep of a type of entity."""

    entity_type: str
    command: int | None
    """The command that waits for the next sweep."""
    compared: int | None
    missed: int | None
    added: int | None
    error: str | None


def ask(transaction: Transaction, source: str, entity_type: str, command: int) -> bool:
    """Make a sweep due for a command. False while one runs, or another command waits for one."""
    return bool(transaction.execute(_ask(transaction.sql), source=source, entity_type=entity_type, command=command))


def results(database: Database, source: str) -> list[SweepResult]:
    """The results of the last sweeps of a source."""
    with database.read() as transaction:
        return [SweepResult(*row) for row in transaction.execute(_RESULTS, source=source)]


def _named(turn: Turn, *names: str) -> dict[str, object]:
    return {name: getattr(turn, name) for name in ("source", "entity_type", *names)}


def compared_until(database: Database, source: str, entity_type: str) -> datetime | None:
    """Up to when every change has been compared; None: nothing has."""
    with database.read() as transaction:
        found = transaction.execute(_WATERMARK, source=source, entity_type=entity_type)
    return as_time(found[0].compared_until) if found and found[0].compared_until is not None else None


def missing(
    database: Database, source: str, entity_type: str, listed: Sequence[Listed], routes: Sequence[str]
) -> list[Listed]:
    """Entities of which the inbox has no event of their last change, or a later one, on all of these routes.

    An event that took other routes reports nothing to these. An event that a sweep has added for this very change counts
    on whatever routes it took: it can't be added again.
    """
    rows = [
        {
            "id": each.id,
            "modified": each.modified,
            "milliseconds": each.modified.replace(microsecond=each.modified.microsecond // 1000 * 1000),
            "seconds": each.modified.replace(microsecond=0),
            "key": swept_key(entity_type, each.id, to_nanoseconds(each.modified)),
        }
        for each in listed
    ]
    with database.read() as transaction:
        found = transaction.execute(
            _missing(database.sql),
            listed=rows_param(rows),
            source=source,
            entity_type=entity_type,
            routes=json.dumps(list(routes)),
        )
    ids = {row.id for row in found}
    return [each for each in listed if each.id in ids]


class SweepFindings(msgspec.Struct, frozen=True):
    """The progress of a sweep."""

    source: str
    entity_type: str
    since: datetime
    until: datetime
    """The latest change that was compared."""
    compared: int = 0
    missed: int = 0
    added: int = 0
    left_out: int = 0
    """Events without their entity, which is larger than a body may be."""


def finish(database: Database, swept: SweepFindings, node: str | None = None, alerts: Iterable[Alert] = ()) -> None:
    """Record a complete sweep; `node` gives its turn back. A watermark never goes back."""
    with database.write() as transaction:
        now = transaction.lock_first()
        figures = {name: getattr(swept, name) for name in ("source", "entity_type", "compared", "missed", "added")}
        transaction.execute(_finish(database.sql), until=time_text(swept.until), node=node, **figures)
        note(transaction, alerts, now)


_WATERMARK = text("SELECT compared_until FROM sweep_watermark WHERE source = :source AND entity_type = :entity_type")


_RESULTS = text("""
SELECT entity_type, command_id, last_compared, last_missed, last_added, error FROM sweep_watermark
WHERE source = :source
ORDER BY entity_type
""")


@cache
def _missing(sql: Sql) -> TextClause:
    """Read the newest event first, which nearly always answers; the entity's others are read only after it.

    CASE keeps Postgres from joining with the whole inbox instead, and a scalar instead of an EXISTS from reading all keys.

    The time of an event may be cut to the second or to the millisecond where the entity's is not. One with a fraction was
    not cut to the second, so that an earlier one in the second of the change is of another change.
    """
    late = "(i.occurred_at >= listed.modified OR i.occurred_at IN (listed.milliseconds, listed.seconds))"
    reported = f"({late} AND {sql.has_all('i.routes', 'routes')})"
    of_entity = "i.source = :source AND i.entity_type = :entity_type AND i.entity_id = listed.id"
    columns = {"id": "text", "modified": "time", "milliseconds": "time", "seconds": "time", "key": "text"}
    return text(f"""
SELECT listed.id
FROM {sql.rows("listed", **columns)}
WHERE CASE
    WHEN (SELECT {reported} FROM inbox i WHERE {of_entity} ORDER BY i.seq DESC LIMIT 1) THEN false
    WHEN EXISTS (SELECT 1 FROM inbox i WHERE {of_entity} AND {reported}) THEN false
    ELSE (SELECT i.seq FROM inbox i WHERE i.source = :source AND i.dedup_key = listed.key LIMIT 1) IS NULL END
""")


def _is_due(sql: Sql) -> str:
    wait = "CASE WHEN w.error IS NULL THEN CAST(:every AS float8) ELSE CAST(:again AS float8) END"
    again = f"w.swept_at IS NULL OR {sql.plus_seconds('w.swept_at', wait)} <= (SELECT {sql.now})"
    return f"""({_is_free(sql)})
    AND (w.command_id IS NOT NULL OR (CAST(:every AS float8) IS NOT NULL AND ({again})))"""


def _is_free(sql: Sql) -> str:
    return f"w.lease_until IS NULL OR w.lease_until <= (SELECT {sql.now})"


@cache
def _due(sql: Sql) -> TextClause:
    return text(f"""
SELECT ({_is_due(sql)}) AS is_due FROM sweep_watermark w WHERE w.source = :source AND w.entity_type = :entity_type
""")


@cache
def _ask(sql: Sql) -> TextClause:
    return text(f"""
INSERT INTO sweep_watermark AS w (source, entity_type, command_id) VALUES (:source, :entity_type, :command)
ON CONFLICT (source, entity_type) DO UPDATE SET command_id = excluded.command_id
WHERE (w.command_id IS NULL OR w.command_id = excluded.command_id) AND ({_is_free(sql)})
RETURNING source
""")


@cache
def _take(sql: Sql) -> TextClause:
    until = sql.plus_seconds(f"(SELECT {sql.now})", "CAST(:lease AS float8)")
    return text(f"""
INSERT INTO sweep_watermark AS w (source, entity_type, lease_until, relay_node)
VALUES (:source, :entity_type, {until}, :node)
ON CONFLICT (source, entity_type) DO UPDATE SET lease_until = excluded.lease_until, relay_node = excluded.relay_node
WHERE {_is_due(sql)}
RETURNING source
""")


_MINE = "source = :source AND entity_type = :entity_type AND relay_node = :node"


@cache
def _keep(sql: Sql) -> TextClause:
    until = sql.plus_seconds(f"(SELECT {sql.now})", "CAST(:lease AS float8)")
    return text(f"UPDATE sweep_watermark SET lease_until = {until} WHERE {_MINE} RETURNING source")


_GIVE_BACK = text(f"UPDATE sweep_watermark SET lease_until = NULL, relay_node = NULL WHERE {_MINE}")


_ADD_MISSED = text("""
INSERT INTO sweep_watermark AS w (source, entity_type, missed) VALUES (:source, :entity_type, :missed)
ON CONFLICT (source, entity_type) DO UPDATE SET missed = w.missed + excluded.missed
""")


@cache
def _fail(sql: Sql) -> TextClause:
    return text(f"""
UPDATE sweep_watermark SET swept_at = {sql.now}, error = :error, lease_until = NULL, relay_node = NULL,
    command_id = NULL
WHERE {_MINE}
""")


@cache
def _finish(sql: Sql) -> TextClause:
    later = (
        "CASE WHEN w.compared_until > excluded.compared_until THEN w.compared_until ELSE excluded.compared_until END"
    )
    node = "CAST(:node AS text)"
    return text(f"""
INSERT INTO sweep_watermark AS w
    (source, entity_type, compared_until, swept_at, missed, last_compared, last_missed, last_added)
VALUES (:source, :entity_type, {sql.time(":until")}, {sql.now}, :missed, :compared, :missed, :added)
ON CONFLICT (source, entity_type) DO UPDATE SET compared_until = {later}, swept_at = excluded.swept_at,
    missed = w.missed + excluded.missed, last_compared = excluded.last_compared, last_missed = excluded.last_missed,
    last_added = excluded.last_added, error = NULL,
    lease_until = CASE WHEN w.relay_node = {node} THEN NULL ELSE w.lease_until END,
    relay_node = CASE WHEN w.relay_node = {node} THEN NULL ELSE w.relay_node END,
    command_id = CASE WHEN w.relay_node = {node} THEN NULL ELSE w.command_id END
""")
