"""Retention: the rows of each kind that have expired, and the short steps that delete them.

A step reads one page in the order of the key, from a position on, so that it never reads the whole table. Times are nearly in
the order of the key, but not quite: a clock stepped, or an old request was readmitted. So a page without an expired row ends
the walk only when rows far ahead of it have not expired either. Rows that must stay are passed over, until the next lap.

On Postgres a leaf of payloads that has expired as a whole is truncated at once (`inbox.db.leaves`). On SQLite free pages go
back to the operating system.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, timedelta
from functools import cache, partial
from typing import Any

import msgspec
from sqlalchemy import Connection, TextClause, text

from inbox.config.model import Retention, RetentionKind
from inbox.db import leaves
from inbox.db.dialect import Sql, rows_param
from inbox.db.schema import metadata
from inbox.events.timestamps import as_time, time_text

FIRST_LEAP = 1_000
"""Keys ahead of a page at which the first row is looked at; each further look is twice as far ahead."""
_LONGEST_LEAPS = 40
MOST_COUNTED = 10_000
"""Rows that a plan looks at for each kind."""
_FREED_PAGES = 1000
"""Free pages that a step gives back on SQLite."""
_INCREMENTAL = 2
"""Value of SQLite's `auto_vacuum` that lets it give single pages back."""
_LOCK_PAYLOADS = text(leaves.LOCK_PAYLOADS)
_HURRY = text("SET LOCAL lock_timeout = '100ms'")
"""Relays that open deliveries wait for the lock, and others for them: nobody's lock on a fact may hold them up for long."""


class Pruned(msgspec.Struct, frozen=True):
    """The result of one short step, which was one transaction."""

    rows: int = 0
    """Rows deleted: of events the events alone, of payloads the payloads."""
    bytes: int = 0
    """Bytes in these rows, about."""
    position: int = 0
    """The place where the next step begins."""
    is_done: bool = True
    """True when nothing is left to do until more expires."""
    passed_over: int = 0
    """Expired rows that were locked, and are left to a later lap."""


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
    lag_seconds: int = 0
    """Rows expire so much later than their age says: a condition on younger rows of another table then rarely keeps them."""
    needs_closed: bool = False
    """True when a delivery that is opened meanwhile would need the row."""
    companions: tuple[tuple[str, str], ...] = ()
    """Tables whose rows go with it, and their column that has its key."""


class Aged(msgspec.Struct, frozen=True):
    """Rows that go in the order of an indexed time, or are few enough to be scanned."""

    table: str
    key: str
    """Columns of the primary key."""
    time: str
    goes: str
    """Condition that the index's row has expired; `{before}` stands for the time."""
    row_bytes: int
    """Size of a row, about."""


_UNJUDGED = "EXISTS (SELECT 1 FROM duplicate_request d WHERE d.seq = t.seq AND d.handled_at IS NULL)"
_OPEN = "EXISTS (SELECT 1 FROM open_delivery o WHERE o.seq = t.seq{of_route})"

WALKS: Mapping[RetentionKind, Walk] = {
    "payloads": Walk(
        "inbox_payload",
        "seq",
        "(SELECT i.received_at FROM inbox i WHERE i.seq = t.seq)",
        goes=f"NOT {_OPEN.format(of_route='')}",
        needs_closed=True,
    ),
    "events": Walk(
        "inbox",
        "seq",
        "t.received_at",
        # The newest event stays: `relay verify` takes a number above it for one that never was.
        # One that was replayed lately keeps its facts, by the database's clock; so does one from a receiver whose clock was wrong.
        goes=f"""NOT {_OPEN.format(of_route="")} AND NOT {_UNJUDGED} AND t.seq < (SELECT max(n.seq) FROM inbox n)
            AND coalesce((SELECT max(l.at) FROM delivery_log l WHERE l.seq = t.seq) < {{before}}, true)""",
        lag_seconds=60,  # most are delivered within it; an event that a walk has left waits for the lap of the next day
        needs_closed=True,
        companions=(("delivery_log", "seq"), ("duplicate_request", "seq")),
    ),
    "attempts": Walk(
        "delivery_log",
        "id",
        "t.at",
        # A younger fact of the delivery counts the attempts before it: `relay verify` would miss them.
        goes=f"""NOT {_OPEN.format(of_route=" AND o.route = t.route")} AND NOT EXISTS (
            SELECT 1 FROM delivery_log l
            WHERE l.seq = t.seq AND l.route = t.route AND l.id > t.id AND l.at >= {{before}})""",
        among="t.kind IN ('attempt_failed', 'abandoned')",
    ),
    "rejected": Walk("rejected_request", "id", "t.received_at"),
    "duplicates": Walk(
        "duplicate_request", "id", "coalesce(t.last_received_at, t.received_at)", goes="t.handled_at IS NOT NULL"
    ),
    "alerts": Walk(
        "alert",
        "id",
        "t.at",
        goes="""t.told_at IS NOT NULL AND EXISTS (
            SELECT 1 FROM alert n WHERE n.kind = t.kind AND n.subject = t.subject AND n.id > t.id)""",
    ),
    "commands": Walk(
        "relay_command", "id", "coalesce(t.finished_at, t.asked_at)", goes="t.state NOT IN ('asked', 'running')"
    ),
    "reveals": Walk("payload_reveal", "id", "t.at"),
}

AGED: Mapping[RetentionKind, Aged] = {
    # A relay that still runs is passed over; few have run for so long.
    "relay_nodes": Aged(
        "relay_node", "id", "started_at", "t.started_at < {before} AND t.heartbeat_at < {before}", row_bytes=200
    ),
    "throughput": Aged(
        "throughput_minute", "kind, name, outcome, minute", "minute", "t.minute < {before}", row_bytes=80
    ),
}


class KindPlan(msgspec.Struct, frozen=True):
    """Expired rows of a kind."""

    kind: RetentionKind
    age: str
    """The age as the configuration has it."""
    before: datetime | None
    """Rows older than this have expired; None: no age."""
    rows: int
    """Rows that go, among the first `MOST_COUNTED`."""
    are_all: bool
    """False when more may go."""
    oldest: datetime | None
    """Time of the first row that has expired."""


def expiry_of(retention: Retention, kind: RetentionKind, clock: datetime) -> datetime | None:
    """Return the time before which rows of a kind have expired; None: never. Pure."""
    age = retention.age_of(kind)
    return None if age.is_forever else clock - timedelta(seconds=float(age))


def plan(connection: Connection, retention: Retention, now: datetime) -> list[KindPlan]:
    """Count the first expired rows of each kind; `now` is the database's time. The work is bounded."""
    return [_plan(connection, kind, retention, expiry_of(retention, kind, now)) for kind in STEPS]


def tables_of(kinds: Sequence[RetentionKind]) -> tuple[str, ...]:
    """Return the tables that pruning these kinds touches. Pure."""
    walked = [walk for kind, walk in WALKS.items() if kind in kinds]
    found = [name for walk in walked for name in (walk.table, *(table for table, _ in walk.companions))]
    return tuple(dict.fromkeys([*found, *(each.table for kind, each in AGED.items() if kind in kinds)]))


def step_of_walk(walk: Walk, connection: Connection, before: datetime | None, position: int, most: int) -> Pruned:
    """Delete the expired rows among the next `most` after `position`, in the transaction of the caller."""
    if before is None:
        return Pruned(position=position)
    page = _page(connection, walk, before, position, most)
    expired = [row for row in page if row.goes is not None]
    if not expired:
        # A row that has not expired ends the walk, unless others behind it have.
        if page and _has_expired_further(connection, walk, before, page[-1].key):
            return Pruned(position=page[-1].key, is_done=False)
        return Pruned(position=position)
    going = [row.key for row in expired if row.goes]
    rows, size = _delete(connection, walk, before, going) if going else (0, 0)
    return Pruned(rows, size, expired[-1].key, is_done=False, passed_over=len(going) - rows)


def next_row(connection: Connection, walk: Walk, before: datetime | None, position: int) -> Any | None:  # noqa: ANN401  # a row
    """Return `key` and `at` of the first row after the position, and whether it `has_expired` by its age."""
    given = {"position": position, "before": before and time_text(before)}
    return connection.execute(_next(Sql(connection.dialect.name), walk), given).first()


def oldest_expired(
    connection: Connection, kind: RetentionKind, before: datetime | None, position: int
) -> datetime | None:
    """Return the time of the first row after the position, if it has expired; of a kind that is walked."""
    row = next_row(connection, WALKS[kind], before, position) if kind in WALKS else None
    return as_time(row.at) if row is not None and row.has_expired else None


def _plan(connection: Connection, kind: RetentionKind, retention: Retention, before: datetime | None) -> KindPlan:
    shown = retention.age_of(kind).shown
    if before is None:
        return KindPlan(kind, shown, None, 0, are_all=True, oldest=None)
    if (walk := WALKS.get(kind)) is not None:
        page = _page(connection, walk, before, 0, MOST_COUNTED)
        going = [row for row in page if row.goes]
        are_all = len(page) < MOST_COUNTED or page[-1].goes is None
        oldest = as_time(going[0].at) if going else None
        return KindPlan(kind, shown, before, len(going), are_all, oldest)
    given = {"before": time_text(before), "most": MOST_COUNTED}
    row = connection.execute(_count(Sql(connection.dialect.name), AGED[kind]), given).one()
    oldest = None if row.oldest is None else as_time(row.oldest)
    return KindPlan(kind, shown, before, row.number, row.number < MOST_COUNTED, oldest)


def _page(connection: Connection, walk: Walk, before: datetime, position: int, most: int) -> Sequence[Any]:
    given = {"position": position, "most": most, "before": time_text(before)}
    return connection.execute(_read(Sql(connection.dialect.name), walk), given).all()


def _has_expired_further(connection: Connection, walk: Walk, before: datetime, last: int) -> bool:
    """Return whether a row further ahead has expired: looks at one row at each of ever longer distances."""
    for leap in range(_LONGEST_LEAPS):
        row = next_row(connection, walk, before, last + FIRST_LEAP * 2**leap)
        if row is None or row.has_expired:
            return row is not None
    return False


def _delete(connection: Connection, walk: Walk, before: datetime, keys: Sequence[int]) -> tuple[int, int]:
    """Delete these rows, unless they are locked or must stay meanwhile; returns their number and bytes."""
    sql = Sql(connection.dialect.name)
    if walk.needs_closed and sql.is_postgres:  # in a statement before the one that looks for open deliveries
        connection.execute(_LOCK_PAYLOADS)
        connection.execute(_HURRY)
    given = {"wanted": rows_param({"key": key} for key in keys), "before": time_text(before)}
    measured = connection.execute(_lock(sql, walk), given).all()
    if not measured:
        return 0, 0
    gone = rows_param({"key": int(row.key)} for row in measured)
    for table, column in ((walk.table, walk.key), *walk.companions):
        connection.execute(_remove(sql, table, column), {"wanted": gone})
    return len(measured), sum(int(row.size) for row in measured)


def _step_of_payloads(walk: Walk, connection: Connection, before: datetime | None, position: int, most: int) -> Pruned:
    """Delete expired payloads after the position: on Postgres those of a whole leaf, or else as the walk does."""
    if not Sql(connection.dialect.name).is_postgres:
        pruned = step_of_walk(walk, connection, before, position, most)
        has_freed = (pruned.rows > 0 or pruned.is_done) and _give_back(connection)
        return Pruned(position=position, is_done=False) if pruned.is_done and has_freed else pruned
    following = next_row(connection, walk, before, position)
    if following is None or before is None:
        return Pruned(position=position)
    found = leaves.expire(connection, following.key, before)
    if found.result == "soon":
        return Pruned(position=position)
    if found.result in {"expired", "locked"}:
        return Pruned(found.rows, found.bytes, found.last, is_done=False, passed_over=int(found.result == "locked"))
    return step_of_walk(walk, connection, before, position, most)


def _give_back(connection: Connection) -> bool:
    """Give some free pages of a SQLite file back. Returns whether there were any."""
    cursor = connection.connection.cursor()  # the driver's own, as SQLAlchemy's would begin a transaction
    try:
        if cursor.execute("PRAGMA auto_vacuum").fetchone() != (_INCREMENTAL,):
            return False
        (free,) = cursor.execute("PRAGMA freelist_count").fetchone() or (0,)
        for _ in range(min(int(free), _FREED_PAGES)):  # the driver steps once, so each call frees one page
            cursor.execute("PRAGMA incremental_vacuum(1)")
        return bool(free)
    finally:
        cursor.close()


def _step_of_aged(each: Aged, connection: Connection, before: datetime | None, position: int, most: int) -> Pruned:  # noqa: ARG001  # as every step
    if before is None:
        return Pruned()
    given = {"before": time_text(before), "most": most}
    gone = connection.execute(_remove_oldest(Sql(connection.dialect.name), each), given).rowcount
    return Pruned(gone, gone * each.row_bytes, is_done=gone < most)


Step = Callable[[Connection, datetime | None, int, int], Pruned]
"""Takes a connection in a transaction, the time before which rows expire, the position and the most rows to look at."""

STEPS: Mapping[RetentionKind, Step] = {
    **{kind: partial(step_of_walk, each) for kind, each in WALKS.items()},
    **{kind: partial(_step_of_aged, each) for kind, each in AGED.items()},
    "payloads": partial(_step_of_payloads, WALKS["payloads"]),
}
"""The step of each kind, in the order of a round."""


def _expired(sql: Sql, walk: Walk) -> str:
    """Return the condition that a row is too old; a NULL parameter means that no age counts."""
    before = sql.time(":before")
    cut = sql.plus_seconds(before, str(-walk.lag_seconds)) if walk.lag_seconds else before
    return f"coalesce({walk.time} < {cut}, false)"


def _goes(sql: Sql, each: Walk | Aged) -> str:
    return each.goes.replace("{before}", sql.time(":before"))


@cache
def _read(sql: Sql, walk: Walk) -> TextClause:
    """Read a page; `goes` is null for a row that has not expired. CASE spares the others' conditions."""
    return text(f"""
SELECT t.{walk.key} AS key, {walk.time} AS at, CASE WHEN {_expired(sql, walk)} THEN ({_goes(sql, walk)}) END AS goes
FROM {walk.table} t
WHERE t.{walk.key} > :position AND {walk.among}
ORDER BY t.{walk.key}
LIMIT :most
""")


@cache
def _next(sql: Sql, walk: Walk) -> TextClause:
    return text(f"""
SELECT t.{walk.key} AS key, {walk.time} AS at, {_expired(sql, walk)} AS has_expired FROM {walk.table} t
WHERE t.{walk.key} > :position AND {walk.among} ORDER BY t.{walk.key} LIMIT 1
""")


@cache
def _lock(sql: Sql, walk: Walk) -> TextClause:
    """Lock rows that still may go, and measure them. One that somebody has locked is passed over."""
    size = "pg_column_size" if sql.is_postgres else "length"
    sizes = " + ".join(f"coalesce({size}(t.{column.name}), 0)" for column in metadata.tables[walk.table].columns)
    return text(f"""
SELECT t.{walk.key} AS key, {sizes} AS size
FROM {walk.table} t
WHERE t.{walk.key} IN (SELECT wanted.key FROM {sql.rows("wanted", key="bigint")}) AND {_goes(sql, walk)}
ORDER BY t.{walk.key} {sql.skip_locked and "FOR UPDATE OF t SKIP LOCKED"}
""")


@cache
def _remove(sql: Sql, table: str, column: str) -> TextClause:
    wanted = sql.rows("wanted", key="bigint")
    return text(f"DELETE FROM {table} WHERE {column} IN (SELECT wanted.key FROM {wanted})")


@cache
def _remove_oldest(sql: Sql, each: Aged) -> TextClause:
    return text(f"""
DELETE FROM {each.table} WHERE ({each.key}) IN (
    SELECT {each.key} FROM {each.table} t WHERE {_goes(sql, each)} ORDER BY t.{each.time} LIMIT :most {sql.skip_locked})
""")


@cache
def _count(sql: Sql, each: Aged) -> TextClause:
    return text(f"""
SELECT count(*) AS number, min(at) AS oldest
FROM (SELECT t.{each.time} AS at FROM {each.table} t WHERE {_goes(sql, each)} ORDER BY t.{each.time} LIMIT :most) f
""")
