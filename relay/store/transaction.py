"""One transaction of the relay: its statements, and the order lock."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from collections.abc import Set as AbstractSet
from datetime import datetime
from typing import Any

import msgspec
from sqlalchemy import Connection, text

from inbox.db import order_lock
from inbox.db.dialect import Sql, failure_of, rows_param
from inbox.db.leaves import SHARE_PAYLOADS
from inbox.db.pipeline import Statement as Prepared
from inbox.db.pipeline import send_together
from inbox.db.reads import Row, plain
from inbox.events.timestamps import as_time
from relay.store.statement import AnyStatement, Statement, prepare, sql

IMPATIENT_WAIT_MS = 100
"""The wait for the lock of a route that stayed locked before, and for its rows: all others wait meanwhile."""
PIPELINES_SINCE = (17,)
"""The first Postgres whose `transaction_timeout` ends a transaction that stands still within a pipeline."""

Read = tuple[AnyStatement, dict[str, Any]]
"""A statement that selects, and its parameters."""


class FailedAlone(msgspec.Struct, frozen=True):
    """An item that a step could not process, not even in a transaction of its own."""

    step: str
    item: str
    """The item in words, such as `route=crm seq=17`."""
    error: str
    """One line, without the database's details: those may hold values."""


class Transaction:
    """A connection inside one transaction, with the fragments of its dialect."""

    def __init__(
        self,
        connection: Connection,
        sql: Sql,
        now: str | None,
        node: str | None = None,
        *,
        impatient_of: AbstractSet[str] = frozenset(),
    ) -> None:
        """Its facts say that `node` made them. It waits only shortly for routes that it is `impatient_of`."""
        self.connection = connection
        self.sql = sql
        self.appended: Counter[tuple[str, str]] = Counter()
        """Counts of the facts it adds, by route and kind."""
        self.left_out: list[FailedAlone] = []
        """The parts that were skipped because the database has rejected them."""
        self.keeps_payloads = False
        """True when retention deletes no payload before it ends."""
        self._now, self.node = now, node
        version = connection.dialect.server_version_info
        self._pipelines = sql.pipelines and version is not None and version >= PIPELINES_SINCE
        self._writes: list[Prepared] | None = None
        """Statements that are sent with the commit, once it only writes."""
        self._impatient_of = impatient_of

    def execute(self, statement: AnyStatement, **parameters: Any) -> list[Any]:  # noqa: ANN401  # values, and rows of tables
        """Run a statement; its rows, if it has any. Its parameters are encoded, and `:now` is bound for it."""
        words, values = prepare(statement, self.sql, parameters, self._now)
        if self._writes is not None:
            self._writes.append((words, values))
            return []
        result = self.connection.execute(words, values)
        return list(result.all()) if result.returns_rows else []

    def rows_of(self, statement: AnyStatement, **parameters: Any) -> list[Row]:  # noqa: ANN401  # as `execute`
        """Run a statement; its rows as plain values, for a listing."""
        found = self.execute(statement, **parameters)
        return [plain(row._mapping) for row in found]  # noqa: SLF001  # SQLAlchemy's public name

    def attempt(self, statement: AnyStatement, **parameters: Any) -> Exception | None:  # noqa: ANN401  # as `execute`
        """Run a statement that must not end the transaction. Returns the error when the statement itself is at fault."""
        try:
            with self.connection.begin_nested():
                self.execute(statement, **parameters)
        except Exception as error:
            if failure_of(error) != "fault":
                raise
            return error
        return None

    def stream(self, statement: AnyStatement, at_a_time: int, **parameters: Any) -> Iterator[Any]:  # noqa: ANN401  # as `execute`
        """Yield the rows of a statement in parts, for results too large to hold."""
        words, values = prepare(statement, self.sql, parameters, self._now)
        with self.connection.execute(words, values, execution_options={"yield_per": at_a_time}) as result:
            yield from result

    def take_order_lock(self, routes: Iterable[str] | None = None, *, keeps_payloads: bool = False) -> datetime:
        """Take the order lock of these routes, or of everything, then return the database's time.

        With `keeps_payloads`, retention deletes no payload until this transaction ends. That lock comes first: who waits for
        a batch of retention must not have the order lock, for which all others wait.

        Every transaction that ends or makes a head takes it first, as a statement of its own: what it reads afterwards
        is what the one before it left. Without it lanes get stuck for good. On SQLite the transaction holds the write
        lock already.
        """
        if self.sql.is_postgres and keeps_payloads:
            self.connection.execute(_SHARE_PAYLOADS)
        self.keeps_payloads = keeps_payloads
        if not self.sql.is_postgres:
            return self.now()
        return self._lock_everything() if routes is None else self._lock_routes(set(routes))

    def lock_first(self) -> datetime:
        """Take the row that precedes a lock of everything. It excludes those who lock everything, and no one on given routes."""
        if self.sql.is_postgres:
            self.execute(order_lock.FIRST)
        return self.now()

    def take_order_lock_and_read(self, routes: AbstractSet[str], *reads: Read) -> tuple[datetime, list[list[Any]]]:
        """Take the order lock of these routes, and read what these statements select then. Returns the time, and all rows.

        On Postgres they are sent together, so that nobody waits for trips to the server and back, nor for this process.
        """
        if self._pipelines and self._impatient_of.isdisjoint(routes):
            prepared = [prepare(statement, self.sql, parameters, self._now) for statement, parameters in reads]
            (granted, *found) = send_together(self.connection, [self._lock_of(routes), *prepared])
            if granted[0].routes == len(routes):
                return as_time(granted[0].now), found
        now = self.take_order_lock(routes)
        return now, [self.execute(statement, **parameters) for statement, parameters in reads]

    def _lock_everything(self) -> datetime:
        self.execute(order_lock.FIRST)
        if self._impatient_of:
            self.limit_waits(IMPATIENT_WAIT_MS)
        return as_time(self.execute(order_lock.every_route(self.sql))[0].now)

    def _lock_routes(self, routes: AbstractSet[str]) -> datetime:
        """Lock these routes. The row of one is missing that was never locked before."""
        is_impatient = not self._impatient_of.isdisjoint(routes)
        if is_impatient:
            self.limit_waits(IMPATIENT_WAIT_MS)
        lock, parameters = self._lock_of(routes)
        granted = self.execute(lock, **parameters)[0]
        if granted.routes < len(routes):
            self.execute(order_lock.FIRST_TO_ADD_NOW if granted.routes else order_lock.FIRST)
            self.execute(order_lock.add_routes(self.sql), given=parameters["given"])
            granted = self.execute(lock, **parameters)[0]
        if is_impatient:
            self.limit_waits(IMPATIENT_WAIT_MS)
        return as_time(granted.now)

    def _lock_of(self, routes: AbstractSet[str]) -> Prepared:
        given = rows_param({"route": route} for route in sorted(routes))
        return order_lock.given_routes(self.sql), {"given": given, "now": self._now}

    def only_write(self) -> None:
        """From now on keep statements, and send them all at once with the commit. None of them may return rows.

        All others wait as long as the order lock is held, so each trip to the server and back counts.
        """
        if self._pipelines:
            self._writes = []

    def send_writes(self) -> None:
        """Send what was kept, and commit."""
        if self._writes:
            send_together(self.connection, self._writes, commit=True)

    def limit_waits(self, milliseconds: int) -> None:
        """Wait for locks no longer than this from now on. SQLite's only lock is taken already."""
        if self.sql.is_postgres:
            self.connection.execute(text(f"SET LOCAL lock_timeout = '{milliseconds}ms'"))

    def now(self) -> datetime:
        """The database's clock, UTC."""
        return as_time(self.execute(_NOW)[0].now)


_NOW = Statement(f"SELECT {sql.now} AS now")
_SHARE_PAYLOADS = text(SHARE_PAYLOADS)
