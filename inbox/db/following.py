"""Follows a table by its numbers, so that each new row is read once and none is skipped.

A number is taken before its row is committed, so on Postgres a row may appear behind higher ones. A number that is missing
is looked for until no transaction can still hold it. Numbers of failed transactions never appear.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
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
MISSING_SECONDS = 60.0
"""Time for which a missing number is looked for: far longer than any transaction of the product may stand."""
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


class Position:
    """A place among the numbers of a table: all up to `last` were read, but for those that are missing. Pure."""

    def __init__(self, last: int) -> None:
        self.last = last
        self._missing: dict[int, float] = {}
        """Numbers that may still be committed, with the time at which each was first missed."""

    @property
    def missing(self) -> Sequence[int]:
        """The numbers to look for again."""
        return tuple(self._missing)

    def take(self, numbers: Iterable[int], now: float) -> None:
        """Note the numbers of rows that were read; `now` is in seconds of a clock that never goes back."""
        for number in sorted(numbers):
            for between in range(max(self.last + 1, number - OUT_OF_ORDER), number):
                self._missing[between] = now
            self._missing.pop(number, None)
            self.last = max(self.last, number)
        self._missing = {
            number: since
            for number, since in self._missing.items()
            if now - since < MISSING_SECONDS and number > self.last - OUT_OF_ORDER
        }


class Follower:
    """Reads the new rows of a feed, a page at a time."""

    def __init__(self, sql: Sql, feed: Feed, position: Position, since: datetime | None) -> None:
        self.feed = feed
        self._position = position
        self._since = since
        self.is_behind = True
        """More rows are waiting."""
        wanted = f"SELECT number FROM {sql.rows('wanted', number='bigint')}"
        self._missing = text(f"{feed.select} WHERE t.{feed.number} IN ({wanted}) ORDER BY t.{feed.number}")
        self._next = text(f"{feed.select} WHERE t.{feed.number} > :after ORDER BY t.{feed.number} LIMIT :page")

    def read(self, connection: Connection, now: float) -> list[Row]:
        """Return the next rows; `now` is as for `Position.take`."""
        found: list[Row] = []
        with reading(connection).begin():
            if not self.is_behind and (wanted := self._position.missing):
                given = {"wanted": rows_param({"number": number} for number in wanted)}
                found += map(plain, connection.execute(self._missing, given).mappings())
            page = {"after": self._position.last, "page": PAGE}
            new = [plain(row) for row in connection.execute(self._next, page).mappings()]
        found += new
        self._position.take((row[self.feed.number] for row in found), now)
        self.is_behind = len(new) == PAGE
        return [row for row in found if self._since is None or row[self.feed.time] >= self._since]


def begin(connection: Connection, feed: Feed, since: datetime | None, now: float) -> Follower:
    """Begin at the end of a feed, or with the rows since a time; `now` is as for `Position.take`."""
    sql = Sql(connection.dialect.name)
    with reading(connection).begin():
        newest = int(connection.execute(text(f"SELECT max({feed.number}) FROM {feed.table}")).scalar() or 0)
        position = Position(max(newest - OUT_OF_ORDER, 0))
        if since is not None:
            first = first_since(connection, sql, feed, since, newest)
            return Follower(sql, feed, Position(max(first - 1 - OUT_OF_ORDER, 0)), since)
        numbers = text(
            f"SELECT {feed.number} FROM {feed.table} WHERE {feed.number} > :after ORDER BY {feed.number} LIMIT :most"
        )
        position.take(connection.execute(numbers, {"after": position.last, "most": 2 * OUT_OF_ORDER}).scalars(), now)
    return Follower(sql, feed, position, None)


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
