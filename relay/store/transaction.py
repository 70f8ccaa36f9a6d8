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
from inbox.db.dialect import Sql, classify_failure, rows_param
from inbox.db.leaves import SHARE_PAYLOADS
from inbox.db.pipeline import Statement as Prepared
from inbox.db.pipeline import send_together
from inbox.db.reads import Row, plain
from inbox.events.timestamps import as_time
from relay.store.statement import AnyStatement, Statement, prepare, sql

SHORT_TIMEOUT_MS = 100
"""Lock timeout for a route whose lock timed out last time, and for its rows: all other routes wait in the same thread."""
PIPELINES_SINCE = (17,)
"""The first Postgres whose `transaction_timeout` ends a transaction that hangs within a pipeline."""

Read = tuple[AnyStatement, dict[str, Any]]
"""A SELECT and its parameters."""


class FailedAlone(msgspec.Struct, frozen=True):
    """An item that a step could not process even in a separate transaction."""

    step: str
    item: str
    """The item in words, such as `route=crm seq=17`."""
    error: str
    """One line, without the database's details, which may contain values."""


class Transaction:
    """A connection within a transaction, with the SQL fragments of its dialect."""

    def __init__(
        self,
        connection: Connection,
        sql: Sql,
        now: str | None,
        node: str | None = None,
        *,
        short_timeouts_for: AbstractSet[str] = frozenset(),
    ) -> None:
        """Prepare a transaction. Its facts name `node`, and it uses a short lock timeout for the routes `short_timeouts_for`."""
        self.connection = connection
        self.sql = sql
        self.appended: Counter[tuple[str, str]] = Counter()
        """Counts of its new facts, by route and kind."""
        self.left_out: list[FailedAlone] = []
        """The parts that were skipped because the database rejected them."""
        self.keeps_payloads = False
        """True when retention must not delete payloads before this transaction ends."""
        self._now, self.node = now, node
        version = connection.dialect.server_version_info
        self._pipelines = sql.pipelines and version is not None and version >= PIPELINES_SINCE
        self._writes: list[Prepared] | None = None
        """Statements to send with the commit; None if they are sent one by one."""
        self._only_writes = False
        self._short_timeouts_for = short_timeouts_for

    def execute(self, statement: AnyStatement, **parameters: Any) -> list[Any]:  # noqa: ANN401  # values, and rows of tables
        """Run a statement and return its rows, if any. Parameters are encoded, and `:now` is bound."""
        words, values = prepare(statement, self.sql, parameters, self._now)
        if self._only_writes and words.text.lstrip().startswith(("SELECT", "WITH")):
            raise RuntimeError("a statement after queue_writes reads")
        if self._writes is not None:
            self._writes.append((words, values))
            return []
        result = self.connection.execute(words, values)
        return list(result.all()) if result.returns_rows else []

    def fetch_rows(self, statement: AnyStatement, **parameters: Any) -> list[Row]:  # noqa: ANN401  # as `execute`
        """Run a statement and return its rows as plain values, for listings."""
        found = self.execute(statement, **parameters)
        return [plain(row._mapping) for row in found]  # noqa: SLF001  # SQLAlchemy's public name

    def attempt(self, statement: AnyStatement, **parameters: Any) -> Exception | None:  # noqa: ANN401  # as `execute`
        """Run a statement within a savepoint. Returns the error if the statement itself is at fault."""
        try:
            with self.connection.begin_nested():
                self.execute(statement, **parameters)
        except Exception as error:
            if classify_failure(error) != "fault":
                raise
            return error
        return None

    def stream(self, statement: AnyStatement, at_a_time: int, **parameters: Any) -> Iterator[Any]:  # noqa: ANN401  # as `execute`
        """Yield the rows of a statement in parts, for results too large for memory."""
        words, values = prepare(statement, self.sql, parameters, self._now)
        with self.connection.execute(words, values, execution_options={"yield_per": at_a_time}) as result:
            yield from result

    def take_order_lock(self, routes: Iterable[str] | None = None, *, keeps_payloads: bool = False) -> datetime:
        """Take the order lock of these routes, or of all, then return the database's time.

        With `keeps_payloads`, retention deletes no payloads until this transaction ends. That lock is taken first: a
        transaction that waits for a batch of retention must not hold the order lock, for which all others wait.

        Every transaction that ends or makes a head takes the order lock first, in a separate statement, so that it reads
        the state left by its predecessor. Otherwise two transactions could each miss the change of the other, and the
        lane would never get a head. On SQLite the transaction already holds the write lock.
        """
        if self.sql.is_postgres and keeps_payloads:
            self.connection.execute(_SHARE_PAYLOADS)
        self.keeps_payloads = keeps_payloads
        if not self.sql.is_postgres:
            return self.now()
        return self._lock_everything() if routes is None else self._lock_routes(set(routes))

    def lock_first(self) -> datetime:
        """Lock the row that every lock of all routes takes first. Only transactions that lock all routes are excluded."""
        if self.sql.is_postgres:
            self.execute(order_lock.LOCK_OF_ALL)
        return self.now()

    def take_order_lock_and_read(self, routes: AbstractSet[str], *reads: Read) -> tuple[datetime, list[list[Any]]]:
        """Take the order lock of these routes, then run these SELECTs. Returns the time and the rows of each.

        On Postgres all are sent together, so that the lock is not held during round trips or while this process is busy.
        """
        if self._pipelines and self._short_timeouts_for.isdisjoint(routes):
            prepared = [prepare(statement, self.sql, parameters, self._now) for statement, parameters in reads]
            (granted, *found) = send_together(self.connection, [self._prepare_lock(routes), *prepared])
            if granted[0].routes == len(routes):
                return as_time(granted[0].now), found
        now = self.take_order_lock(routes)
        return now, [self.execute(statement, **parameters) for statement, parameters in reads]

    def _lock_everything(self) -> datetime:
        self.execute(order_lock.LOCK_OF_ALL)
        if self._short_timeouts_for:
            self.set_lock_timeout(SHORT_TIMEOUT_MS)
        return as_time(self.execute(order_lock.every_route(self.sql))[0].now)

    def _lock_routes(self, routes: AbstractSet[str]) -> datetime:
        """Lock these routes, after adding rows for those that were never locked before."""
        uses_short_timeouts = not self._short_timeouts_for.isdisjoint(routes)
        if uses_short_timeouts:
            self.set_lock_timeout(SHORT_TIMEOUT_MS)
        lock, parameters = self._prepare_lock(routes)
        granted = self.execute(lock, **parameters)[0]
        if granted.routes < len(routes):
            if granted.routes:  # waiters may hold that lock, or the row of a route that was added meanwhile
                self.set_lock_timeout(SHORT_TIMEOUT_MS)
            self.execute(order_lock.LOCK_OF_ALL)
            self.execute(order_lock.add_routes(self.sql), given=parameters["given"])
            granted = self.execute(lock, **parameters)[0]
        if uses_short_timeouts:
            self.set_lock_timeout(SHORT_TIMEOUT_MS)
        return as_time(granted.now)

    def _prepare_lock(self, routes: AbstractSet[str]) -> Prepared:
        given = rows_param({"route": route} for route in sorted(routes))
        return order_lock.given_routes(self.sql), {"given": given, "now": self._now}

    def queue_writes(self) -> None:
        """Queue further statements, and send them together with the commit. A SELECT then raises a RuntimeError.

        This saves round trips while the order lock is held and others wait for it.
        """
        self._only_writes = True
        if self._pipelines:
            self._writes = []

    def send_writes(self) -> None:
        """Send the queued statements, and commit."""
        if self._writes:
            send_together(self.connection, self._writes, commit=True)

    def set_lock_timeout(self, milliseconds: int) -> None:
        """Set the lock timeout for further statements. On SQLite the only lock is already held."""
        if self.sql.is_postgres:
            self.connection.execute(text(f"SET LOCAL lock_timeout = '{milliseconds}ms'"))

    def now(self) -> datetime:
        """Return the database's time, UTC."""
        return as_time(self.execute(_NOW)[0].now)


_NOW = Statement(f"SELECT {sql.now} AS now")
_SHARE_PAYLOADS = text(SHARE_PAYLOADS)
