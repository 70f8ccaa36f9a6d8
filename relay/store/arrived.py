"""Reads stored events with their payloads, the newest first, a page at a time: each page in a short transaction that only reads."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime
from functools import cache
from typing import Any

import msgspec
from sqlalchemy import TextClause, text

from inbox.db.dialect import Sql, as_json, as_list
from inbox.db.following import ARRIVALS, first_since
from inbox.db.parameters import rows_param
from inbox.events.timestamps import as_time, time_text
from relay.store.bulkhead import isolated
from relay.store.database import Database
from relay.store.events import EVENT, payload_rows
from relay.store.transaction import Transaction

_NUMBERS = 1000
"""Numbers in one look, so that no statement runs long, however few of them match."""
_BYTES = 4 * 1024 * 1024
"""Bodies read together; a single one may be larger."""


class ArrivalFilter(msgspec.Struct, frozen=True):
    """Conditions on stored events; None: any."""

    source: str | None = None
    entity_type: str | None = None
    entity_id: str | None = None
    since: datetime | None = None
    """Received at or after."""


class ArrivalPage(msgspec.Struct, frozen=True):
    """Events between two numbers, the newest first."""

    down_to: int
    """Everything from this number on has been read."""
    rows: Sequence[Any] = ()
    """Their columns, with aware times, and `routes` as a set."""
    unreadable: Sequence[int] = ()
    """Numbers of rows that can't be read."""


def bounds(database: Database, since: datetime | None) -> tuple[int, int]:
    """The first and the last number, of events since a time; the first is above the last where there is no event."""
    with database.read() as transaction:
        row = transaction.execute(_BOUNDS)[0]
        if row.first is None:
            return 1, 0
        last = int(row.last)
        if since is None:
            return int(row.first), last
        return first_since(transaction.connection, database.sql, ARRIVALS, since, last), last


def newest_first(database: Database, wanted: ArrivalFilter, first: int, last: int) -> Iterator[ArrivalPage]:
    """Yield the events that match between two numbers. A row that can't be read costs its page no other row."""
    below = last + 1
    while below > first:
        down_to = max(first, below - _NUMBERS)
        page = _page(database, wanted, down_to, below)
        yield page
        below = down_to if page.rows else _end_of_gap(database, down_to)


def _end_of_gap(database: Database, below: int) -> int:
    """Return the number above the next event, as there may be none for billions of numbers."""
    with database.read() as transaction:
        return int(transaction.execute(_HIGHEST_BELOW, below=below)[0].seq or 0) + 1


def _page(database: Database, wanted: ArrivalFilter, down_to: int, below: int) -> ArrivalPage:
    given = {
        "source": wanted.source,
        "entity_type": wanted.entity_type,
        "entity_id": wanted.entity_id,
        "since": None if wanted.since is None else time_text(wanted.since),
        "down_to": down_to,
        "below": below,
    }

    def batch() -> ArrivalPage:
        with database.read() as transaction:
            return ArrivalPage(down_to, [*map(_readable, transaction.execute(_events(database.sql), **given))])

    def items() -> list[int]:
        with database.read() as transaction:
            return [row.seq for row in transaction.execute(_NUMBERS_BETWEEN, down_to=down_to, below=below)]

    def part(seqs: Sequence[int]) -> ArrivalPage:
        numbers = rows_param({"seq": seq} for seq in seqs)
        with database.read() as transaction:
            found = transaction.execute(_chosen(database.sql), **given, numbers=numbers)
            return ArrivalPage(down_to, [*map(_readable, found)])

    def alone(seq: int, _error: Exception) -> ArrivalPage:
        return ArrivalPage(down_to, unreadable=[seq])

    pages = [*isolated(database, "plan", batch=batch, items=items, part=part, alone=alone)]
    return ArrivalPage(
        down_to, [row for page in pages for row in page.rows], [seq for page in pages for seq in page.unreadable]
    )


def _readable(row: Any) -> dict[str, Any]:  # noqa: ANN401  # a result row
    return {
        **row._mapping,  # noqa: SLF001  # SQLAlchemy's public name
        "occurred_at": as_time(row.occurred_at),
        "received_at": as_time(row.received_at),
        "routes": frozenset(as_list(row.routes)),
        "body_bytes": int(row.body_bytes),
    }


Payloads = dict[int, tuple[dict[str, str], bytes]]
"""Headers and body by seq."""


def payloads(database: Database, sizes: Iterable[tuple[int, int]]) -> Iterator[tuple[int, Payloads]]:
    """Read the payloads of events with the given seqs and sizes, in this order, some megabytes at a time.

    Yields:
        The number of events whose payloads were looked for, and those that are kept.
    """
    for some in _in_sizes(sizes):
        with database.read() as transaction:
            rows = payload_rows(transaction, some)
            yield len(some), {row.seq: (as_json(row.headers), row.body) for row in rows}


def _in_sizes(sizes: Iterable[tuple[int, int]]) -> Iterator[list[int]]:
    some: list[int] = []
    together = 0
    for seq, size in sizes:
        if some and together + size > _BYTES:
            yield some
            some, together = [], 0
        some.append(seq)
        together += size
    if some:
        yield some


def applied_hashes(transaction: Transaction, lanes: Iterable[tuple[str, str]]) -> dict[tuple[str, str], bytes]:
    """The hash of what was sent last in each of these lanes of routes, where there is one."""
    rows = rows_param({"route": route, "lane": lane} for route, lane in set(lanes))
    return {
        (row.route, row.lane): row.applied_hash for row in transaction.execute(_hashes(transaction.sql), lanes=rows)
    }


_BOUNDS = text("SELECT min(seq) AS first, max(seq) AS last FROM inbox")
_HIGHEST_BELOW = text("SELECT max(seq) AS seq FROM inbox WHERE seq < :below")
_NUMBERS_BETWEEN = text("SELECT seq FROM inbox WHERE seq >= :down_to AND seq < :below ORDER BY seq DESC")


def _matching(sql: Sql, source: str) -> str:
    return f"""
SELECT i.seq, {EVENT}, i.routes, i.body_bytes
FROM {source}
WHERE i.seq >= :down_to AND i.seq < :below
  AND {sql.optional("i.source", "text", parameter="source")}
  AND {sql.optional("i.entity_type", "text", parameter="entity_type")}
  AND {sql.optional("i.entity_id", "text", parameter="entity_id")}
  AND {sql.optional("i.received_at", "time", parameter="since", operator=">=")}
ORDER BY i.seq DESC
"""


@cache
def _events(sql: Sql) -> TextClause:
    return text(_matching(sql, "inbox i"))


@cache
def _chosen(sql: Sql) -> TextClause:
    return text(_matching(sql, f"{sql.rows('numbers', seq='bigint')} JOIN inbox i ON i.seq = numbers.seq"))


@cache
def _hashes(sql: Sql) -> TextClause:
    return text(f"""
SELECT l.route, l.lane, l.applied_hash
FROM {sql.rows("lanes", route="text", lane="text")} JOIN lane l ON l.route = lanes.route AND l.lane = lanes.lane
WHERE l.applied_hash IS NOT NULL
""")
