"""Follow a table by its row numbers, so that each new row is read once and none is missed.

A number is assigned before its row is committed, so on Postgres a row may appear after rows with higher numbers. The
latest numbers are therefore remembered and checked again.
"""

from __future__ import annotations

from collections.abc import Collection
from datetime import datetime

import msgspec
from sqlalchemy import Connection, text

from inbox.db.dialect import Sql, rows_param
from inbox.db.engine import reading
from inbox.db.reads import Row, plain
from inbox.events.timestamps import as_time

PAGE = 500
"""Maximum rows of one read."""
OUT_OF_ORDER = 10_000
"""Maximum difference by which a later row may have a lower number."""
NEAR = 1000
"""Precision, in rows, of the search for the number at a time."""


class Feed(msgspec.Struct, frozen=True):
    """A growing table, with its columns and the query that reads it."""

    name: str
    table: str
    number: str
    """Column with the row number."""
    time: str
    """Column with the time."""
    select: str
    """SELECT without WHERE, with the table as `t`."""


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
    """Reads new rows of a feed after the number `last`, page by page. Rows with `known` numbers are not new."""

    def __init__(self, sql: Sql, feed: Feed, last: int, known: Collection[int], since: datetime | None) -> None:
        self.feed = feed
        self.is_behind = True
        """True if more rows are waiting."""
        self._last, self._known, self._since = last, set(known), since
        self._first = max(last - OUT_OF_ORDER, 0) if since is None else last
        wanted = f"SELECT number FROM {sql.rows('wanted', number='bigint')}"
        self._rows = text(f"{feed.select} WHERE t.{feed.number} IN ({wanted}) ORDER BY t.{feed.number}")

    def read(self, connection: Connection) -> list[Row]:
        """Return the next rows."""
        low = max(self._last - OUT_OF_ORDER, self._first)
        with reading(connection).begin():
            numbers = read_numbers(connection, self.feed, self._last, PAGE + 1) if self.is_behind else []
            if len(numbers) <= PAGE:  # late rows are searched once all others are read
                numbers = read_numbers(connection, self.feed, low, OUT_OF_ORDER + PAGE + 1)
            new = [number for number in numbers if number not in self._known]
            self.is_behind, page = len(new) > PAGE, new[:PAGE]
            given = {"wanted": rows_param({"number": number} for number in page)}
            found = [plain(row) for row in connection.execute(self._rows, given).mappings()] if page else []
        self._last = max([self._last, *page])
        self._known = {number for number in self._known.union(page) if number > self._last - OUT_OF_ORDER}
        return [row for row in found if self._since is None or row[self.feed.time] >= self._since]


def begin(connection: Connection, feed: Feed, since: datetime | None) -> Follower:
    """Begin at the end of a feed, or at a time."""
    sql = Sql(connection.dialect.name)
    with reading(connection).begin():
        if since is None:
            newest = _read_newest(connection, feed)
            known = read_numbers(connection, feed, newest - OUT_OF_ORDER, OUT_OF_ORDER)
            return Follower(sql, feed, newest, known, None)
        return Follower(sql, feed, max(find_number(connection, feed, since) - 2 * OUT_OF_ORDER, 0), (), since)


def _read_newest(connection: Connection, feed: Feed) -> int:
    return int(connection.execute(text(f"SELECT max({feed.number}) FROM {feed.table}")).scalar() or 0)


def read_numbers(connection: Connection, feed: Feed, after: int, most: int) -> list[int]:
    """Return the next row numbers."""
    numbers = text(f"SELECT {feed.number} FROM {feed.table} WHERE {feed.number} > :after ORDER BY 1 LIMIT :most")
    return list(connection.execute(numbers, {"after": after, "most": most}).scalars())


def find_number(connection: Connection, feed: Feed, moment: datetime) -> int:
    """Return approximately the lowest number of this time or later, by reads of `NEAR` rows by the primary key.

    Times rise with numbers, except that readmitted events keep their old time. A number therefore precedes the time
    only if all rows near it are older.
    """
    near = text(f"""
SELECT max(t.at) FROM (
    SELECT {feed.time} AS at FROM {feed.table} WHERE {feed.number} <= :number ORDER BY {feed.number} DESC LIMIT {NEAR}) t
""")
    low, high = 0, 1 + _read_newest(connection, feed)
    while high - low > NEAR:
        middle = (low + high) // 2
        newest = connection.execute(near, {"number": middle}).scalar()
        low, high = (middle, high) if newest is None or as_time(newest) < moment else (low, middle)
    return high
