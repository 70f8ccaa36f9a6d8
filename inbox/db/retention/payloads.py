"""Payloads: headers and bodies of events that nothing needs any more. The events stay.

On Postgres a leaf that has expired as a whole is truncated at once (`inbox.db.leaves`); the walk deletes the rest row by row.
On SQLite the walk deletes all of it, and free pages go back to the operating system.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import NamedTuple

from sqlalchemy import Connection, text

from inbox.db.dialect import Sql
from inbox.db.leaves import DEFAULT, LEAST_EVENTS, LEAVES, MOST_EVENTS
from inbox.db.retention import walk
from inbox.db.retention.pruned import Expiry, Pruned
from inbox.db.retention.walk import Walk
from inbox.events.timestamps import as_time

AHEAD = 10
"""Leaves of the present size that are ready for coming events: ten days without a relay leave the default leaf empty."""
_LARGE_DEFAULT = 64 * 1024 * 1024
"""Bytes of the default leaf beyond which few leaves are made. Postgres reads all of it for each, and intake into it waits."""
MOST_LEAVES = 64
"""Beyond this number, the oldest leaves are retired as they get empty: each takes part in the look for a payload."""
_PART_OF_AGE = 10
"""A leaf holds at most this part of the age at which payloads expire, as it expires as a whole."""
_DAY = timedelta(days=1)
_PAGES = 1000
"""Free pages that a step gives back on SQLite."""
_INCREMENTAL = 2
"""Value of SQLite's `auto_vacuum` that lets it give single pages back."""


class Leaf(NamedTuple):
    """A leaf, for the events from `first` to below `beyond`."""

    name: str
    first: int
    beyond: int


def prepare(connection: Connection, now: datetime, age: timedelta | None) -> int:
    """Make leaves for coming events where few are left, and retire the emptiest of the oldest, beyond `MOST_LEAVES`.

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
    ranges = leaves(connection)
    size = leaf_size(_per_day(connection, last, now), age)
    top = max([leaf.beyond for leaf in ranges], default=1)
    if top <= last:  # events arrive in the default leaf already, and go on doing so until this is committed
        top = last + LEAST_EVENTS
    made = 0
    if connection.execute(_DEFAULT_SIZE).scalar_one() > _LARGE_DEFAULT:
        large = min(AHEAD * size, MOST_EVENTS)
        made = int(top - last < max(size, 2 * LEAST_EVENTS) and _add(connection, top, top + large))
    else:
        while top - last < AHEAD * size and _add(connection, top, top + size):
            top += size
            made += 1
    if old := [leaf.name for leaf in ranges[:-MOST_LEAVES] if leaf.beyond <= last]:
        connection.execute(_RETIRE, {"leaf": connection.execute(_SMALLEST, {"leaves": old}).scalar_one()})
    return made


def _add(connection: Connection, first: int, beyond: int) -> bool:
    return bool(connection.execute(_ADD, {"lo": first, "hi": beyond}).scalar_one())


def leaf_size(per_day: float, age: timedelta | None) -> int:
    """Return the number of events for a leaf: about a day's, at most a tenth of the age. Pure."""
    longest = _DAY if age is None else min(_DAY, age / _PART_OF_AGE)
    return int(min(max(per_day * (longest / _DAY), LEAST_EVENTS), MOST_EVENTS))


def leaves(connection: Connection) -> list[Leaf]:
    """List the leaves that have a range, in its order."""
    return [Leaf(row.name, row.first, row.beyond) for row in connection.execute(_LEAVES) if row.first is not None]


def step(each: Walk, connection: Connection, expiry: Expiry, position: int, most: int) -> Pruned:
    """Delete expired payloads after the position: on Postgres those of a whole leaf, or else as the walk does."""
    if not Sql(connection.dialect.name).is_postgres:
        pruned = walk.step(connection, each, expiry, position, most)
        has_freed = (pruned.rows > 0 or pruned.is_done) and _give_back(connection, _PAGES)
        return Pruned(position=position, is_done=False) if pruned.is_done and has_freed else pruned
    following = walk.next_key(connection, each, position)
    if following is None or expiry.before is None:
        return Pruned(position=position)
    leaf = next((leaf for leaf in leaves(connection) if leaf.first <= following < leaf.beyond), None)
    name, last = (DEFAULT, following) if leaf is None else (leaf.name, leaf.beyond - 1)
    found = connection.execute(_EXPIRE, {"leaf": name, "cut": expiry.before}).one()
    if found.result == "soon":
        return Pruned(position=position)
    if found.result in {"expired", "locked"}:
        return Pruned(found.rows, found.bytes, last, is_done=False, passed_over=int(found.result == "locked"))
    return walk.step(connection, each, expiry, position, most)


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


def _per_day(connection: Connection, last: int, now: datetime) -> float:
    """Estimate the events of a day from the numbers of the last day, or of as long as there were any."""
    events, seconds, looked = 0, 0.0, LEAST_EVENTS
    while looked <= 2 * MOST_EVENTS and seconds < _DAY.total_seconds():
        earlier = connection.execute(_EARLIER, {"seq": last - looked}).first()
        if earlier is None:
            break
        if (passed := (now - as_time(earlier.received_at)).total_seconds()) > 0:  # else its receiver's clock was ahead
            events, seconds = last - earlier.seq, passed
        looked *= 2
    return events / max(seconds, 1.0) * _DAY.total_seconds()


_LAST = text("SELECT last_value FROM inbox_seq_seq")
_LEAVES = text(f"{LEAVES} ORDER BY 2")
_ADD = text("SELECT inbox_payload_add_leaf(CAST(:lo AS bigint), CAST(:hi AS bigint))")
_DEFAULT_SIZE = text(f"SELECT pg_total_relation_size(CAST('{DEFAULT}' AS regclass))")
_EXPIRE = text("SELECT result, rows, bytes FROM inbox_payload_expire_leaf(:leaf, CAST(:cut AS timestamptz))")
_RETIRE = text("SELECT inbox_payload_retire_leaf(:leaf)")
_SMALLEST = text("""
SELECT l.name FROM unnest(CAST(:leaves AS text[])) WITH ORDINALITY AS l(name, n)
ORDER BY pg_relation_size(CAST(quote_ident(l.name) AS regclass)), l.n LIMIT 1
""")
_EARLIER = text("SELECT seq, received_at FROM inbox WHERE seq <= :seq ORDER BY seq DESC LIMIT 1")
