"""Alerts: rows of `alert`, one for each start or recovery of a condition, and their logging and posting."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import text

from inbox.db.dialect import as_json, error_text
from inbox.db.reads import Row
from inbox.events.timestamps import as_time
from relay.delivery.alerts import SENTENCES, Alert, Posted
from relay.store.database import Database
from relay.store.statement import Statement, sql
from relay.store.transaction import FailedAlone, Transaction
from relay.store.work import Work, process_in_parts

POST_AGAIN_AFTER = timedelta(seconds=60)
"""The pause before a post is repeated, after it failed or its relay died."""
MOST_LOGGED_AT_ONCE = 200
POSTED_WITHIN = timedelta(days=1)
"""Age after which an alert is no longer posted."""


def store_alerts(transaction: Transaction, alerts: Iterable[Alert], now: datetime) -> None:
    """Store the alerts that differ from the last one of their kind and subject. Call under the order lock.

    An alert that the database rejects is skipped and logged, so that the event it reports is recorded all the same.
    """
    kept = list(alerts)
    if not kept or _attempt(transaction, kept, now) is None:
        return
    for alert in kept:
        error = _attempt(transaction, [alert], now)
        if error is not None:
            item = f"alert {alert.kind} of {alert.subject}"
            transaction.left_out.append(FailedAlone("log_alerts", item, error_text(error)))


def _attempt(transaction: Transaction, alerts: Iterable[Alert], now: datetime) -> Exception | None:
    return transaction.attempt(_NOTE, alerts=alerts, at=now)


def alert_failing_step(work: Work, step: str, error: str) -> None:
    """Store an alert for a failing step of a relay."""
    with work.write() as transaction:
        now = transaction.lock_first()  # the step may be failing because a route is locked
        store_alerts(transaction, [Alert("step_failed", step, firing=True, detail={"error": error})], now)


def take_unlogged(work: Work) -> list[Posted]:
    """Take some alerts that no relay has logged yet, and mark them as logged."""
    with work.database.read() as transaction:
        numbers = [row.id for row in transaction.execute(_UNLOGGED, most=MOST_LOGGED_AT_ONCE)]
    taken = _take(work, "log_alerts", numbers, _MARK_LOGGED, {})
    return sorted(taken, key=lambda alert: alert.id)


def take_unsent(work: Work) -> list[Posted]:
    """Take an alert to post, if any; no other relay gets it for a minute.

    Untried alerts go first, then those that have waited longest: one that can't be posted does not delay other subjects.
    Alerts of one subject are posted in order, so that the last one read is the current state.
    """
    with work.database.read() as transaction:
        unsent = transaction.execute(_UNSENT, since=-POSTED_WITHIN.total_seconds())
    again = {"again": POST_AGAIN_AFTER.total_seconds()}
    return _take(work, "send_alerts", [row.id for row in unsent], _POST, again)


def record_post(database: Database, number: int, error: str | None = None, *, is_final: bool = False) -> None:
    """Record that an alert was posted, or the error. A failed post is repeated in a minute, unless the error `is_final`."""
    with database.write() as transaction:
        transaction.execute(_POSTED, id=number, error=error, is_final=is_final)


def read_newest(database: Database) -> list[Row]:
    """Read `kind`, `subject` and `firing` of the newest alert of each subject."""
    with database.read() as transaction:
        return transaction.fetch_rows(_NEWEST)


def _take(work: Work, step: str, numbers: Sequence[int], take: Statement, besides: Mapping[str, float]) -> list[Posted]:
    """Take these alerts, unless another relay has them; mark unreadable ones as unsendable."""

    def process(some: Sequence[int]) -> list[Posted]:
        with work.write() as transaction:
            rows = transaction.execute(take, wanted=some, **besides)
            return [_as_posted(row) for row in rows]

    def quarantine_one(number: int, error: Exception) -> list[Posted]:
        with work.write() as transaction:
            transaction.execute(_SET_ASIDE, id=number, error=f"it can't be read: {error_text(error)}")
        return []

    parts = process_in_parts(
        work, step, numbers, process=process, quarantine_one=quarantine_one, name=lambda number: f"alert={number}"
    )
    return [alert for some in parts for alert in some]


def _as_posted(row: Any) -> Posted:  # noqa: ANN401  # a result row
    detail = as_json(row.detail)
    if not isinstance(detail, dict):
        raise TypeError(f"its detail is a {type(detail).__name__}, not an object")
    return Posted(row.id, as_time(row.at), Alert(row.kind, row.subject, bool(row.firing), detail))


_IS_KNOWN = f"kind IN ({', '.join(repr(kind) for kind in SENTENCES)})"
_COLUMNS = "alert.id, alert.at, alert.kind, alert.subject, alert.firing, alert.detail"


# A loose index scan: one lookup for each subject. For a comparison of both columns at once, SQLite would read all alerts
# of a kind.
NEWEST = """
WITH RECURSIVE subjects(kind, subject) AS (
    SELECT * FROM (SELECT kind, subject FROM alert ORDER BY kind, subject LIMIT 1) first
    UNION ALL
    SELECT a.kind, a.subject FROM subjects s JOIN alert a ON a.id = coalesce(
        (SELECT n.id FROM alert n WHERE n.kind = s.kind AND n.subject > s.subject ORDER BY n.subject LIMIT 1),
        (SELECT n.id FROM alert n WHERE n.kind > s.kind ORDER BY n.kind, n.subject LIMIT 1)))
SELECT a.kind, a.subject, a.at, a.detail, a.firing
FROM subjects s JOIN alert a ON a.id = (
    SELECT n.id FROM alert n WHERE n.kind = s.kind AND n.subject = s.subject ORDER BY n.id DESC LIMIT 1)
"""
"""The newest alert of each kind and subject."""
_NEWEST = text(NEWEST)


_NOTE = Statement(f"""
INSERT INTO alert (at, kind, subject, firing, detail)
SELECT {sql.time(":at")}, kind, subject, firing, detail
FROM {sql.rows("alerts", kind="text", subject="text", firing="boolean", detail="json")}
WHERE firing <> coalesce((
    SELECT a.firing FROM alert a WHERE a.kind = alerts.kind AND a.subject = alerts.subject ORDER BY a.id DESC LIMIT 1), false)
""")

_UNLOGGED = text(f"SELECT id FROM alert WHERE told_at IS NULL AND {_IS_KNOWN} ORDER BY id LIMIT :most")

_WANTED = f"alert.id IN (SELECT wanted.id FROM {sql.rows('wanted', id='bigint')})"
_MARK_LOGGED = Statement(f"""
UPDATE alert SET told_at = (SELECT {sql.now}) WHERE {_WANTED} AND told_at IS NULL RETURNING {_COLUMNS}
""")

_SET_ASIDE = Statement(f"""
UPDATE alert SET told_at = coalesce(told_at, {sql.now}), is_unsendable = true, error = :error WHERE id = :id
""")

_IS_UNSENT = f"sent_at IS NULL AND NOT is_unsendable AND (post_after IS NULL OR post_after <= (SELECT {sql.now}))"
_SINCE = sql.plus_seconds(f"(SELECT {sql.now})", ":since")
_UNSENT = Statement(f"""
SELECT id FROM alert
WHERE {_IS_UNSENT} AND {_IS_KNOWN} AND at > {_SINCE}
  AND NOT EXISTS (
    SELECT 1 FROM alert b
    WHERE b.kind = alert.kind AND b.subject = alert.subject AND b.id < alert.id AND b.sent_at IS NULL AND NOT b.is_unsendable
      AND b.at > {_SINCE})
ORDER BY post_after NULLS FIRST, at, id
LIMIT 1
""")

# Checks the condition again: another relay may have taken the alert meanwhile.
_POST = Statement(f"""
UPDATE alert SET post_after = {sql.plus_seconds(f"(SELECT {sql.now})", ":again")}
WHERE {_WANTED} AND {_IS_UNSENT} RETURNING {_COLUMNS}
""")

_ERROR = sql.bound("error", "text")
_POSTED = Statement(f"""
UPDATE alert SET error = {_ERROR}, is_unsendable = :is_final,
       sent_at = CASE WHEN {_ERROR} IS NULL THEN (SELECT {sql.now}) ELSE sent_at END
WHERE id = :id
""")
