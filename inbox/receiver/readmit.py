"""Takes rejected requests in after all, as the present configuration reads them.

Only what was kept whole can be: requests whose sender had proven who it is. They are read by what the receiver reads
with (`inbox.sources.normalize.events_of`) and stored by what it stores with (`inbox.receiver.writer`). So one that is in
the inbox by now, sent again or readmitted before, is found to be a duplicate.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from datetime import datetime
from functools import cache, partial
from typing import Any, Protocol

import msgspec
from sqlalchemy import Engine, TextClause, text

from inbox.config.model import Config
from inbox.db.dialect import Sql, rows_param
from inbox.db.engine import reading
from inbox.db.reads import Row, plain
from inbox.errors import RequestError, Unavailable
from inbox.events.event import Event, RawRequest, Receipt
from inbox.events.timestamps import time_text
from inbox.sources import preset_of
from inbox.sources.normalize import events_of

AT_A_TIME = 100
"""Requests that are in memory at once."""
BYTES_AT_A_TIME = 8 * 1024 * 1024
"""Of their bodies; a single one may be larger."""


class Chosen(msgspec.Struct, frozen=True):
    """Which refusals are meant: those that meet every condition that is given, and can be readmitted."""

    id: int | None = None
    source: str | None = None
    cause: str | None = None
    since: datetime | None = None


class ReadmitResult(msgspec.Struct):
    """A refused request that was read again, and what has become of it."""

    id: int
    received_at: datetime
    source: str
    cause: str
    """Of the refusal then."""
    events: Sequence[Event] = ()
    """What it says, as it is read now."""
    refused: str | None = None
    """Why it is refused now, too."""
    receipts: Sequence[Receipt] = ()
    """Of its events, once they are stored."""


class Stores(Protocol):
    """What stores events; `inbox.receiver.writer.GroupCommit` in earnest."""

    async def append(self, events: Sequence[Event]) -> list[Receipt]:
        """Store the events of one request, all or none; return after the commit."""
        ...


Read = Callable[[RawRequest], Sequence[Event]]
"""The events of a source's request; raises `RequestError`."""


def readers_of(config: Config) -> dict[str, Read]:
    """How each source's requests are read now.

    Raises:
        ConfigError: a source's preset is not there, or can't be configured so.
    """
    routes = tuple(config.routes.values())
    return {
        name: partial(events_of, source, preset_of(source), routes=routes) for name, source in config.sources.items()
    }


def how_many(engine: Engine, chosen: Chosen) -> int:
    """How many are meant."""
    with engine.connect() as connection, reading(connection).begin():
        counted = connection.execute(_count(Sql(engine.dialect.name)), _bound(chosen)).scalar_one()
    return int(counted)


def read_again(engine: Engine, readers: Mapping[str, Read], chosen: Chosen) -> Iterator[list[ReadmitResult]]:
    """All that are meant, the oldest first, some at a time."""
    sql, after = Sql(engine.dialect.name), 0
    while True:
        with engine.connect() as connection, reading(connection).begin():
            sizes = connection.execute(_sizes(sql), {**_bound(chosen), "after": after, "limit": AT_A_TIME}).all()
            if not sizes:
                return
            until = _until([(row.id, row.size) for row in sizes])
            found = connection.execute(_page(sql), {**_bound(chosen), "after": after, "until": until})
            rows = [plain(row) for row in found.mappings()]
        after = until
        yield [_read(readers, row) for row in rows]


def _until(sizes: Sequence[tuple[int, int]]) -> int:
    """The last id that fits into a page; the first always does."""
    total, last = 0, sizes[0][0]
    for number, size in sizes:
        total += size
        if number != last and total > BYTES_AT_A_TIME:
            break
        last = number
    return last


def _read(readers: Mapping[str, Read], row: Row) -> ReadmitResult:
    """It is read as it came: at the time of its arrival, which is what limits how far ahead its own time may be."""
    again = ReadmitResult(row["id"], row["received_at"], row["source"], row["cause"])
    read = readers.get(again.source)
    if read is None:
        again.refused = "there is no such source in the configuration any more"
        return again
    raw = RawRequest(again.source, row["headers"] or {}, row["body"], again.received_at)
    try:
        again.events = read(raw)
    except RequestError as error:
        again.refused = error.detail
    else:
        again.refused = None if again.events else "there is no event in it"
    return again


async def take_in(  # noqa: PLR0917  # one after the other
    engine: Engine,
    writer: Stores,
    pages: Iterator[list[ReadmitResult]],
    by: str,
    reason: str,
    done: Callable[[Sequence[ReadmitResult]], None],
) -> None:
    """Store what can be read now, and note at each refusal what it became; `done` hears of each page.

    Raises:
        Unavailable: the database takes nothing now. What was noted so far is in; the rest can be readmitted later.
    """
    sql = Sql(engine.dialect.name)
    for page in pages:
        failure = await _together(_store(writer, again) for again in page if again.refused is None)
        rows = [{"id": again.id, "seq": again.receipts[0].seq} for again in page if again.receipts]
        if rows:
            with engine.begin() as connection:
                values = {"taken": rows_param(rows), "by": by, "reason": reason, "now": None}
                connection.execute(_note(sql), values)
            await asyncio.sleep(sql.pause_after_write)
        if failure is not None:  # only now: what has been stored is noted, or it would be stored again and again
            raise failure
        done(page)


async def _store(writer: Stores, again: ReadmitResult) -> None:
    try:
        again.receipts = await writer.append(again.events)
    except Unavailable:
        raise
    except RequestError as error:
        again.refused = error.detail


async def _together(awaitables: Iterator[Awaitable[Any]]) -> BaseException | None:
    """The first error, if there is any, once all have ended."""
    results = await asyncio.gather(*awaitables, return_exceptions=True)
    return next((result for result in results if isinstance(result, BaseException)), None)


def _bound(chosen: Chosen) -> dict[str, object]:
    return {
        "id": chosen.id,
        "source": chosen.source,
        "cause": chosen.cause,
        "since": None if chosen.since is None else time_text(chosen.since),
    }


def _meant(sql: Sql) -> str:
    return f"""body IS NOT NULL AND readmitted_at IS NULL
  AND {sql.optional("id", "bigint")} AND {sql.optional("source", "text")} AND {sql.optional("cause", "text")}
  AND {sql.optional("received_at", "time", parameter="since", operator=">=")}"""


@cache
def _count(sql: Sql) -> TextClause:
    return text(f"SELECT count(*) FROM rejected_request WHERE {_meant(sql)}")


@cache
def _sizes(sql: Sql) -> TextClause:
    return text(f"""
SELECT id, length(body) AS size FROM rejected_request
WHERE id > :after AND {_meant(sql)}
ORDER BY id
LIMIT :limit
""")


@cache
def _page(sql: Sql) -> TextClause:
    return text(f"""
SELECT id, received_at, source, cause, headers, body, body_sha256
FROM rejected_request
WHERE id > :after AND id <= :until AND {_meant(sql)}
ORDER BY id
""")


@cache
def _note(sql: Sql) -> TextClause:
    """A refusal that somebody else has readmitted meanwhile keeps what is noted there."""
    return text(f"""
UPDATE rejected_request AS r
SET readmitted_at = {sql.now}, readmitted_seq = taken.seq, readmitted_by = :by, readmit_reason = :reason
FROM {sql.rows("taken", id="bigint", seq="bigint")}
WHERE r.id = taken.id AND r.readmitted_at IS NULL
""")
