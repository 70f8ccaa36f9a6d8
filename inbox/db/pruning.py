"""Rounds of retention: batches of each kind under one lease, for relays and for `inbox prune`, with progress in `pruning`."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable, Generator, Iterable, Mapping
from contextlib import AbstractContextManager, closing
from datetime import datetime, timedelta
from functools import cache
from pathlib import Path
from typing import Any

import msgspec
from sqlalchemy import Connection, Engine, TextClause, select, text, update
from sqlalchemy.dialects import postgresql, sqlite

from inbox.config.model import RetentionKind
from inbox.db import retention
from inbox.db.dialect import Sql, blames_items, error_text, is_wait_timeout
from inbox.db.engine import checkpoint
from inbox.db.retention import STEPS, WALKS, Pruned
from inbox.db.schema import pruner, pruning
from inbox.errors import ConfigError
from inbox.events.timestamps import as_time

KIND_SECONDS = 10.0
"""The longest that one kind keeps the others waiting within a round."""
ROWS, ROWS_OF_SQLITE = 500, 100
"""The most rows of a batch. SQLite has one writer, so that a batch holds the receiver up as long as it takes."""
LEAST_ROWS = 25
"""The fewest rows of a batch after one that took long: fewer save no time when the way to the database takes it."""
BATCH_SECONDS = 0.1
"""The time that a batch should take: everybody who waits for its rows waits no longer."""
REST = 4.0
"""The pause after a batch, as a multiple of the time that it took."""
LONGEST_REST = 10.0
"""Seconds: a third of the lease, which the next batch has to renew."""
LEASE_SECONDS = 30.0
"""A pruner that dies delays the others no longer. Each batch renews it."""
ROUND_EVERY_SECONDS = 60.0
"""Between two rounds of all relays together."""
CLOCK_ADVANCE = timedelta(minutes=24)
"""The furthest that the clock of retention advances between two rounds: a day for each hour."""
DAY = timedelta(days=1)
BEHIND = DAY
"""Rows that have been expired for longer mean that retention is behind."""
_VACUUM_WAIT_SECONDS = 10.0

Begin = Callable[[int], AbstractContextManager[Connection]]
"""Begins a short transaction that writes about so many rows, and commits it."""


class LeaseLost(Exception):
    """Another pruner has the lease."""


class PassedOver(msgspec.Struct, frozen=True):
    """A row that could not be deleted, not even alone."""

    kind: RetentionKind
    key: int
    error: str


Event = Pruned | PassedOver


class KindState(msgspec.Struct, frozen=True):
    """A row of `pruning`."""

    kind: RetentionKind
    position: int = 0
    lap_began_at: datetime | None = None
    pruned_until: datetime | None = None
    rows: int = 0
    bytes: int = 0
    behind_seconds: int = 0
    behind_since: datetime | None = None
    ran_at: datetime | None = None
    passed_over: int = 0
    error: str | None = None

    def begun(self, now: datetime) -> KindState:
        """Return the state before a batch: once a day a new lap begins. Pure."""
        if self.lap_began_at is not None and self.lap_began_at <= now < self.lap_began_at + DAY:
            return self
        return msgspec.structs.replace(self, position=0, lap_began_at=now, passed_over=0, error=None)

    def after(self, pruned: Pruned, before: datetime | None, now: datetime) -> KindState:
        """Return the state after a batch. Pure."""
        return msgspec.structs.replace(
            self,
            position=pruned.position,
            pruned_until=before,
            rows=self.rows + pruned.rows,
            bytes=self.bytes + pruned.bytes,
            passed_over=self.passed_over + pruned.passed_over,
            ran_at=now,
        )

    def ended(self, behind_seconds: float, now: datetime) -> KindState:
        """Return the state at the end of a round that left rows which expired so long ago. Pure."""
        is_behind = behind_seconds > BEHIND.total_seconds()
        since = (self.behind_since or now) if is_behind else None
        return msgspec.structs.replace(self, behind_seconds=round(max(behind_seconds, 0)), behind_since=since)


class PruningTurn(msgspec.Struct, frozen=True):
    """The lease of somebody who prunes."""

    now: datetime
    """The database's time."""
    clock: datetime | None
    """The time that the ages of the last round counted from."""


class LeasedPruner:
    """Prunes in short transactions under a lease, which each of them renews."""

    def __init__(
        self,
        begin: Begin,
        holder: str,
        *,
        now: Callable[[], str | None] = lambda: None,
        rest: Callable[[float], object] = time.sleep,
    ) -> None:
        """Prepare to prune.

        Args:
            begin: begins a transaction.
            holder: the name of the lease's holder.
            now: replaces the database's clock, for tests.
            rest: waits for so many seconds, or less when the process is to end.
        """
        self._begin = begin
        self.holder = holder
        self._now = now
        self._rest = rest
        self._most = ROWS_OF_SQLITE

    def take(self) -> PruningTurn | None:
        """Take the lease, unless somebody else has it."""
        with self._begin(1) as connection:
            given = {"holder": self.holder, **seconds(self._now())}
            row = connection.execute(_take(Sql(connection.dialect.name)), given).first()
        if row is None:
            return None
        return PruningTurn(as_time(row.now), None if row.clock is None else as_time(row.clock))

    def give_back(self, clock: datetime | None) -> None:
        """Give the lease back. After a whole round, `clock` is the time that its ages counted from."""
        with self._begin(1) as connection:
            ended = {} if clock is None else {"clock": clock, "ran_at": database_time(connection, self._now())}
            is_mine = pruner.c.held_by == self.holder
            connection.execute(update(pruner).where(is_mine).values(held_by=None, lease_until=None, **ended))

    def batches(
        self,
        kind: RetentionKind,
        before: datetime | None,
        *,
        seconds: float = KIND_SECONDS,
        is_stopped: Callable[[], bool] = lambda: False,
    ) -> Generator[Event, None, None]:
        """Prune rows of a kind that are older, batch by batch, until nothing is left or the time is over.

        Raises:
            LeaseLost: somebody else prunes now.
            Exception: the database is unreachable, or a statement can't run with any rows.
        """
        until = time.monotonic() + seconds
        is_done = False
        while not is_done and not is_stopped():
            began = time.monotonic()
            event = self._batch(kind, before)
            took = time.monotonic() - began
            if isinstance(event, Pruned):
                is_done = event.is_done
                self._most = self._most * 2 if took < BATCH_SECONDS else max(self._most // 2, LEAST_ROWS)
            if event is not None:
                yield event
            if is_done or time.monotonic() >= until:
                break
            self._rest(min(REST * took, LONGEST_REST))
        self._end(kind, before, is_done=is_done)

    def _batch(self, kind: RetentionKind, before: datetime | None) -> Event | None:
        """Prune some rows. Returns None after a failure: the next batch tries fewer."""
        try:
            with self._begin(self._most) as connection:
                self._most = min(self._most, ROWS if Sql(connection.dialect.name).is_postgres else ROWS_OF_SQLITE)
                now = self._renewed(connection)
                was = read(connection, kind).begun(now)
                pruned = STEPS[kind](connection, before, was.position, self._most)
                write(connection, was.after(pruned, before, now))
                return pruned
        except LeaseLost:
            raise
        except Exception as error:
            if not (is_wait_timeout(error) or blames_items(error)):
                raise
            if self._most > 1:
                self._most = max(self._most // 8, 1)
                return None
            return self._pass_over(kind, error)

    def _pass_over(self, kind: RetentionKind, error: Exception) -> PassedOver:
        """Leave the next row where it is until the next lap, so that it holds up no other."""
        walk = WALKS.get(kind)
        if walk is None:
            raise error
        with self._begin(1) as connection:
            now = self._renewed(connection)
            was = read(connection, kind).begun(now)  # a failed first batch has not stored it
            row = retention.next_row(connection, walk, None, was.position)
            if row is None:
                raise error
            pruned = Pruned(position=row.key, is_done=False, passed_over=1)
            said = f"{walk.key}={row.key}: {error_text(error)}"
            write(connection, msgspec.structs.replace(was.after(pruned, was.pruned_until, now), error=said))
        return PassedOver(kind, row.key, error_text(error))

    def _end(self, kind: RetentionKind, before: datetime | None, *, is_done: bool) -> None:
        """Store how far behind the kind is."""
        with self._begin(1) as connection:
            now = self._renewed(connection)
            was = read(connection, kind)
            oldest = None if is_done else retention.oldest_expired(connection, kind, before, was.position)
            behind = 0.0 if oldest is None or before is None else (before - oldest).total_seconds()
            write(connection, was.ended(behind, now))

    def _renewed(self, connection: Connection) -> datetime:
        """Renew the lease; returns the database's time. It locks others out until the commit."""
        given = {"holder": self.holder, **seconds(self._now())}
        row = connection.execute(_renew(Sql(connection.dialect.name)), given).first()
        if row is None:
            raise LeaseLost
        return as_time(row.now)


def trusted_clock(now: datetime, before: datetime | None) -> datetime:
    """Return the time that ages count from: the database's, but at most `CLOCK_ADVANCE` after that of the last round.

    A clock that jumps a year ahead would otherwise delete everything at once. So it deletes a day's rows for each hour,
    and there is time to set it right. Pure.
    """
    return now if before is None else min(now, before + CLOCK_ADVANCE)


def database_time(connection: Connection, now: str | None = None) -> datetime:
    """Return the database's time, or `now` if it is given."""
    return as_time(connection.execute(_now(Sql(connection.dialect.name)), {"now": now}).scalar_one())


def holder(connection: Connection) -> str | None:
    """Return who prunes now, as far as the lease tells."""
    name: str | None = connection.execute(select(pruner.c.held_by)).scalar()
    return name


def read(connection: Connection, kind: RetentionKind) -> KindState:
    """Read the progress of a kind; one that was never pruned has none."""
    row = connection.execute(select(pruning).where(pruning.c.kind == kind)).first()
    return KindState(kind) if row is None else KindState(**row._mapping)  # noqa: SLF001  # SQLAlchemy's public name


def states(connection: Connection) -> Mapping[RetentionKind, KindState]:
    """Read the progress of every kind."""
    return {kind: read(connection, kind) for kind in STEPS}


def write(connection: Connection, state: KindState) -> None:
    """Store the progress of a kind."""
    values: dict[str, Any] = msgspec.structs.asdict(state)
    insert = postgresql.insert if Sql(connection.dialect.name).is_postgres else sqlite.insert
    changed = {name: value for name, value in values.items() if name != "kind"}
    connection.execute(insert(pruning).values(values).on_conflict_do_update(index_elements=["kind"], set_=changed))


def vacuum(engine: Engine, tables: Iterable[str]) -> tuple[int, int]:
    """Vacuum these tables on Postgres, where nobody waits for it; on SQLite rewrite the file, which nobody can write meanwhile.

    Returns the size of the database in bytes before and after.

    Raises:
        ConfigError: SQLite can't do it now: somebody reads or writes, or the disk is full.
    """
    before = _size_of(engine)
    if Sql(engine.dialect.name).is_postgres:
        with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            for table in tables:
                connection.execute(text(f"VACUUM (ANALYZE) {table}"))
        return before, _size_of(engine)
    path = Path(engine.url.database or "")
    try:
        with closing(sqlite3.connect(path, timeout=_VACUUM_WAIT_SECONDS, isolation_level=None)) as file:
            file.execute("VACUUM")
    except sqlite3.Error as error:
        raise ConfigError(
            f"SQLite can't vacuum {path} now: {error}; it needs as much free disk as the file has, and a moment without"
            " another reader or writer, so stop the receiver and the relay first"
        ) from None
    checkpoint(engine)
    return before, _size_of(engine)


def _size_of(engine: Engine) -> int:
    if Sql(engine.dialect.name).is_postgres:
        with engine.connect() as connection:
            return int(connection.execute(text("SELECT pg_database_size(current_database())")).scalar_one())
    path = Path(engine.url.database or "")
    return sum(each.stat().st_size for each in (path, path.with_name(f"{path.name}-wal")) if each.exists())


def seconds(now: str | None = None) -> dict[str, object]:
    """Return the parameters of a lease's statements."""
    return {"now": now, "lease": LEASE_SECONDS, "longest": 2 * LEASE_SECONDS, "every": -ROUND_EVERY_SECONDS}


def _is_free(sql: Sql) -> str:
    """Return the condition that no lease is in force; one that ends far in the future was given by a wrong clock."""
    longest = sql.plus_seconds(f"(SELECT {sql.now})", "CAST(:longest AS float8)")
    return f"(p.lease_until IS NULL OR p.lease_until <= (SELECT {sql.now}) OR p.lease_until > {longest})"


@cache
def is_due(sql: Sql) -> TextClause:
    """Return the statement that reads whether a round is due and nobody prunes; its parameters are `seconds`."""
    last = sql.plus_seconds(f"(SELECT {sql.now})", "CAST(:every AS float8)")
    return text(f"""
SELECT {_is_free(sql)} AND (p.ran_at IS NULL OR p.ran_at <= {last} OR p.ran_at > (SELECT {sql.now})) AS is_due
FROM pruner p
""")


@cache
def _take(sql: Sql) -> TextClause:
    until = sql.plus_seconds(f"(SELECT {sql.now})", "CAST(:lease AS float8)")
    return text(f"""
UPDATE pruner AS p SET lease_until = {until}, held_by = :holder
WHERE p.held_by = :holder OR {_is_free(sql)}
RETURNING clock, (SELECT {sql.now}) AS now
""")


@cache
def _renew(sql: Sql) -> TextClause:
    until = sql.plus_seconds(f"(SELECT {sql.now})", "CAST(:lease AS float8)")
    return text(f"""
UPDATE pruner AS p SET lease_until = {until} WHERE p.held_by = :holder RETURNING (SELECT {sql.now}) AS now
""")


@cache
def _now(sql: Sql) -> TextClause:
    return text(f"SELECT {sql.now} AS now")
