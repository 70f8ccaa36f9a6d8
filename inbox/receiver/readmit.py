"""Readmits rejected requests, read by the present configuration.

Only requests of authenticated senders are kept whole and can be readmitted. The receiver's own functions read them
(`inbox.sources.normalize.events_of`) and store them (`inbox.receiver.writer`). So one that is in the inbox by now, sent
again or readmitted before, is found to be a duplicate.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from datetime import datetime
from functools import cache, partial
from typing import Any

import msgspec
from sqlalchemy import Engine, TextClause, text

from inbox.config.forward_headers import passed_headers
from inbox.config.model import Config
from inbox.config.routing import routes_of
from inbox.config.source import Source
from inbox.db.dialect import Sql
from inbox.db.engine import reading
from inbox.db.parameters import rows_param
from inbox.db.reads import Row, plain
from inbox.errors import RequestError, Unavailable
from inbox.events.event import Event, RawRequest, Receipt
from inbox.events.timestamps import time_text
from inbox.receiver.writer import GroupCommit
from inbox.sources import preset_of
from inbox.sources.normalize import events_of

AT_A_TIME = 100
"""Requests in memory at once."""
BYTES_AT_A_TIME = 8 * 1024 * 1024
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


class ReadmitResult(msgspec.Struct):
    """A rejected request that was read again, and its result."""

    id: int
    received_at: datetime
    source: str
    cause: str
    """Cause of the rejection."""
    events: Sequence[Event] = ()
    """Its events, as it is read now."""
    rejected: str | None = None
    """Reason why it is still rejected."""
    receipts: Sequence[Receipt] = ()
    """Receipts of its events, once they are stored."""


Read = Callable[[RawRequest], Sequence[Event]]
"""Reads the events of a source's request; raises `RequestError`."""


def readers_of(config: Config) -> dict[str, Read]:
    """Return the present reader of each source's requests.

    Raises:
        ConfigError: a source's preset is missing, or can't be configured so.
    """
    return {name: _reader(config, source) for name, source in config.sources.items()}


def _reader(config: Config, source: Source) -> Read:
    preset = preset_of(source, passed_headers(source.name, config.routes.values(), config.destinations))
    return partial(events_of, source, preset, routes=routes_of(source.name, config.routes.values()))


def count(engine: Engine, selected: RejectedFilter) -> int:
    """Count the selected requests."""
    with engine.connect() as connection, reading(connection).begin():
        counted = connection.execute(_count(Sql(engine.dialect.name)), _bound(selected)).scalar_one()
    return int(counted)


def read_again(engine: Engine, readers: Mapping[str, Read], selected: RejectedFilter) -> Iterator[list[ReadmitResult]]:
    """Read the selected requests again, the oldest first, some at a time."""
    sql, after = Sql(engine.dialect.name), 0
    while True:
        with engine.connect() as connection, reading(connection).begin():
            sizes = connection.execute(_sizes(sql), {**_bound(selected), "after": after, "limit": AT_A_TIME}).all()
            if not sizes:
                return
            until = _until([(row.id, row.size) for row in sizes])
            found = connection.execute(_page(sql), {**_bound(selected), "after": after, "until": until})
            rows = [plain(row) for row in found.mappings()]
        after = until
        yield [_read(readers, row) for row in rows]


def _until(sizes: Sequence[tuple[int, int]]) -> int:
    """Return the last id that fits into a page; the first always does."""
    total, last = 0, sizes[0][0]
    for number, size in sizes:
        total += size
        if number != last and total > BYTES_AT_A_TIME:
            break
        last = number
    return last


def _read(readers: Mapping[str, Read], row: Row) -> ReadmitResult:
    """Read a request as it came, at the time of its arrival, which limits how far ahead its own time may be."""
    again = ReadmitResult(row["id"], row["received_at"], row["source"], row["cause"])
    read = readers.get(again.source)
    if read is None:
        again.rejected = "there is no such source in the configuration any more"
        return again
    raw = RawRequest(again.source, row["headers"] or {}, row["body"], again.received_at)
    try:
        again.events = read(raw)
    except RequestError as error:
        again.rejected = error.detail
    else:
        again.rejected = None if again.events else "there is no event in it"
    return again


async def store(
    engine: Engine,
    writer: GroupCommit,
    pages: Iterator[list[ReadmitResult]],
    *,
    by: str,
    reason: str,
    done: Callable[[Sequence[ReadmitResult]], None],
) -> None:
    """Store what can be read now, and note in each rejected request which event it became. Calls `done` after each page.

    Raises:
        Unavailable: the database stores nothing now. What was noted so far is stored; the rest can be readmitted later.
    """
    sql = Sql(engine.dialect.name)
    for page in pages:
        failure = await _together(_store(writer, again) for again in page if again.rejected is None)
        rows = [{"id": again.id, "seq": again.receipts[0].seq} for again in page if again.receipts]
        if rows:
            with engine.begin() as connection:
                values = {"taken": rows_param(rows), "by": by, "reason": reason, "now": None}
                connection.execute(_note(sql), values)
            await asyncio.sleep(sql.pause_after_write)
        if failure is not None:  # only now: what has been stored is noted, or it would be stored again and again
            raise failure
        done(page)


async def _store(writer: GroupCommit, again: ReadmitResult) -> None:
    try:
        again.receipts = await writer.append(again.events)
    except Unavailable:
        raise
    except RequestError as error:
        again.rejected = error.detail


async def _together(awaitables: Iterator[Awaitable[Any]]) -> BaseException | None:
    """Wait for all, and return the first error, if there is any."""
    results = await asyncio.gather(*awaitables, return_exceptions=True)
    return next((result for result in results if isinstance(result, BaseException)), None)


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
    return text(f"SELECT count(*) FROM rejected_request WHERE {_conditions(sql)}")


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
def _note(sql: Sql) -> TextClause:
    """Note a readmission; one that another person noted meanwhile stays."""
    return text(f"""
UPDATE rejected_request AS r
SET readmitted_at = {sql.now}, readmitted_seq = taken.seq, readmitted_by = :by, readmit_reason = :reason
FROM {sql.rows("taken", id="bigint", seq="bigint")}
WHERE r.id = taken.id AND r.readmitted_at IS NULL
""")
