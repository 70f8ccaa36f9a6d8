"""Readmits rejected requests: reads pages of them under the current configuration, and stores their events."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from inbox.db import intake
from inbox.db.dialect import blames_items, error_text
from inbox.db.reads import Row
from inbox.events.event import Event, Receipt
from inbox.sources.normalize import Read, ReadmitResult, read_one
from relay.operations.asks import Rejections
from relay.store.database import Database
from relay.store.statement import Statement, sql
from relay.store.transaction import Transaction

AT_A_TIME = 20
"""Requests per page."""
BYTES_AT_A_TIME = 2 * 1024 * 1024
"""Bytes of bodies after which a page ends."""


def read_again(database: Database, readers: Mapping[str, Read], asked: Rejections, after: int) -> list[ReadmitResult]:
    """Read the next selected requests after the id `after` under the current configuration; at least one, if any is left."""
    given = {name: getattr(asked, name) for name in ("id", "source", "cause", "status", "error", "since", "until")}
    with database.read() as transaction:
        rows = transaction.fetch_rows(_PAGE, **given, after=after, limit=AT_A_TIME, bytes=BYTES_AT_A_TIME)
    return [_read_one(readers, row) for row in rows]


def _read_one(readers: Mapping[str, Read], row: Row) -> ReadmitResult:
    try:
        return read_one(readers, row)
    except Exception as error:  # a custom preset may raise anything
        if not blames_items(error):
            raise
        failed = f"its preset failed: {error_text(error)}"
        return ReadmitResult(row["id"], row["received_at"], row["source"], row["cause"], rejected=failed)


def take(
    transaction: Transaction, requests: Sequence[ReadmitResult], *, by: str, reason: str
) -> dict[int, list[Receipt]]:
    """Store the events of these requests as the receiver does, and record the result. Returns the receipts of each request.

    The requests are locked first. Requests that were readmitted after they were read are skipped.
    """
    locked = {row.id for row in transaction.execute(_LOCK, wanted=[each.id for each in requests])}
    requests = [request for request in requests if request.id in locked]
    became = iter(_store(transaction, [event for each in requests for event in each.events]))
    receipts = {each.id: [next(became) for _ in each.events] for each in requests}
    # A duplicate without a seq: retention has just deleted its event.
    taken = {number: own for number, own in receipts.items() if own[0].seq}
    rows = [(number, own[0].seq) for number, own in taken.items()]
    transaction.execute(_NOTE, taken=rows, by=by, reason=reason)
    return taken


def _store(transaction: Transaction, events: Sequence[Event]) -> list[Receipt]:
    seqs = intake.append(transaction.connection, events)
    known = [event for event, seq in zip(events, seqs, strict=True) if seq is None]
    firsts = iter(intake.note_duplicates(transaction.connection, known) if known else [])
    return [
        Receipt(next(firsts) or 0, duplicate=True) if seq is None else Receipt(seq, duplicate=False) for seq in seqs
    ]


_CONDITIONS = f"""body IS NOT NULL AND readmitted_at IS NULL
  AND {sql.optional("id", "bigint")} AND {sql.optional("source", "text")} AND {sql.optional("cause", "text")}
  AND {sql.optional("status", "int")} AND {sql.contains("reason", "error")}
  AND {sql.optional("received_at", "time", parameter="since", operator=">=")}
  AND {sql.optional("received_at", "time", parameter="until", operator="<")}"""
# Reads bodies up to a total size.
_PAGE = Statement(f"""
SELECT r.id, r.received_at, r.source, r.cause, r.headers, r.body, r.body_sha256
FROM (
    SELECT few.id, sum(few.size) OVER (ORDER BY few.id) - few.size AS size_before
    FROM (
        SELECT id, length(body) AS size FROM rejected_request
        WHERE id > :after AND {_CONDITIONS} ORDER BY id LIMIT :limit) few) sized
JOIN rejected_request r ON r.id = sized.id
WHERE sized.size_before < :bytes
ORDER BY r.id
""")
_LOCK = Statement(f"""
SELECT r.id FROM {sql.rows("wanted", id="bigint")} JOIN rejected_request r ON r.id = wanted.id
WHERE r.readmitted_at IS NULL
ORDER BY r.id
{sql.lock("r")}
""")
_NOTE = Statement(f"""
UPDATE rejected_request AS r
SET readmitted_at = {sql.now}, readmitted_seq = taken.seq, readmitted_by = :by, readmit_reason = :reason
FROM {sql.rows("taken", id="bigint", seq="bigint")}
WHERE r.id = taken.id AND r.readmitted_at IS NULL
""")
