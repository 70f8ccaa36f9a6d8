"""Follows a table by its numbers, so that each new row is read once and none is skipped.

A number is taken before its row is committed, so on Postgres a row may appear behind higher ones. So the last numbers are
remembered, and looked at again.
"""

from __future__ import annotations

from collections.abc import Collection
from datetime import datetime

import msgspec
from sqlalchemy import Connection, text

from inbox.db.dialect import Sql, rows_param
from inbox.db.engine import reading
from inbox.db.reads import Row, plain
from inbox.events.timestamps import time_text

PAGE = 500
"""The most rows in one look."""
OUT_OF_ORDER = 10_000
"""A row that is committed late has a number that is lower by at most so much, as `relay.store.database` assumes too."""
_BLOCK = 5000
"""Rows in one look for the first row of a time."""


class Feed(msgspec.Struct, frozen=True):
    """A table that only grows, and how it is read."""

    name: str
    table: str
    number: str
    """The column that numbers the rows."""
    time: str
    """The column that says when."""
    select: str
    """SELECT without WHERE; the table is `t` in it."""


ARRIVALS = Feed(
    "arrived",
    "inbox",
    "seq",
    "received_at",
    "SELECT t.seq, t.received_at, t.source, t.entity_type, t.entity_id, t.event_type, t.action, t.occurred_at, t.event_id,"
    " t.routes, t.content_type, t.body_bytes FROM inbox t",
)
REJECTIONS = Feed(
    "rejected",
    "rejected_request",
    "id",
    "received_at",
    "SELECT t.id, t.received_at, t.source, t.status, t.cause, t.reason, t.field, t.remote_address,"
    " length(t.body) AS body_bytes FROM rejected_request t",
)


class Follower:
    """Reads the new rows of a feed behind the number `last`, a page at a time. Rows with `known` numbers are not new."""

    def __init__(self, sql: Sql, feed: Feed, last: int, known: Collection[int], since: datetime | None) -> None:
        self.feed = feed
        self.is_behind = True
        """More rows are waiting."""
        self._last, self._known, self._since = last, set(known), since
        self._first = max(last - OUT_OF_ORDER, 0) if since is None else last
        wanted = f"SELECT number FROM {sql.rows('wanted', number='bigint')}"
        self._late = text(f"{feed.select} WHERE t.{feed.number} IN ({wanted}) ORDER BY t.{feed.number}")
        self._next = text(f"{feed.select} WHERE t.{feed.number} > :after ORDER BY t.{feed.number} LIMIT :page")

    def read(self, connection: Connection) -> list[Row]:
        """Return the next rows."""
        found: list[Row] = []
        with reading(connection).begin():
            if not self.is_behind:
                low = max(self._last - OUT_OF_ORDER, self._first)
                late = numbers_of(connection, self.feed, low, self._last) - self._known
                given = {"wanted": rows_param({"number": number} for number in sorted(late))}
                found += map(plain, connection.execute(self._late, given).mappings() if late else ())
            page = {"after": self._last, "page": PAGE}
            new = [plain(row) for row in connection.execute(self._next, page).mappings()]
        found += new
        self._known |= {row[self.feed.number] for row in found}
        self._last = max(self._known, default=self._last)
        self._known = {number for number in self._known if number > self._last - OUT_OF_ORDER}
        self.is_behind = len(new) == PAGE
        return [row for row in found if self._since is None or row[self.feed.time] >= self._since]


def begin(connection: Connection, feed: Feed, since: datetime | None) -> Follower:
    """Begin at the end of a feed, or with the rows since a time."""
    sql = Sql(connection.dialect.name)
    with reading(connection).begin():
        newest = int(connection.execute(text(f"SELECT max({feed.number}) FROM {feed.table}")).scalar() or 0)
        if since is None:
            known = numbers_of(connection, feed, newest - OUT_OF_ORDER, newest)
            return Follower(sql, feed, newest, known, None)
        first = first_since(connection, sql, feed, since, newest)
    return Follower(sql, feed, max(first - 1 - OUT_OF_ORDER, 0), (), since)


def numbers_of(connection: Connection, feed: Feed, after: int, last: int) -> set[int]:
    """Return the numbers of the rows between two of them."""
    numbers = text(f"SELECT {feed.number} FROM {feed.table} WHERE {feed.number} > :after AND {feed.number} <= :last")
    return set(connection.execute(numbers, {"after": after, "last": last}).scalars())


def first_since(connection: Connection, sql: Sql, feed: Feed, since: datetime, newest: int) -> int:
    """Return a number below which no row is of this time or later; `newest` is the highest number.

    Times follow the numbers, except for readmitted events, which keep their old time. So it looks back block by block, until
    a whole block is older.
    """
    block = text(f"""
SELECT min(CASE WHEN t.at >= {sql.time(":since")} THEN t.number END) AS first, min(t.number) AS lowest
FROM (
    SELECT {feed.number} AS number, {feed.time} AS at FROM {feed.table}
    WHERE {feed.number} < :below ORDER BY {feed.number} DESC LIMIT :block
) t
""")
    first = below = newest + 1
    while True:
        found = connection.execute(block, {"below": below, "since": time_text(since), "block": _BLOCK}).one()
        if found.first is None:
            return first
        first, below = int(found.first), int(found.lowest)
