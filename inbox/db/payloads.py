"""Expires payloads: headers and bodies of events that nothing needs any more. The events stay.

On Postgres a whole leaf of old payloads is truncated at once (`inbox.db.leaves`). What can't go that way goes row by row, as
everything does on SQLite, which then gives free pages back to the operating system.

A payload may go when its event was received before the cut and has no open delivery, dead ones included. A leaf may go when
its last 10,000 events were received before the cut: numbers follow the order of arrival that closely.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta
from functools import cache
from typing import Any, NamedTuple

from sqlalchemy import Connection, TextClause, text

from inbox.db.dialect import Sql, rows_param
from inbox.db.leaves import DEFAULT, LEAST_EVENTS, LEAVES, MOST_EVENTS, OPENING_LOCK
from inbox.db.retention.pruned import Expiry, Pruned
from inbox.events.timestamps import as_time, time_text

AHEAD = 4
"""Leaves of the present size that are ready for coming events."""
MOST_LEAVES = 64
"""Beyond this number, the oldest leaves are retired: each takes part in the look for a payload."""
_PART_OF_AGE = 10
"""A leaf holds at most this part of the age at which payloads expire, as it expires as a whole."""
_DAY = timedelta(days=1)
_MOST_BYTES = 16 * 1024 * 1024
"""Bytes of the payloads that one step deletes, but for a larger single one."""
_SQLITE_RANGE = 100_000
"""Events that one walk looks at on SQLite: behind a page of it that is too young, the next range follows."""
_PAGES = 1000
"""Free pages that one step gives back on SQLite, besides those that it has emptied."""
_INCREMENTAL = 2
"""Value of SQLite's `auto_vacuum` that lets it give single pages back."""


class Leaf(NamedTuple):
    """A leaf, for the events from `first` to below `beyond`."""

    name: str
    first: int
    beyond: int


def prepare(connection: Connection, now: datetime, age: timedelta | None) -> int:
    """Make leaves for coming events where few are left, and retire the oldest ones beyond `MOST_LEAVES`.

    Args:
        connection: in a transaction.
        now: the time.
        age: the age at which payloads expire; None: they don't.

    Returns:
        How many leaves it made. Where somebody holds a lock, it does less; the next call goes on.
    """
    if not Sql(connection.dialect.name).is_postgres:
        return 0
    last = int(connection.execute(_LAST).scalar_one())
    leaves = _leaves(connection)
    size = leaf_size(_per_day(connection, last, now), age)
    top = max([leaf.beyond for leaf in leaves], default=1)
    if top <= last:  # events arrive in the default leaf already, and go on doing so until this is committed
        top = last + LEAST_EVENTS
    made = 0
    while top - last < AHEAD * size and connection.execute(_ADD, {"lo": top, "hi": top + size}).scalar_one():
        top += size
        made += 1
    if len(leaves) > MOST_LEAVES:
        connection.execute(_RETIRE, {"leaf": leaves[0].name})
    return made


def leaf_size(per_day: float, age: timedelta | None) -> int:
    """Return the number of events for a leaf: about a day's, at most a tenth of the age. Pure."""
    longest = _DAY if age is None else min(_DAY, age / _PART_OF_AGE)
    return int(min(max(per_day * (longest / _DAY), LEAST_EVENTS), MOST_EVENTS))


def expire(connection: Connection, expiry: Expiry, position: int, most: int) -> Pruned:
    """Do one step of a walk over the payloads that have expired; it can begin anywhere, and 0 is the beginning.

    Args:
        connection: in a transaction, which is to end after this.
        expiry: events received before its time have expired.
        position: the seq up to which earlier steps have looked.
        most: the most payloads to look at, where they are deleted one by one.
    """
    if expiry.before is None:
        return Pruned()
    if not Sql(connection.dialect.name).is_postgres:
        return _expire_on_sqlite(connection, expiry.before, position, most)
    if position == 0:
        return _of_leaf(connection, DEFAULT, expiry.before).pruned(1) or Pruned(position=1, is_done=False)
    last = int(connection.execute(_LAST).scalar_one())
    if position > last:
        return Pruned()
    leaf = next((leaf for leaf in _leaves(connection) if leaf.beyond > position), None)
    if leaf is None or leaf.first > position:  # in the default leaf
        return _delete(connection, expiry.before, position, last + 1 if leaf is None else leaf.first, most)
    found = _of_leaf(connection, leaf.name, expiry.before)
    return found.pruned(leaf.beyond) or _delete(connection, expiry.before, position, leaf.beyond, most)


class _Expired(NamedTuple):
    """The answer of `inbox_payload_expire_leaf`."""

    result: str
    rows: int
    bytes: int

    def pruned(self, beyond: int) -> Pruned | None:
        """Return the result of the step, which goes on beyond the leaf; None when its rows are to be looked at."""
        if self.result in {"expired", "soon", "locked"}:
            return Pruned(self.rows, self.bytes, beyond, is_done=False, passed_over=int(self.result == "locked"))
        return None


def _of_leaf(connection: Connection, leaf: str, before: datetime) -> _Expired:
    return _Expired(*connection.execute(_EXPIRE, {"leaf": leaf, "cut": before}).one())


def _expire_on_sqlite(connection: Connection, before: datetime, position: int, most: int) -> Pruned:
    last = int(connection.execute(_NEWEST).scalar() or 0)
    if position > last:
        is_done = not _give_back(connection, _PAGES)
        return Pruned(position=0 if is_done else position, is_done=is_done)
    beyond = (position // _SQLITE_RANGE + 1) * _SQLITE_RANGE
    pruned = _delete(connection, before, position, beyond, most)
    if pruned.rows:
        _give_back(connection, _PAGES)
    return pruned


def _delete(connection: Connection, before: datetime, position: int, beyond: int, most: int) -> Pruned:
    """Delete expired payloads of the next few events; a page without any ends the range."""
    sql = Sql(connection.dialect.name)
    if sql.is_postgres:  # a statement of its own: what it waited for is seen by the next ones
        connection.execute(_LOCK)
    page = {"position": position, "beyond": beyond, "before": time_text(before), "most": most}
    looked = connection.execute(_looked(sql), page).all()
    if not any(row.expired for row in looked):
        return Pruned(position=beyond, is_done=False)
    few = _few(looked)
    gone = [row for row in few if row.goes]
    if gone:
        connection.execute(_delete_these(sql), {"gone": rows_param({"seq": row.seq} for row in gone)})
    is_whole = len(looked) < most and len(few) == len(looked)
    return Pruned(len(gone), sum(row.bytes for row in gone), beyond if is_whole else few[-1].seq + 1, is_done=False)


def _few(looked: Sequence[Any]) -> Sequence[Any]:
    """Return the first of these rows up to `_MOST_BYTES`, at least one. Pure."""
    size = 0
    for number, row in enumerate(looked):
        size += row.bytes if row.goes else 0
        if size > _MOST_BYTES and number:
            return looked[:number]
    return looked


def _give_back(connection: Connection, pages: int) -> bool:
    """Give so many free pages of a SQLite file back, or fewer. Returns whether there were any."""
    cursor = connection.connection.cursor()  # the driver's own, as SQLAlchemy's would begin a transaction
    try:
        if cursor.execute("PRAGMA auto_vacuum").fetchone() != (_INCREMENTAL,):
            return False
        (free,) = cursor.execute("PRAGMA freelist_count").fetchone() or (0,)
        for _ in range(min(int(free), pages)):  # the driver steps once, so each call frees one page
            cursor.execute("PRAGMA incremental_vacuum(1)")
        return bool(free)
    finally:
        cursor.close()


def _leaves(connection: Connection) -> list[Leaf]:
    """List the leaves with a range, in their order."""
    return [Leaf(row.name, row.first, row.beyond) for row in connection.execute(_LEAVES) if row.first is not None]


def _per_day(connection: Connection, last: int, now: datetime) -> float:
    """Estimate the events of a day from the numbers of the last day, or of as long as there were any."""
    events, seconds, looked = 0, 0.0, LEAST_EVENTS
    while looked <= 2 * MOST_EVENTS and seconds < _DAY.total_seconds():
        earlier = connection.execute(_EARLIER, {"seq": last - looked}).first()
        if earlier is None:
            break
        events, seconds = last - earlier.seq, (now - as_time(earlier.received_at)).total_seconds()
        looked *= 2
    return events / max(seconds, 1.0) * _DAY.total_seconds()


_LAST = text("SELECT last_value FROM inbox_seq_seq")
_NEWEST = text("SELECT max(seq) FROM inbox_payload")
_LEAVES = text(LEAVES + " ORDER BY 2")
_ADD = text("SELECT inbox_payload_add_leaf(CAST(:lo AS bigint), CAST(:hi AS bigint))")
_EXPIRE = text("SELECT result, rows, bytes FROM inbox_payload_expire_leaf(:leaf, CAST(:cut AS timestamptz))")
_RETIRE = text("SELECT inbox_payload_retire_leaf(:leaf)")
_EARLIER = text("SELECT seq, received_at FROM inbox WHERE seq <= :seq ORDER BY seq DESC LIMIT 1")
_LOCK = text(f"SELECT pg_advisory_xact_lock({OPENING_LOCK})")


@cache
def _looked(sql: Sql) -> TextClause:
    is_expired = f"(i.received_at < {sql.time(':before')})"
    is_open = "EXISTS (SELECT 1 FROM open_delivery o WHERE o.seq = p.seq)"
    return text(f"""
SELECT p.seq, length(p.body) AS bytes, {is_expired} AS expired, {is_expired} AND NOT {is_open} AS goes
FROM inbox_payload p JOIN inbox i ON i.seq = p.seq
WHERE p.seq >= :position AND p.seq < :beyond
ORDER BY p.seq LIMIT :most
""")


@cache
def _delete_these(sql: Sql) -> TextClause:
    return text(f"DELETE FROM inbox_payload WHERE seq IN (SELECT gone.seq FROM {sql.rows('gone', seq='bigint')})")
