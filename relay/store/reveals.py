"""Rows of `payload_reveal`: who saw the headers and body of an event on the operator's page, and why."""

from __future__ import annotations

from functools import cache

from sqlalchemy import TextClause, text

from inbox.db.dialect import Sql
from inbox.db.reads import Row
from relay.store.database import Database

MOST_SHOWN = 50


def record(database: Database, seq: int, *, who: str, reason: str) -> int:
    """Record a reveal before the payload is shown, in a transaction of its own. Returns its number.

    Raises:
        IntegrityError: the name or the reason is empty.
    """
    with database.write() as transaction:
        return int(transaction.execute(_insert(transaction.sql), seq=seq, who=who, reason=reason)[0].id)


def of_event(database: Database, seq: int) -> list[Row]:
    """Return the last reveals of an event, the newest first: `id`, `at`, `who` and `reason`, at most `MOST_SHOWN`."""
    with database.read() as transaction:
        return transaction.rows_of(_OF_EVENT, seq=seq, most=MOST_SHOWN)


@cache
def _insert(sql: Sql) -> TextClause:
    return text(
        f"INSERT INTO payload_reveal (at, seq, who, reason) VALUES ({sql.now}, :seq, :who, :reason) RETURNING id"
    )


_OF_EVENT = text("SELECT id, at, who, reason FROM payload_reveal WHERE seq = :seq ORDER BY id DESC LIMIT :most")
