"""Sweeps in SQL: comparison with the inbox, watermarks, and the turns of relays."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from datetime import datetime

import msgspec
from sqlalchemy import text

from inbox.config.model import Api
from inbox.events.event import swept_key
from inbox.events.timestamps import as_time, to_nanoseconds
from relay.delivery.alerts import Alert
from relay.store.alerts import store_alerts
from relay.store.database import Database
from relay.store.statement import Statement, sql
from relay.store.transaction import Transaction
from relay.store.work import Work


class Listed(msgspec.Struct, frozen=True):
    """An entity and the UTC time of its last change."""

    id: str
    modified: datetime


class Turn(msgspec.Struct, frozen=True):
    """A relay's turn to sweep one entity type of a source. Durations are seconds of the database's clock."""

    source: str
    entity_type: str
    node: str
    every: float | None
    """The pause after a complete sweep; None if only commands start sweeps."""
    again: float
    """The pause after an incomplete sweep."""
    lease: float
    """The duration of the lease: the longest delay after a relay dies."""


LEASE_SECONDS = 30.0
"""Lease of a turn in excess of the time that a page and its token may take."""


def lease_seconds(api: Api) -> float:
    """Return the lease in seconds of a sweep that calls this api."""
    return LEASE_SECONDS + 2 * float(api.timeout)


def is_due(database: Database, turn: Turn) -> bool:
    """Return whether the sweep is due and its turn is free, without taking a lock."""
    with database.read() as transaction:
        found = transaction.execute(_DUE, **msgspec.structs.asdict(turn))
    return bool(found[0].is_due) if found else turn.every is not None


def take(database: Database, turn: Turn) -> bool:
    """Take the turn. Returns whether the sweep was due and the turn free."""
    with database.write() as transaction:
        return bool(transaction.execute(_TAKE, **msgspec.structs.asdict(turn)))


def keep(database: Database, turn: Turn) -> bool:
    """Renew the lease. Returns False if another relay may have taken the turn."""
    with database.write() as transaction:
        return bool(transaction.execute(_KEEP, **msgspec.structs.asdict(turn)))


def end_early(work: Work, turn: Turn, error: str | None, missed: int = 0, alerts: Iterable[Alert] = ()) -> None:
    """Give the turn back without moving the watermark. With an `error`, the sweep has failed; without one, it stays due.

    `missed` is added, since the next sweep won't find these changes again.
    """
    with work.write() as transaction:
        now = transaction.lock_first()
        transaction.execute(_GIVE_BACK if error is None else _FAIL, error=error, **msgspec.structs.asdict(turn))
        _add_missed(transaction, turn.source, turn.entity_type, missed)
        store_alerts(transaction, alerts, now)


def record_interrupted(database: Database, source: str, entity_type: str, missed: int) -> None:
    """Record the missed changes of a failed sweep that ran without a turn, as started by an operator."""
    with database.write() as transaction:
        _add_missed(transaction, source, entity_type, missed)


def _add_missed(transaction: Transaction, source: str, entity_type: str, missed: int) -> None:
    """Add missed changes, even if another relay has taken the turn."""
    if missed:
        transaction.execute(_ADD_MISSED, source=source, entity_type=entity_type, missed=missed)


class SweepResult(msgspec.Struct, frozen=True):
    """The result of the last sweep of an entity type."""

    entity_type: str
    command: int | None
    """The command that waits for the next sweep."""
    compared: int | None
    missed: int | None
    added: int | None
    error: str | None


def ask(transaction: Transaction, source: str, entity_type: str, command: int) -> bool:
    """Make a sweep due for a command. Returns False while one runs or another command waits."""
    return bool(transaction.execute(_ASK, source=source, entity_type=entity_type, command=command))


def read_results(database: Database, source: str) -> list[SweepResult]:
    """Read the results of the last sweeps of a source."""
    with database.read() as transaction:
        return [SweepResult(*row) for row in transaction.execute(_RESULTS, source=source)]


def read_watermark(database: Database, source: str, entity_type: str) -> datetime | None:
    """Read the time up to which every change has been compared; None before the first sweep."""
    with database.read() as transaction:
        found = transaction.execute(_WATERMARK, source=source, entity_type=entity_type)
    return as_time(found[0].compared_until) if found and found[0].compared_until is not None else None


def find_missing(
    database: Database, source: str, entity_type: str, listed: Sequence[Listed], routes: Sequence[str]
) -> list[Listed]:
    """Return the entities that lack an event, on all of these routes, for their last or a later change.

    Events on other routes do not count. An event that a sweep added for this very change counts on any routes, as the
    sweep can't add it again.
    """
    rows = [
        (
            each.id,
            each.modified,
            each.modified.replace(microsecond=each.modified.microsecond // 1000 * 1000),
            each.modified.replace(microsecond=0),
            swept_key(entity_type, each.id, to_nanoseconds(each.modified)),
        )
        for each in listed
    ]
    with database.read() as transaction:
        found = transaction.execute(
            _MISSING,
            listed=rows,
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
    """Time of the latest compared change."""
    compared: int = 0
    missed: int = 0
    added: int = 0
    left_out: int = 0
    """Number of events added without their entity, which exceeds `max_body`."""


def finish(work: Work, swept: SweepFindings, alerts: Iterable[Alert] = ()) -> None:
    """Record a complete sweep, and give back the relay's turn. The watermark never moves back."""
    with work.write() as transaction:
        now = transaction.lock_first()
        transaction.execute(_FINISH, node=work.node, **msgspec.structs.asdict(swept))
        store_alerts(transaction, alerts, now)


_WATERMARK = text("SELECT compared_until FROM sweep_watermark WHERE source = :source AND entity_type = :entity_type")


_RESULTS = text("""
SELECT entity_type, command_id, last_compared, last_missed, last_added, error FROM sweep_watermark
WHERE source = :source
ORDER BY entity_type
""")


_LATE = "(i.occurred_at >= listed.modified OR i.occurred_at IN (listed.milliseconds, listed.seconds))"
_REPORTED = f"({_LATE} AND {sql.has_all('i.routes', 'routes')})"
_OF_ENTITY = "i.source = :source AND i.entity_type = :entity_type AND i.entity_id = listed.id"
# Reads the newest event first, which is nearly always enough, and the entity's other events only if needed.
#
# CASE keeps Postgres from joining with the whole inbox. A scalar subquery, unlike EXISTS, keeps it from reading all keys.
#
# The time of an event may be truncated to the second or millisecond where the entity's is not. An event time with a
# fraction was not truncated to the second, so an earlier one within the second belongs to another change.
_MISSING = Statement(f"""
SELECT listed.id
FROM {sql.rows("listed", id="text", modified="time", milliseconds="time", seconds="time", key="text")}
WHERE CASE
    WHEN (SELECT {_REPORTED} FROM inbox i WHERE {_OF_ENTITY} ORDER BY i.seq DESC LIMIT 1) THEN false
    WHEN EXISTS (SELECT 1 FROM inbox i WHERE {_OF_ENTITY} AND {_REPORTED}) THEN false
    ELSE (SELECT i.seq FROM inbox i WHERE i.source = :source AND i.dedup_key = listed.key LIMIT 1) IS NULL END
""")

_IS_FREE = f"w.lease_until IS NULL OR w.lease_until <= (SELECT {sql.now})"
_WAIT = "CASE WHEN w.error IS NULL THEN CAST(:every AS float8) ELSE CAST(:again AS float8) END"
_IS_DUE = f"""({_IS_FREE})
    AND (w.command_id IS NOT NULL OR (CAST(:every AS float8) IS NOT NULL
        AND (w.swept_at IS NULL OR {sql.plus_seconds("w.swept_at", _WAIT)} <= (SELECT {sql.now}))))"""
_DUE = Statement(f"""
SELECT ({_IS_DUE}) AS is_due FROM sweep_watermark w WHERE w.source = :source AND w.entity_type = :entity_type
""")

_ASK = Statement(f"""
INSERT INTO sweep_watermark AS w (source, entity_type, command_id) VALUES (:source, :entity_type, :command)
ON CONFLICT (source, entity_type) DO UPDATE SET command_id = excluded.command_id
WHERE (w.command_id IS NULL OR w.command_id = excluded.command_id) AND ({_IS_FREE})
RETURNING source
""")

_UNTIL = sql.plus_seconds(f"(SELECT {sql.now})", "CAST(:lease AS float8)")
_TAKE = Statement(f"""
INSERT INTO sweep_watermark AS w (source, entity_type, lease_until, relay_node)
VALUES (:source, :entity_type, {_UNTIL}, :node)
ON CONFLICT (source, entity_type) DO UPDATE SET lease_until = excluded.lease_until, relay_node = excluded.relay_node
WHERE {_IS_DUE}
RETURNING source
""")

_MINE = "source = :source AND entity_type = :entity_type AND relay_node = :node"
_KEEP = Statement(f"UPDATE sweep_watermark SET lease_until = {_UNTIL} WHERE {_MINE} RETURNING source")

_GIVE_BACK = text(f"UPDATE sweep_watermark SET lease_until = NULL, relay_node = NULL WHERE {_MINE}")

_ADD_MISSED = text("""
INSERT INTO sweep_watermark AS w (source, entity_type, missed) VALUES (:source, :entity_type, :missed)
ON CONFLICT (source, entity_type) DO UPDATE SET missed = w.missed + excluded.missed
""")

_FAIL = Statement(f"""
UPDATE sweep_watermark SET swept_at = {sql.now}, error = :error, lease_until = NULL, relay_node = NULL,
    command_id = NULL
WHERE {_MINE}
""")

_IS_ITS_TURN = "w.relay_node = CAST(:node AS text)"
_FINISH = Statement(f"""
INSERT INTO sweep_watermark AS w
    (source, entity_type, compared_until, swept_at, missed, last_compared, last_missed, last_added)
VALUES (:source, :entity_type, {sql.time(":until")}, {sql.now}, :missed, :compared, :missed, :added)
ON CONFLICT (source, entity_type) DO UPDATE SET
    compared_until = CASE WHEN w.compared_until > excluded.compared_until THEN w.compared_until ELSE excluded.compared_until END,
    swept_at = excluded.swept_at, missed = w.missed + excluded.missed, last_compared = excluded.last_compared,
    last_missed = excluded.last_missed, last_added = excluded.last_added, error = NULL,
    lease_until = CASE WHEN {_IS_ITS_TURN} THEN NULL ELSE w.lease_until END,
    relay_node = CASE WHEN {_IS_ITS_TURN} THEN NULL ELSE w.relay_node END,
    command_id = CASE WHEN {_IS_ITS_TURN} THEN NULL ELSE w.command_id END
""")
