"""Progress of retention as it is stored: the tables `pruner` and `pruning`."""

from __future__ import annotations

from datetime import datetime, timedelta
from functools import cache
from typing import Any

import msgspec
from sqlalchemy import Connection, TextClause, select, text, update
from sqlalchemy.dialects import postgresql, sqlite

from inbox.config.retention import RetentionKind
from inbox.db.dialect import Sql
from inbox.db.retention.pruned import Pruned
from inbox.db.schema import pruner, pruning
from inbox.events.timestamps import as_time

LEASE_SECONDS = 30.0
"""A pruner that dies delays the others no longer. Each batch renews it."""
ROUND_EVERY_SECONDS = 60.0
"""Between two rounds of all relays together."""
CLOCK_ADVANCE = timedelta(minutes=24)
"""The furthest that the clock of retention advances between two rounds: a day for each hour."""
DAY = timedelta(days=1)
BEHIND = DAY
"""Rows that have been expired for longer mean that retention is behind."""


def trusted_clock(now: datetime, before: datetime | None) -> datetime:
    """Return the time that ages count from: the database's, but at most `CLOCK_ADVANCE` after that of the last round.

    A clock that jumps a year ahead would otherwise delete everything at once. So it deletes a day's rows for each hour,
    and there is time to set it right. Pure.
    """
    return now if before is None else min(now, before + CLOCK_ADVANCE)


class KindState(msgspec.Struct, frozen=True):
    """A row of `pruning`."""

    kind: RetentionKind
    position: int = 0
    lap_began_at: datetime | None = None
    pruned_until: datetime | None = None
    rows: int = 0
    bytes: int = 0
    day_began_at: datetime | None = None
    rows_today: int = 0
    rows_yesterday: int = 0
    newest_at_begin: int = 0
    arrived_yesterday: int = 0
    behind_seconds: int = 0
    behind_since: datetime | None = None
    ran_at: datetime | None = None
    passed_over: int = 0
    error: str | None = None

    def begun(self, now: datetime, newest: int) -> KindState:
        """Return the state at the beginning of a round: of a new lap once a day, and with the figures of its day. Pure."""
        state = self
        if _is_over(self.lap_began_at, now):
            state = msgspec.structs.replace(state, position=0, lap_began_at=now, passed_over=0, error=None)
        if not _is_over(self.day_began_at, now):
            return state
        was_yesterday = self.day_began_at is not None and self.day_began_at <= now < self.day_began_at + 2 * DAY
        return msgspec.structs.replace(
            state,
            day_began_at=now,
            rows_today=0,
            rows_yesterday=self.rows_today if was_yesterday else 0,
            newest_at_begin=newest,
            arrived_yesterday=max(newest - self.newest_at_begin, 0) if was_yesterday else 0,
        )

    def after(self, pruned: Pruned, before: datetime | None, now: datetime) -> KindState:
        """Return the state after a batch. Pure."""
        return msgspec.structs.replace(
            self,
            position=pruned.position,
            pruned_until=before,
            rows=self.rows + pruned.rows,
            bytes=self.bytes + pruned.bytes,
            rows_today=self.rows_today + pruned.rows,
            passed_over=self.passed_over + pruned.passed_over,
            ran_at=now,
        )

    def ended(self, behind_seconds: float, now: datetime) -> KindState:
        """Return the state at the end of a round that left rows which expired so long ago. Pure."""
        is_behind = behind_seconds > BEHIND.total_seconds()
        since = (self.behind_since or now) if is_behind else None
        return msgspec.structs.replace(self, behind_seconds=round(max(behind_seconds, 0)), behind_since=since)

    def rows_per_day(self, now: datetime) -> int:
        """Return the rows pruned in the last 24 hours: today's, and the share of yesterday's. Pure."""
        if self.day_began_at is None or not self.day_began_at <= now < self.day_began_at + DAY:
            return 0
        return round(self.rows_today + self.rows_yesterday * (1 - (now - self.day_began_at) / DAY))


def _is_over(began: datetime | None, now: datetime) -> bool:
    """Return whether a day that began then is over; one that begins in the future began by a wrong clock."""
    return began is None or not began <= now < began + DAY


class PruningTurn(msgspec.Struct, frozen=True):
    """The lease of somebody who prunes."""

    now: datetime
    """The database's time."""
    clock: datetime | None
    """The time that the ages of the last round counted from."""


class LeaseHolder(msgspec.Struct, frozen=True):
    """Somebody who holds the lease."""

    name: str
    until: datetime


def take(connection: Connection, holder: str, now: str | None = None) -> PruningTurn | None:
    """Take the lease, unless somebody else has it."""
    row = connection.execute(_take(Sql(connection.dialect.name)), {"holder": holder, **seconds(now)}).first()
    if row is None:
        return None
    return PruningTurn(as_time(row.now), None if row.clock is None else as_time(row.clock))


def holder(connection: Connection) -> LeaseHolder | None:
    """Return who prunes now, as far as the lease tells."""
    row = connection.execute(select(pruner.c.held_by, pruner.c.lease_until)).first()
    return None if row is None or row.held_by is None else LeaseHolder(row.held_by, row.lease_until)


def renew(connection: Connection, holder: str, now: str | None = None) -> datetime | None:
    """Renew the lease; returns the database's time, or None when the lease is lost. It locks others out until the commit."""
    row = connection.execute(_renew(Sql(connection.dialect.name)), {"holder": holder, **seconds(now)}).first()
    return None if row is None else as_time(row.now)


def give_back(connection: Connection, holder: str, clock: datetime | None, now: str | None = None) -> None:
    """Give the lease back after a round; `clock` is the time that its ages counted from, None after an interruption."""
    at = connection.execute(text(f"SELECT {Sql(connection.dialect.name).now} AS now"), {"now": now}).scalar_one()
    ended = {} if clock is None else {"clock": clock, "ran_at": as_time(at)}
    connection.execute(update(pruner).where(pruner.c.held_by == holder).values(held_by=None, lease_until=None, **ended))


def read(connection: Connection, kind: RetentionKind) -> KindState:
    """Read the progress of a kind; one that was never pruned has none."""
    row = connection.execute(select(pruning).where(pruning.c.kind == kind)).first()
    return KindState(kind) if row is None else KindState(**row._mapping)  # noqa: SLF001  # SQLAlchemy's public name


def write(connection: Connection, state: KindState) -> None:
    """Store the progress of a kind."""
    values: dict[str, Any] = msgspec.structs.asdict(state)
    insert = postgresql.insert if Sql(connection.dialect.name).is_postgres else sqlite.insert
    changed = {name: value for name, value in values.items() if name != "kind"}
    connection.execute(insert(pruning).values(values).on_conflict_do_update(index_elements=["kind"], set_=changed))


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
