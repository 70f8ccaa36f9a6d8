"""Walks a table by its key and deletes expired rows, some at a time.

A step reads one page in the order of the key, from the stored position on. It never reads the whole table. Times are
nearly in the order of the key, but not quite: a clock stepped, or an old request was readmitted. So a page without an
expired row ends the walk only when rows far ahead of it have not expired either.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta
from functools import cache

import msgspec
from sqlalchemy import Connection, TextClause, text

from inbox.db.dialect import Sql
from inbox.db.leaves import LOCK_PAYLOADS
from inbox.db.parameters import rows_param
from inbox.db.retention.pruned import Estimate, Expiry, Pruned
from inbox.db.schema import metadata
from inbox.events.timestamps import as_time, time_text

FIRST_LEAP = 1_000
"""Keys ahead of a page at which the first row is looked at; each further look is twice as far ahead."""
_LONGEST_LEAPS = 40
MOST_COUNTED = 10_000
"""More rows than these are estimated by the numbers that they took."""
_SAMPLE = 100
_LOCK_PAYLOADS = text(LOCK_PAYLOADS)
_HURRY = text("SET LOCAL lock_timeout = '100ms'")
"""Relays that open deliveries wait for the lock, and others for them: nobody's lock on a fact may hold them up for long."""


class Walk(msgspec.Struct, frozen=True):
    """The rows of a kind, and the conditions under which they go. Expressions are SQL over the alias `t`."""

    table: str
    key: str
    time: str
    """Time that the age counts from."""
    goes: str = "1 = 1"
    """Condition on an expired row; nothing that is open meets it. `{before}` stands for the time before which rows expire."""
    among: str = "1 = 1"
    """Condition of the partial index that the walk reads."""
    capped: tuple[str, ...] = ("1 = 1",)
    """Classes of rows, as conditions. The cap counts each by itself, so that a flood of one leaves the others."""
    lag_seconds: int = 0
    """Rows expire so much later than their age says: a condition on younger rows of another table then rarely keeps them."""
    needs_closed: bool = False
    """True when a delivery that is opened meanwhile would need the row."""
    companions: tuple[tuple[str, str], ...] = ()
    """Tables whose rows go with it, and their column that has its key."""

    @property
    def columns(self) -> tuple[str, ...]:
        """Return the table's columns."""
        return tuple(column.name for column in metadata.tables[self.table].columns)


class _Page(msgspec.Struct, frozen=True):
    """Rows from the position on."""

    keys: tuple[int, ...]
    last_expired: int | None
    """The last key that has expired, whether it goes or not."""
    going: tuple[int, ...]


def step(connection: Connection, walk: Walk, expiry: Expiry, position: int, most: int) -> Pruned:
    """Delete the expired rows among the next `most` after `position`, in the transaction of the caller."""
    sql = Sql(connection.dialect.name)
    limits = _limits(connection, walk, expiry)
    page = _page(connection, walk, limits, position, most)
    if page.last_expired is None:
        # A row that has not expired ends the walk, unless others behind it have.
        if page.keys and _any_further(connection, sql, walk, limits, page.keys[-1]):
            return Pruned(position=page.keys[-1], is_done=False)
        return Pruned(position=position)
    rows, size = _delete(connection, sql, walk, limits, page.going) if page.going else (0, 0)
    return Pruned(rows, size, page.last_expired, is_done=False, passed_over=len(page.going) - rows)


def estimate(connection: Connection, walk: Walk, expiry: Expiry) -> Estimate:
    """Estimate the rows that go: counts a few thousand, and halves the distance to the first that stays for the rest."""
    sql = Sql(connection.dialect.name)
    limits = _limits(connection, walk, expiry)
    page = _page(connection, walk, limits, 0, MOST_COUNTED)
    if not page.going:
        return Estimate()
    sample = {"wanted": rows_param({"key": key} for key in page.going[:_SAMPLE]), "before": limits.before}
    sizes = [int(row.size) for row in connection.execute(_measure(sql, walk), sample).all()]
    first = connection.execute(_first(walk), {"position": page.going[0] - 1}).first()
    oldest = None if first is None or first.at is None else as_time(first.at)
    rows, is_whole = len(page.going), len(page.keys) < MOST_COUNTED or page.last_expired != page.keys[-1]
    if not is_whole:
        last = max(_last_expired(connection, sql, walk, limits, page.keys[-1]), *limits.caps)
        density = MOST_COUNTED / max(page.keys[-1] - page.keys[0] + 1, 1)
        rows += round((last - page.keys[-1]) * density * len(page.going) / MOST_COUNTED)
    average = sum(sizes) / len(sizes) if sizes else 0
    return Estimate(rows, not is_whole, round(rows * average), oldest)


def _last_expired(connection: Connection, sql: Sql, walk: Walk, limits: _Limits, low: int) -> int:
    """Return about the last key that has expired, between `low` and the newest, by halving."""
    high = newest_key(connection, walk)
    while high - low > 1:
        middle = (low + high) // 2
        found = connection.execute(_probe(sql, walk), {"position": middle, "before": limits.before}).scalar()
        low, high = (middle, high) if found else (low, middle)
    return low


def oldest_expired(connection: Connection, walk: Walk, expiry: Expiry, position: int) -> datetime | None:
    """Return the time of the first row after the position, if it has expired by its age."""
    row = connection.execute(_first(walk), {"position": position}).first()
    if row is None or row.at is None or expiry.before is None:
        return None
    at = as_time(row.at)
    return at if at < expiry.before - timedelta(seconds=walk.lag_seconds) else None


def first_excess(connection: Connection, walk: Walk, expiry: Expiry) -> int | None:
    """Return the first key that exceeds the cap of its class; it may be below the position, as others went on to it."""
    if expiry.most is None:
        return None
    caps = _limits(connection, walk, expiry).caps
    firsts = (
        connection.execute(_first_of_class(walk, number)).scalar() if cap else None for number, cap in enumerate(caps)
    )
    return min(
        (int(key) for key, cap in zip(firsts, caps, strict=True) if key is not None and key <= cap), default=None
    )


def next_key(connection: Connection, walk: Walk, position: int) -> int | None:
    """Return the first key after the position."""
    row = connection.execute(_first(walk), {"position": position}).first()
    return None if row is None else int(row.key)


def newest_key(connection: Connection, walk: Walk) -> int:
    """Return the highest key of the table; 0 when it is empty."""
    return int(connection.execute(_newest(walk)).scalar_one() or 0)


class _Limits(msgspec.Struct, frozen=True):
    """The time before which rows expire, and for each class of rows the key up to which they exceed its cap."""

    before: str | None
    caps: tuple[int, ...]

    @property
    def parameters(self) -> dict[str, object]:
        """Return the parameters of statements."""
        return {"before": self.before, **{f"cap_{number}": cap for number, cap in enumerate(self.caps)}}


def _limits(connection: Connection, walk: Walk, expiry: Expiry) -> _Limits:
    before = None if expiry.before is None else time_text(expiry.before)
    if expiry.most is None:
        return _Limits(before, (0,) * len(walk.capped))
    found = (
        connection.execute(_cap(walk, number), {"most": expiry.most}).scalar() for number in range(len(walk.capped))
    )
    return _Limits(before, tuple(int(key or 0) for key in found))


def _page(connection: Connection, walk: Walk, limits: _Limits, position: int, most: int) -> _Page:
    parameters = {"position": position, "most": most, **limits.parameters}
    rows = connection.execute(_read(Sql(connection.dialect.name), walk), parameters).all()
    expired = [row for row in rows if row.goes is not None]
    return _Page(
        tuple(int(row.key) for row in rows),
        int(expired[-1].key) if expired else None,
        tuple(int(row.key) for row in expired if row.goes),
    )


def _any_further(connection: Connection, sql: Sql, walk: Walk, limits: _Limits, last: int) -> bool:
    """Return whether a row further ahead has expired: looks at one row at each of ever longer distances."""
    if max(limits.caps) > last:
        return True
    newest = newest_key(connection, walk)
    for leap in range(_LONGEST_LEAPS):
        at = last + FIRST_LEAP * 2**leap
        if at >= newest:
            return False
        if connection.execute(_probe(sql, walk), {"position": at, "before": limits.before}).scalar():
            return True
    return False


def _delete(connection: Connection, sql: Sql, walk: Walk, limits: _Limits, keys: Sequence[int]) -> tuple[int, int]:
    """Delete these rows, unless they are locked or must stay meanwhile; returns their number and bytes."""
    parameters = {"wanted": rows_param({"key": key} for key in keys), "before": limits.before}
    if walk.needs_closed and sql.is_postgres:  # in a statement before the one that looks for open deliveries
        connection.execute(_LOCK_PAYLOADS)
        connection.execute(_HURRY)
    measured = connection.execute(_lock(sql, walk), parameters).all()
    if not measured:
        return 0, 0
    gone = rows_param({"key": int(row.key)} for row in measured)
    connection.execute(_remove(sql, walk.table, walk.key), {"wanted": gone})
    for table, column in walk.companions:
        connection.execute(_remove(sql, table, column), {"wanted": gone})
    return len(measured), sum(int(row.size) for row in measured)


def _goes(sql: Sql, walk: Walk) -> str:
    return walk.goes.replace("{before}", sql.time(":before"))


def _expired(sql: Sql, walk: Walk) -> str:
    """Return the condition that a row is too old; a NULL parameter means that no age counts."""
    before = sql.time(":before")
    cut = sql.plus_seconds(before, str(-walk.lag_seconds)) if walk.lag_seconds else before
    return f"coalesce({walk.time} < {cut}, false)"


@cache
def _read(sql: Sql, walk: Walk) -> TextClause:
    """Read a page; `goes` is null for a row that has not expired. CASE spares the others' conditions."""
    too_many = " OR ".join(
        f"({condition} AND t.{walk.key} <= :cap_{number})" for number, condition in enumerate(walk.capped)
    )
    return text(f"""
SELECT t.{walk.key} AS key,
       CASE WHEN {too_many} OR {_expired(sql, walk)} THEN ({_goes(sql, walk)}) END AS goes
FROM {walk.table} t
WHERE t.{walk.key} > :position AND {walk.among}
ORDER BY t.{walk.key}
LIMIT :most
""")


@cache
def _first(walk: Walk) -> TextClause:
    return text(f"""
SELECT t.{walk.key} AS key, {walk.time} AS at FROM {walk.table} t
WHERE t.{walk.key} > :position AND {walk.among} ORDER BY t.{walk.key} LIMIT 1
""")


@cache
def _probe(sql: Sql, walk: Walk) -> TextClause:
    return text(f"""
SELECT {_expired(sql, walk)} FROM {walk.table} t
WHERE t.{walk.key} > :position AND {walk.among} ORDER BY t.{walk.key} LIMIT 1
""")


@cache
def _newest(walk: Walk) -> TextClause:
    return text(f"SELECT max({walk.key}) FROM {walk.table} t WHERE {walk.among}")


@cache
def _cap(walk: Walk, number: int) -> TextClause:
    return text(f"""
SELECT t.{walk.key} FROM {walk.table} t WHERE {walk.capped[number]} ORDER BY t.{walk.key} DESC LIMIT 1 OFFSET :most
""")


@cache
def _first_of_class(walk: Walk, number: int) -> TextClause:
    return text(f"""
SELECT t.{walk.key} FROM {walk.table} t WHERE {walk.capped[number]} ORDER BY t.{walk.key} LIMIT 1
""")


@cache
def _measure(sql: Sql, walk: Walk) -> TextClause:
    return text(_rows_that_go(sql, walk))


@cache
def _lock(sql: Sql, walk: Walk) -> TextClause:
    """Lock rows that still may go, and measure them. One that somebody has locked is passed over."""
    return text(f"{_rows_that_go(sql, walk)} {sql.skip_locked and 'FOR UPDATE OF t SKIP LOCKED'}")


def _rows_that_go(sql: Sql, walk: Walk) -> str:
    size = "pg_column_size" if sql.is_postgres else "length"
    sizes = " + ".join(f"coalesce({size}(t.{column}), 0)" for column in walk.columns)
    return f"""
SELECT t.{walk.key} AS key, {sizes} AS size
FROM {walk.table} t
WHERE t.{walk.key} IN (SELECT wanted.key FROM {sql.rows("wanted", key="bigint")}) AND {_goes(sql, walk)}
ORDER BY t.{walk.key}
"""


@cache
def _remove(sql: Sql, table: str, column: str) -> TextClause:
    wanted = sql.rows("wanted", key="bigint")
    return text(f"DELETE FROM {table} WHERE {column} IN (SELECT wanted.key FROM {wanted})")
