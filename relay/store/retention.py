"""Retention: selects expired rows of each kind, and deletes them in short steps under one lease.

A step reads one page in key order after its position, so that it never reads the whole table. Times mostly follow the
order of the key, except after a clock step or the readmission of an old request. So after a page without an expired row,
the walk ends only if rows far ahead have not expired either. Rows that must stay are skipped until the next lap.

On Postgres a partition of payloads that has expired as a whole is truncated at once (`inbox.db.leaves`). On SQLite free
pages are returned to the operating system.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, timedelta
from functools import cached_property, partial
from typing import Any

import msgspec
from sqlalchemy import select, text, update
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import DBAPIError

from inbox.clock import SystemClock
from inbox.config.model import Retention, RetentionKind
from inbox.db import leaves
from inbox.db.dialect import blames_items, error_text, is_lock_wait
from inbox.db.schema import pruner, pruning
from inbox.events.timestamps import as_time
from relay.store.database import Database
from relay.store.statement import Statement, sql
from relay.store.transaction import Transaction

FIRST_LEAP = 1_000
"""Distance in keys of the first row checked ahead of a page. Each further check doubles the distance."""
_LONGEST_LEAPS = 40
MOST_COUNTED = 10_000
"""Rows that a plan examines for each kind."""
_FREED_PAGES = 1000
"""The most free pages that a step returns on SQLite."""
_INCREMENTAL = 2
"""SQLite's `auto_vacuum` value for returning single pages."""
_LOCK_PAYLOADS = text(leaves.LOCK_PAYLOADS)
_HURRY = text("SET LOCAL lock_timeout = '100ms'")
"""Short lock timeout: relays that open deliveries wait behind this lock request, and others wait for them."""


class Pruned(msgspec.Struct, frozen=True):
    """The result of one step, which is one transaction."""

    rows: int = 0
    """Number of deleted rows, excluding companions."""
    position: int = 0
    """The start of the next step."""
    is_done: bool = True
    """True when nothing is left to delete until more rows expire."""
    at: datetime | None = None
    """Time of the last expired row."""
    passed_over: int = 0
    """Expired rows skipped until a later lap, as they were locked or could not be deleted."""
    error: str | None = None
    """The last row that could not be deleted even alone, and the reason."""
    is_held_up: bool = False
    """True when nothing was examined, as the rows were locked."""


_BEFORE = sql.time(":before")
_WANTED = sql.rows("wanted", key="bigint")


class Walk(msgspec.Struct, frozen=True, dict=True):
    """A kind of rows that is deleted in key order. Expressions are SQL over the alias `t`."""

    table: str
    key: str
    time: str
    """Time from which the age counts."""
    goes: str = "1 = 1"
    """Condition for deleting an expired row; open rows never meet it."""
    among: str = "1 = 1"
    """Condition of the partial index that the walk reads."""
    lag_seconds: int = 0
    """Extra age before rows expire. At that age, conditions on younger rows of other tables rarely keep them."""
    needs_closed: bool = False
    """True if a delivery that is reopened meanwhile would need the row."""
    companions: tuple[str, ...] = ()
    """Tables whose rows of the same `seq` are deleted with it."""
    removal: str | None = None
    """The statement, without its condition, for rows that lose some data but stay."""

    @cached_property
    def page(self) -> Statement:
        """Read a page; `goes` is null for rows that have not expired, whose conditions CASE does not evaluate."""
        cut = sql.plus_seconds(_BEFORE, str(-self.lag_seconds)) if self.lag_seconds else _BEFORE
        goes = f"CASE WHEN coalesce({self.time} < {cut}, false) THEN ({self.goes}) END"
        return Statement(f"""
SELECT t.{self.key} AS key, {self.time} AS at, {goes} AS goes
FROM {self.table} t
WHERE t.{self.key} > :position AND {self.among}
ORDER BY t.{self.key}
LIMIT :most
""")

    @cached_property
    def lock(self) -> Statement:
        """Lock the rows that may still be deleted, skipping locked ones."""
        return Statement(f"""
SELECT t.{self.key} AS key
FROM {self.table} t
WHERE t.{self.key} IN (SELECT wanted.key FROM {_WANTED}) AND {self.goes}
ORDER BY t.{self.key} {sql.lock("t", skip=True)}
""")

    @cached_property
    def deletions(self) -> Sequence[Statement]:
        """Delete rows and their companions."""
        tables = ((self.table, self.key), *((each, "seq") for each in self.companions))
        removals = ((self.removal or f"DELETE FROM {of}", key) for of, key in tables)
        return [Statement(f"{removal} WHERE {key} IN (SELECT wanted.key FROM {_WANTED})") for removal, key in removals]


class Aged(msgspec.Struct, frozen=True, dict=True):
    """A kind of rows that is deleted in order of an indexed time, or is small enough to scan."""

    table: str
    key: str
    """Columns of the primary key."""
    time: str
    goes: str
    """Condition that a row has expired."""

    @cached_property
    def removal(self) -> Statement:
        """Delete the oldest expired rows."""
        return Statement(f"""
DELETE FROM {self.table} WHERE ({self.key}) IN (
    SELECT {self.key} FROM {self.table} t WHERE {self.goes} ORDER BY t.{self.time} LIMIT :most {sql.lock("t", skip=True)})
RETURNING 1
""")

    @cached_property
    def count(self) -> Statement:
        """Count expired rows."""
        return Statement(
            f"SELECT count(*) AS number FROM (SELECT 1 FROM {self.table} t WHERE {self.goes} LIMIT :most) found"
        )


_UNJUDGED = "EXISTS (SELECT 1 FROM duplicate_request d WHERE d.seq = t.seq AND d.handled_at IS NULL)"
_OPEN = "EXISTS (SELECT 1 FROM open_delivery o WHERE o.seq = t.seq{of_route})"
_ATTEMPTS = "t.kind IN ('attempt_failed', 'abandoned', 'dead')"

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
        # The newest event stays, as commands and conditions count from its seq.
        # Recent facts, by the database's clock, keep an event: it was replayed lately, or its receiver's clock was wrong.
        goes=f"""NOT {_OPEN.format(of_route="")} AND NOT {_UNJUDGED} AND t.seq < (SELECT max(n.seq) FROM inbox n)
            AND coalesce((SELECT max(l.at) FROM delivery_log l WHERE l.seq = t.seq) < {_BEFORE}, true)""",
        lag_seconds=60,  # most events are delivered within this time; skipped ones wait for the next day's lap
        needs_closed=True,
        companions=("delivery_log", "duplicate_request"),
    ),
    "attempts": Walk(
        "delivery_log",
        "id",
        "t.at",
        # A younger fact of the delivery counts the attempts before it, which `relay verify` would miss.
        goes=f"""t.kind <> 'dead' AND NOT {_OPEN.format(of_route=" AND o.route = t.route")} AND NOT EXISTS (
            SELECT 1 FROM delivery_log l
            WHERE l.seq = t.seq AND l.route = t.route AND l.id > t.id AND l.at >= {_BEFORE})""",
        among=_ATTEMPTS,
    ),
    "calls": Walk(
        "delivery_log",
        "id",
        "t.at",
        goes=f"""t.detail -> 'calls' IS NOT NULL AND NOT {_OPEN.format(of_route=" AND o.route = t.route")}""",
        among=_ATTEMPTS,
        removal=f"UPDATE delivery_log SET detail = {sql.without('detail', 'calls')}",
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
    # Skips relays that are still running; few run for so long.
    "relay_nodes": Aged("relay_node", "id", "started_at", f"t.started_at < {_BEFORE} AND t.heartbeat_at < {_BEFORE}"),
    "throughput": Aged("throughput_minute", "kind, name, outcome, minute", "minute", f"t.minute < {_BEFORE}"),
}


def compute_expiry(retention: Retention, kind: RetentionKind, clock: datetime) -> datetime | None:
    """Return the time before which rows of a kind have expired; None for never. Pure."""
    age = retention.get_age(kind)
    return None if age.is_forever else clock - timedelta(seconds=float(age))


# --- the plan


def count_expired(transaction: Transaction, kind: RetentionKind, before: datetime | None) -> tuple[int, bool]:
    """Count the expired rows of a kind among the first `MOST_COUNTED`. Also returns whether the count is complete."""
    if before is None:
        return 0, True
    if (walk := WALKS.get(kind)) is not None:
        page = _read_page(transaction, walk, before, 0, MOST_COUNTED)
        return sum(bool(row.goes) for row in page), len(page) < MOST_COUNTED or page[-1].goes is None
    rows = transaction.execute(AGED[kind].count, before=before, most=MOST_COUNTED)[0].number
    return rows, rows < MOST_COUNTED


# --- the steps


def _prune_walk(walk: Walk, transaction: Transaction, before: datetime, position: int, most: int) -> Pruned:
    """Delete the expired rows among the next `most` after `position`."""
    page = _read_page(transaction, walk, before, position, most)
    expired = [row for row in page if row.goes is not None]
    if not expired:
        # A row that has not expired ends the walk, unless a row further ahead has expired.
        if page and _has_expired_further(transaction, walk, before, page[-1].key):
            return Pruned(position=page[-1].key, is_done=False)
        return Pruned(position=position)
    going = [int(row.key) for row in expired if row.goes]
    rows, error = _delete(transaction, walk, before, going) if going else (0, None)
    last = expired[-1]
    return Pruned(rows, last.key, is_done=False, at=as_time(last.at), passed_over=len(going) - rows, error=error)


def _prune_payloads(walk: Walk, transaction: Transaction, before: datetime, position: int, most: int) -> Pruned:
    """Delete expired payloads after the position: on Postgres a whole partition, otherwise as the walk does."""
    if not transaction.sql.is_postgres:
        pruned = _prune_walk(walk, transaction, before, position, most)
        has_freed = (pruned.rows > 0 or pruned.is_done) and _give_back(transaction)
        return Pruned(position=position, is_done=False) if pruned.is_done and has_freed else pruned
    following = _read_page(transaction, walk, before, position, 1)
    if not following:
        return Pruned(position=position)
    found = leaves.expire_leaf(transaction.connection, following[0].key, before)
    if found.result == "soon":
        return Pruned(position=position)
    if found.result == "rows":
        return _prune_walk(walk, transaction, before, position, most)
    is_locked = found.result == "locked"
    return Pruned(found.rows, found.last, is_done=False, at=as_time(following[0].at), passed_over=int(is_locked))


def _prune_aged(aged: Aged, transaction: Transaction, before: datetime, _position: int, most: int) -> Pruned:
    rows = len(transaction.execute(aged.removal, before=before, most=most))
    return Pruned(rows, is_done=rows < most)


Step = Callable[[Transaction, datetime, int, int], Pruned]
"""Arguments: a transaction, the time before which rows expire, the position, and the most rows to examine."""

STEPS: Mapping[RetentionKind, Step] = {
    **{kind: partial(_prune_walk, each) for kind, each in WALKS.items()},
    **{kind: partial(_prune_aged, each) for kind, each in AGED.items()},
    "payloads": partial(_prune_payloads, WALKS["payloads"]),
}
"""The step of each kind, in the order of a round."""


def _read_page(transaction: Transaction, walk: Walk, before: datetime, position: int, most: int) -> Sequence[Any]:
    """Read `key`, `at` and `goes` of the next rows after the position; `goes` is null for rows that have not expired."""
    return transaction.execute(walk.page, position=position, most=most, before=before)


def _has_expired_further(transaction: Transaction, walk: Walk, before: datetime, last: int) -> bool:
    """Return whether a row further ahead has expired, checking single rows at doubling distances."""
    for leap in range(_LONGEST_LEAPS):
        found = _read_page(transaction, walk, before, last + FIRST_LEAP * 2**leap, 1)
        if not found or found[0].goes is not None:
            return bool(found)
    return False


def _delete(transaction: Transaction, walk: Walk, before: datetime, keys: Sequence[int]) -> tuple[int, str | None]:
    """Delete these rows, except those that are locked or must now stay. Rows that can't be deleted are skipped.

    Returns:
        The number of deleted rows, and the last row that can't be deleted with its error.
    """
    if (
        walk.needs_closed and transaction.sql.is_postgres
    ):  # in a statement before the one that looks for open deliveries
        transaction.execute(_LOCK_PAYLOADS)
        transaction.execute(_HURRY)
    locked = [int(row.key) for row in transaction.execute(walk.lock, wanted=keys, before=before)]
    if not locked or _remove(transaction, walk, locked) is None:
        return len(locked), None
    errors = {key: error for key in locked if (error := _remove(transaction, walk, [key])) is not None}
    last = next(reversed(errors.items()), None)
    return len(locked) - len(errors), last and f"{walk.key}={last[0]}: {error_text(last[1])}"


def _remove(transaction: Transaction, walk: Walk, keys: Sequence[int]) -> Exception | None:
    """Delete these rows with their companions, or none of them. Returns the error if a row is at fault."""
    try:
        with transaction.connection.begin_nested():
            for deletion in walk.deletions:
                transaction.execute(deletion, wanted=keys)
    except Exception as error:
        if not blames_items(error):
            raise
        return error
    return None


def _give_back(transaction: Transaction) -> bool:
    """Return some free pages of an SQLite file to the operating system. Returns whether there were any."""
    cursor = transaction.connection.connection.cursor()  # the driver's own, as SQLAlchemy's would begin a transaction
    try:
        if cursor.execute("PRAGMA auto_vacuum").fetchone() != (_INCREMENTAL,):
            return False
        (free,) = cursor.execute("PRAGMA freelist_count").fetchone() or (0,)
        for _ in range(min(int(free), _FREED_PAGES)):  # the driver steps once, so each call frees one page
            cursor.execute("PRAGMA incremental_vacuum(1)")
        return bool(free)
    finally:
        cursor.close()


# --- rounds: batches of each kind under one lease, for relays and for `inbox prune`, with progress in `pruning`

ROWS, ROWS_OF_SQLITE = 500, 100
"""Rows of a batch, by default and on SQLite: it has one writer, so a batch blocks the receiver for its duration."""
REST = 4.0
"""The pause after a batch, as a multiple of its duration."""
LONGEST_REST = 10.0
"""The longest pause in seconds: a third of the lease, which the next batch has to renew."""
LEASE_SECONDS = 30.0
"""The lease of a pruner, which each batch renews. It is the longest delay after a pruner dies."""
ROUND_EVERY_SECONDS = 60.0
"""Interval between two rounds of all relays together."""
CLOCK_ADVANCE = timedelta(minutes=24)
"""The furthest that the clock of retention advances in each round."""
DAY = timedelta(days=1)
"""Interval between two laps. Retention is behind when expired rows are older than this."""


class KindState(msgspec.Struct, frozen=True):
    """A row of `pruning`."""

    kind: RetentionKind
    position: int = 0
    lap_began_at: datetime | None = None
    pruned_until: datetime | None = None
    rows: int = 0
    behind_seconds: int = 0
    behind_since: datetime | None = None
    ran_at: datetime | None = None
    passed_over: int = 0
    error: str | None = None

    def begin(self, now: datetime) -> KindState:
        """Return the state before a batch, with a new lap once a day. Pure."""
        if self.lap_began_at is not None and self.lap_began_at <= now < self.lap_began_at + DAY:
            return self
        return msgspec.structs.replace(self, position=0, lap_began_at=now, passed_over=0, error=None)

    def after(self, pruned: Pruned, before: datetime, now: datetime) -> KindState:
        """Return the state after a batch. Pure."""
        behind = self.behind_seconds
        if pruned.is_done:
            behind = 0
        elif pruned.at is not None:
            behind = max(round((before - pruned.at).total_seconds()), 0)
        return msgspec.structs.replace(
            self,
            position=pruned.position,
            pruned_until=before,
            rows=self.rows + pruned.rows,
            behind_seconds=behind,
            behind_since=(self.behind_since or now) if behind > DAY.total_seconds() else None,
            ran_at=now,
            passed_over=self.passed_over + pruned.passed_over,
            error=pruned.error or self.error,
        )


class LeasedPruner(msgspec.Struct, frozen=True):
    """Prunes in short transactions under a lease that each transaction renews."""

    database: Database
    holder: str
    """The name of the lease's holder."""
    rest: Callable[[float], object] = time.sleep
    """Sleeps for the given seconds, or less if the process is stopping."""

    def take(self) -> datetime | None:
        """Take the lease if it is free. Returns the time from which ages count; None if another process has it."""
        with self.database.write() as transaction:
            found = transaction.execute(_TAKE, holder=self.holder)
        return None if not found else limit_clock(as_time(found[0].now), found[0].clock and as_time(found[0].clock))

    def give_back(self, clock: datetime | None = None) -> None:
        """Give the lease back. After a complete round, `clock` is the time from which its ages counted."""
        with self.database.write() as transaction:
            ended = {} if clock is None else {"clock": clock, "ran_at": transaction.now()}
            mine = update(pruner).where(pruner.c.held_by == self.holder)
            transaction.connection.execute(mine.values(held_by=None, lease_until=None, **ended))

    def prune_batch(self, kind: RetentionKind, before: datetime | None) -> Pruned | None:
        """Prune the next rows of a kind that are older than `before`, and rest. Returns None if the lease is lost.

        Rows that can't be deleted are skipped until the next lap. With `before` None, nothing expires.
        """
        if before is None:
            return Pruned()
        began, most = time.monotonic(), ROWS if self.database.sql.is_postgres else ROWS_OF_SQLITE
        try:
            with self.database.write() as transaction:
                if not (
                    renewed := transaction.execute(_RENEW, holder=self.holder)
                ):  # others are locked out until the commit
                    return None
                now = as_time(renewed[0].now)
                was = read_kind_state(transaction, kind).begin(now)
                pruned = STEPS[kind](transaction, before, was.position, most)
                _write(transaction, was.after(pruned, before, now))
        except DBAPIError as error:
            if is_lock_wait(error):
                return Pruned(is_held_up=True)  # the next round continues
            raise
        if not pruned.is_done:
            self.rest(min(REST * (time.monotonic() - began), LONGEST_REST))
        return pruned


def limit_clock(now: datetime, before: datetime | None) -> datetime:
    """Return the time from which ages count: the database's time, but at most `CLOCK_ADVANCE` after that of the last round.

    A clock that jumps a year ahead would otherwise delete everything at once. With the limit, a day's
    rows are deleted per hour, which leaves time to correct the clock. Pure.
    """
    return now if before is None else min(now, before + CLOCK_ADVANCE)


def read_command_clock(transaction: Transaction) -> datetime:
    """Return the time from which the ages of an operator's command count: the earlier of the database's and this host's.

    So a clock that has jumped ahead deletes nothing, and rows that expired while no relay ran are deleted at once.
    """
    return min(transaction.now(), SystemClock().now())


def read_kind_state(transaction: Transaction, kind: RetentionKind) -> KindState:
    """Read the progress of a kind, or a fresh state if the kind was never pruned."""
    row = transaction.connection.execute(select(pruning).where(pruning.c.kind == kind)).first()
    return KindState(kind) if row is None else KindState(**row._mapping)  # noqa: SLF001  # SQLAlchemy's public name


def _write(transaction: Transaction, state: KindState) -> None:
    values: dict[str, Any] = msgspec.structs.asdict(state)
    insert = postgresql.insert if transaction.sql.is_postgres else sqlite.insert
    changed = {name: value for name, value in values.items() if name != "kind"}
    statement = insert(pruning).values(values).on_conflict_do_update(index_elements=["kind"], set_=changed)
    transaction.connection.execute(statement)


def is_due(transaction: Transaction) -> bool:
    """Return whether a round is due and the lease is free."""
    found = transaction.execute(_IS_DUE, every=-ROUND_EVERY_SECONDS)
    return bool(found and found[0].is_due)


_NOW = f"(SELECT {sql.now})"
_AT_MOST = sql.plus_seconds(_NOW, str(2 * LEASE_SECONDS))
# A lease that ends far in the future was taken while the clock was wrong.
_IS_FREE = f"(p.lease_until IS NULL OR p.lease_until <= {_NOW} OR p.lease_until > {_AT_MOST})"
_LAST = sql.plus_seconds(_NOW, "CAST(:every AS float8)")
_IS_DUE = Statement(f"""
SELECT {_IS_FREE} AND (p.ran_at IS NULL OR p.ran_at <= {_LAST} OR p.ran_at > {_NOW}) AS is_due FROM pruner p
""")
_RENEW, _TAKE = (
    Statement(f"""
UPDATE pruner AS p SET lease_until = {sql.plus_seconds(_NOW, str(LEASE_SECONDS))}, held_by = :holder
WHERE {condition}
RETURNING clock, {_NOW} AS now
""")
    for condition in ("p.held_by = :holder", f"(p.held_by = :holder OR {_IS_FREE})")
)
