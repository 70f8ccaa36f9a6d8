"""Rejected requests that can be readmitted: their number, their pages, and the note of their readmission."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from functools import cache

import msgspec
from sqlalchemy import Connection, Engine, TextClause, text

from inbox.db import intake
from inbox.db.dialect import Sql, blames_items, rows_param
from inbox.db.engine import reading
from inbox.db.reads import Row, plain
from inbox.events.event import Event, Receipt
from inbox.events.timestamps import time_text

AT_A_TIME = 20
"""Requests of a page."""
BYTES_AT_A_TIME = 2 * 1024 * 1024
"""Bytes of their bodies; a single one may be larger."""


class RejectedFilter(msgspec.Struct, frozen=True):
    """Selects the rejected requests that can be readmitted and meet every condition that is given."""

    id: int | None = None
    source: str | None = None
    cause: str | None = None
    status: int | None = None
    error: str | None = None
    """A part of the reason, in any case."""
    since: datetime | None = None
    until: datetime | None = None


def count(engine: Engine, selected: RejectedFilter, most: int | None = None) -> int:
    """Count the selected requests, and stop at `most`."""
    with engine.connect() as connection, reading(connection).begin():
        given = {
            **_bound(selected),
            "most": _ALL if most is None else most,
        }
        counted = connection.execute(_count(Sql(engine.dialect.name)), given).scalar_one()
    return int(counted)


def page(connection: Connection, selected: RejectedFilter, *, after: int) -> list[Row]:
    """Read the first selected requests beyond the id `after`, with their bodies; at least one, if there is any."""
    sql = Sql(connection.dialect.name)
    sizes = connection.execute(_sizes(sql), {**_bound(selected), "after": after, "limit": AT_A_TIME}).all()
    if not sizes:
        return []
    until = _until([(row.id, row.size) for row in sizes])
    found = connection.execute(_page(sql), {**_bound(selected), "after": after, "until": until})
    return [plain(row) for row in found.mappings()]


def _until(sizes: Sequence[tuple[int, int]]) -> int:
    """Return the last id that fits into a page; the first always does."""
    total, last = 0, sizes[0][0]
    for number, size in sizes:
        total += size
        if number != last and total > BYTES_AT_A_TIME:
            break
        last = number
    return last


Request = tuple[int, Sequence[Event]]
"""A rejected request by its id, and its events as they are read now."""


class Taken(msgspec.Struct, frozen=True):
    """Rejected requests that were readmitted in one transaction."""

    receipts: Mapping[int, Sequence[Receipt]] = {}
    """Receipts of the events of each."""
    failed: Mapping[int, Exception] = {}
    """Errors of requests that the database rejects; these stay as they are."""


def take(
    connection: Connection, requests: Sequence[Request], *, by: str, reason: str, now: datetime | None = None
) -> Taken:
    """Store the events of these as the receiver does, and note what each request became, in the caller's transaction.

    They are locked first, and one that was readmitted since it was read is left alone: nobody readmits it twice. Where the
    database rejects one, they are stored one by one.
    """
    if not requests:
        return Taken()
    try:
        with connection.begin_nested():
            return Taken(_take_together(connection, requests, by=by, reason=reason, now=now))
    except Exception as error:
        if not blames_items(error):
            raise
        if len(requests) == 1:
            return Taken(failed={requests[0][0]: error})
    each = [take(connection, [request], by=by, reason=reason, now=now) for request in requests]
    receipts = {number: receipt for one in each for number, receipt in one.receipts.items()}
    return Taken(receipts, {number: error for one in each for number, error in one.failed.items()})


def _take_together(
    connection: Connection, requests: Sequence[Request], *, by: str, reason: str, now: datetime | None
) -> dict[int, list[Receipt]]:
    wanted = rows_param({"id": number} for number, _ in requests)
    locked = set(connection.execute(_lock(Sql(connection.dialect.name)), {"wanted": wanted}).scalars())
    requests = [request for request in requests if request[0] in locked]
    events = [event for _, own in requests for event in own]
    seqs = intake.append(connection, events)
    known = [event for event, seq in zip(events, seqs, strict=True) if seq is None]
    firsts = iter(intake.note_duplicates(connection, known) if known else [])
    became = iter(
        [Receipt(next(firsts) or 0, duplicate=True) if seq is None else Receipt(seq, duplicate=False) for seq in seqs]
    )
    receipts = {number: [next(became) for _ in own] for number, own in requests}
    taken = {
        number: own for number, own in receipts.items() if own[0].seq
    }  # else retention has just deleted the first one
    if taken:
        _note_seqs(connection, ((number, own[0].seq) for number, own in taken.items()), by=by, reason=reason, now=now)
    return taken


def _note_seqs(
    connection: Connection, taken: Iterable[tuple[int, int]], *, by: str, reason: str, now: datetime | None
) -> None:
    """Note for each request, by its id, the seq that it became. `now` is the database's time unless it is given."""
    rows = rows_param({"id": number, "seq": seq} for number, seq in taken)
    values = {"taken": rows, "by": by, "reason": reason, "now": None if now is None else time_text(now)}
    connection.execute(_note(Sql(connection.dialect.name)), values)


_ALL = 2**63 - 1


def _bound(selected: RejectedFilter) -> dict[str, object]:
    return {
        "id": selected.id,
        "source": selected.source,
        "cause": selected.cause,
        "status": selected.status,
        "error": selected.error,
        "received_before": None if selected.until is None else time_text(selected.until),
        "since": None if selected.since is None else time_text(selected.since),
    }


def _conditions(sql: Sql) -> str:
    return f"""body IS NOT NULL AND readmitted_at IS NULL
  AND {sql.optional("id", "bigint")} AND {sql.optional("source", "text")} AND {sql.optional("cause", "text")}
  AND {sql.optional("status", "int")} AND {sql.contains("reason", "error")}
  AND {sql.optional("received_at", "time", parameter="since", operator=">=")}
  AND {sql.optional("received_at", "time", parameter="received_before", operator="<")}"""


@cache
def _count(sql: Sql) -> TextClause:
    return text(f"""
SELECT count(*) FROM (
  SELECT 1 FROM rejected_request WHERE {_conditions(sql)} LIMIT :most
) found
""")


@cache
def _sizes(sql: Sql) -> TextClause:
    return text(f"""
SELECT id, length(body) AS size FROM rejected_request
WHERE id > :after AND {_conditions(sql)}
ORDER BY id
LIMIT :limit
""")


@cache
def _page(sql: Sql) -> TextClause:
    return text(f"""
SELECT id, received_at, source, cause, headers, body, body_sha256
FROM rejected_request
WHERE id > :after AND id <= :until AND {_conditions(sql)}
ORDER BY id
""")


@cache
def _lock(sql: Sql) -> TextClause:
    return text(f"""
SELECT r.id FROM {sql.rows("wanted", id="bigint")} JOIN rejected_request r ON r.id = wanted.id
WHERE r.readmitted_at IS NULL
ORDER BY r.id
{sql.for_update and "FOR UPDATE OF r"}
""")


@cache
def _note(sql: Sql) -> TextClause:
    return text(f"""
UPDATE rejected_request AS r
SET readmitted_at = {sql.now}, readmitted_seq = taken.seq, readmitted_by = :by, readmit_reason = :reason
FROM {sql.rows("taken", id="bigint", seq="bigint")}
WHERE r.id = taken.id AND r.readmitted_at IS NULL
""")
