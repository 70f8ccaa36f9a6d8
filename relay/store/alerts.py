"""Alerts: rows of `alert`, one per change for the worse or back, and which of them are to be told and posted."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime, timedelta
from functools import cache
from typing import Any

from sqlalchemy import TextClause, text

from inbox.db.dialect import Sql, as_json, error_text, rows_param
from inbox.timestamps import as_time, time_text
from relay.alerts import SENTENCES, Alert, Posted
from relay.store.database import Database, FailedAlone, Transaction

POST_AGAIN_AFTER = timedelta(seconds=60)
"""When a post has failed, or the relay that was at it is gone."""
POSTED_WITHIN = timedelta(days=1)
"""Older ones are left: they say nothing of today."""


def note(transaction: Transaction, alerts: Iterable[Alert], now: datetime) -> None:
    """Keep those that are a change from what was kept last of their kind and subject. Call it under the order lock."""
    rows = [
        {"kind": alert.kind, "subject": alert.subject, "firing": alert.firing, "detail": dict(alert.detail)}
        for alert in alerts
    ]
    if rows:
        transaction.execute(_note(transaction.sql), alerts=rows_param(rows), at=time_text(now))


def step_failed(database: Database, step: str, error: str) -> None:
    """Note that a step of a relay fails."""
    with database.write() as transaction:
        now = transaction.lock_order()
        note(transaction, [Alert("step_failed", step, firing=True, detail={"error": error})], now)


def take_untold(database: Database) -> list[Posted]:
    """Take the alerts that no relay has written to its log yet; they count as told from now on."""
    taken = _taken(database, "log_alerts", _any_untold(database.sql), _tell(database.sql))
    return sorted(taken, key=lambda posted: posted.id)


def take_unsent(database: Database) -> list[Posted]:
    """Take the first alert that is to be posted, if any; no other relay gets it for a minute."""
    again, since = POST_AGAIN_AFTER.total_seconds(), -POSTED_WITHIN.total_seconds()
    return _taken(database, "send_alerts", _any_unsent(database.sql), _post(database.sql), since=since, again=again)


def posted(database: Database, number: int, error: str | None = None, *, is_final: bool = False) -> None:
    """Note that an alert was posted, or why not; one that failed is posted again in a minute, unless that `is_final`."""
    with database.write() as transaction:
        if error is None:
            transaction.execute(_sent(database.sql), id=number)
        else:
            transaction.execute(_NOT_SENT, id=number, error=error, is_final=is_final)


def of_newer_version(database: Database) -> list[str]:
    """The kinds of alerts that wait and only a newer version knows: they are left to it."""
    with database.read() as transaction:
        return [row.kind for row in transaction.execute(_UNKNOWN)]


def _taken(database: Database, step: str, any_there: TextClause, take: TextClause, **parameters: float) -> list[Posted]:
    asked = {name: value for name, value in parameters.items() if name in any_there._bindparams}  # noqa: SLF001  # as in Transaction.execute
    with database.read() as transaction:
        if not transaction.execute(any_there, **asked):
            return []
    with database.write() as transaction:
        rows = transaction.execute(take, **parameters)
    taken = []
    for row in rows:
        try:
            detail = _object(as_json(row.detail))
            taken.append(Posted(row.id, as_time(row.at), Alert(row.kind, row.subject, bool(row.firing), detail)))
        except (ValueError, TypeError, RecursionError) as error:  # written by hand
            posted(database, row.id, error_text(error), is_final=True)
            database.failed_alone(FailedAlone(step, f"alert={row.id}", error_text(error)))
    return taken


def _object(detail: object) -> dict[str, Any]:
    if not isinstance(detail, dict):
        raise TypeError(f"its detail is a {type(detail).__name__}, not an object")
    return detail


_IS_KNOWN = f"kind IN ({', '.join(repr(kind) for kind in SENTENCES)})"
_UNKNOWN = text(f"SELECT DISTINCT kind FROM alert WHERE told_at IS NULL AND NOT {_IS_KNOWN}")
_NOT_SENT = text("UPDATE alert SET error = :error, is_unsendable = :is_final WHERE id = :id")
_COLUMNS = "alert.id, alert.at, alert.kind, alert.subject, alert.firing, alert.detail"


@cache
def _note(sql: Sql) -> TextClause:
    rows = sql.rows("alerts", kind="text", subject="text", firing="boolean", detail="json")
    return text(f"""
INSERT INTO alert (at, kind, subject, firing, detail)
SELECT {sql.time(":at")}, kind, subject, firing, detail
FROM {rows}
WHERE firing <> coalesce((
    SELECT a.firing FROM alert a WHERE a.kind = alerts.kind AND a.subject = alerts.subject ORDER BY a.id DESC LIMIT 1), false)
""")


@cache
def _any_untold(_sql: Sql) -> TextClause:
    return text(f"SELECT 1 FROM alert WHERE told_at IS NULL AND {_IS_KNOWN} LIMIT 1")


@cache
def _tell(sql: Sql) -> TextClause:
    return text(
        f"UPDATE alert SET told_at = (SELECT {sql.now}) WHERE told_at IS NULL AND {_IS_KNOWN} RETURNING {_COLUMNS}"
    )


def _unsent(sql: Sql) -> str:
    return f"""SELECT id FROM alert
WHERE sent_at IS NULL AND {_IS_KNOWN} AND at > {sql.plus_seconds(f"(SELECT {sql.now})", ":since")}
    AND NOT is_unsendable AND (post_after IS NULL OR post_after <= (SELECT {sql.now}))
ORDER BY at, id
LIMIT 1"""


@cache
def _any_unsent(sql: Sql) -> TextClause:
    return text(_unsent(sql))


@cache
def _post(sql: Sql) -> TextClause:
    return text(f"""
UPDATE alert SET post_after = {sql.plus_seconds(f"(SELECT {sql.now})", ":again")}
WHERE id = ({_unsent(sql)} {sql.skip_locked})
RETURNING {_COLUMNS}
""")


@cache
def _sent(sql: Sql) -> TextClause:
    return text(f"UPDATE alert SET sent_at = (SELECT {sql.now}), post_after = NULL, error = NULL WHERE id = :id")
