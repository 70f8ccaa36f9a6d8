"""The relay's way into the database, and what one process knows of it from one transaction to the next."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from contextlib import contextmanager
from datetime import datetime

import msgspec
from sqlalchemy import Engine, TextClause
from sqlalchemy.exc import DBAPIError

from inbox.db import order_lock
from inbox.db.dialect import Sql, is_turn_timeout, is_wait_timeout, rows_param
from inbox.db.engine import LOCK_TIMEOUT_SECONDS, Checkpoints, checkpoint, reading, snapshot
from inbox.db.throughput import ROUTE, Tally
from inbox.events.timestamps import time_text
from relay.store.scan_positions import Arrivals
from relay.store.transaction import FailedAlone, Key, Transaction
from relay.store.turns import LONGEST_FOR_A_ROUTE, LONGEST_FOR_A_ROW, BackOffs, Stalls

SEQS_OUT_OF_ORDER = 10_000
"""A `seq` is taken before its event is committed: one that comes later may be lower, by at most so much."""
HASTE_SECONDS = 120.0
"""A thread that waited in vain for a locked row hardly waits for others for so long: longer than any step's backoff."""


class Left(msgspec.Struct, frozen=True):
    """Items that a step leaves as they are: somebody has locked them, or they can't even be set aside."""

    step: str
    routes: Sequence[str]
    """The routes that it has tried now, in vain. None: all that it leaves wait for their next try."""
    error: Exception | None
    again_in: float
    """Seconds until it tries them again, at most."""


class Database:
    """The relay's way into the database, safe to share between threads.

    `clock` replaces the database's own clock, for tests. `on_facts` hears, after each commit, how many facts of each route
    and kind were added to the log; `on_failed_alone` hears of each item that a step could not work on; `on_left` of each
    time that a step leaves items as they are.
    """

    on_facts: Callable[[Mapping[tuple[str, str], int]], None] | None = None
    on_failed_alone: Callable[[FailedAlone], None] | None = None
    on_left: Callable[[Left], None] | None = None

    def __init__(self, engine: Engine, clock: Callable[[], datetime] | None = None) -> None:
        self.engine = engine
        self.sql = Sql(engine.dialect.name)
        self.arrivals = Arrivals()
        """Deliveries that have arrived and are not sequenced."""
        self.unreaped: set[str] = set()
        """Routes of expired leases that the last look has left as they are."""
        self.stalls = Stalls()
        """Routes whose lock somebody keeps."""
        self.back_offs = BackOffs()
        """Routes and items that a step has left as they are, and does not try yet."""
        self.tally = Tally()
        """The figures of its transactions, which a relay writes."""
        self._clock = clock
        self._thread = threading.local()
        self._checkpoints = Checkpoints() if self.sql.needs_checkpoints else None

    @contextmanager
    def write(self) -> Iterator[Transaction]:
        """One short transaction, committed when the block ends without an exception."""
        began = time.monotonic()
        is_hasty = began < getattr(self._thread, "hasty_until", 0.0)
        try:
            with self.engine.begin() as connection:
                tries = getattr(self._thread, "tries", False)
                transaction = Transaction(
                    connection, self.sql, self._now(), stalls=self.stalls, is_hasty=is_hasty, tries=tries
                )
                yield transaction
                transaction.send_writes()
        except DBAPIError as error:
            now = time.monotonic()
            # A shorter wait was a hasty one, or the statement did not mean to wait: neither begins the time again.
            if is_wait_timeout(error) and now - began >= LOCK_TIMEOUT_SECONDS:
                self._thread.hasty_until = now + HASTE_SECONDS
            raise
        if self.on_facts is not None and transaction.appended:
            self.on_facts(transaction.appended)
        for (route, kind), count in transaction.appended.items():
            self.tally.add(ROUTE, route, kind, count=count)
        for item in transaction.left_out:
            self.failed_alone(item)
        if self.sql.pause_after_write:
            time.sleep(self.sql.pause_after_write)
        if self._checkpoints is not None and self._checkpoints.due(transaction.rows):
            self._checkpoints.made(complete=checkpoint(self.engine))

    @contextmanager
    def trying(self, *, at_once: bool) -> Iterator[None]:
        """With `at_once`, let no transaction of this thread wait for the lock of given routes during the block."""
        before = getattr(self._thread, "tries", False)
        self._thread.tries = at_once
        try:
            yield
        finally:
            self._thread.tries = before

    @contextmanager
    def read(self) -> Iterator[Transaction]:
        """One transaction that only reads."""
        with self.engine.connect() as connection, reading(connection).begin():
            yield Transaction(connection, self.sql, self._now())

    @contextmanager
    def snapshot(self) -> Iterator[Transaction]:
        """One read-only transaction whose statements all see the same snapshot."""
        with self.engine.connect() as connection, snapshot(connection).begin():
            yield Transaction(connection, self.sql, self._now())

    def failed_alone(self, item: FailedAlone) -> None:
        """Report an item to `on_failed_alone`."""
        if self.on_failed_alone is not None:
            self.on_failed_alone(item)

    def leave(self, step: str, subjects: Iterable[str], routes: Iterable[str], error: Exception) -> None:
        """Let a step leave its `subjects`, routes or items of `routes`, for which `error` came, until its next try."""
        longest = LONGEST_FOR_A_ROUTE if is_turn_timeout(error) else LONGEST_FOR_A_ROW
        again_in = self.back_offs.began(step, subjects, longest)
        self._tell(Left(step, sorted(routes), error, again_in))

    def still_leaves(self, step: str) -> None:
        """Note that a step leaves routes without a try."""
        self._tell(Left(step, (), None, 0.0))

    def _tell(self, left: Left) -> None:
        if self.on_left is not None:
            self.on_left(left)

    def add_routes(self, routes: AbstractSet[str]) -> None:
        """Add the rows of these routes to the order lock, so that none has to be added while others wait."""
        if not self.sql.locks_routes:
            return
        given = rows_param({"route": route} for route in sorted(routes))
        with self.read() as reading:
            missing = reading.execute(order_lock.missing_routes(self.sql), given=given)
        if missing:
            with self.write() as transaction:
                transaction.execute(order_lock.FIRST_TO_ADD)
                transaction.execute(order_lock.added_routes(self.sql), given=given)

    def _now(self) -> str | None:
        return None if self._clock is None else time_text(self._clock())


def read_keys(database: Database, statement: TextClause, **parameters: object) -> list[Key]:
    """Read seq and route of a statement's rows, and no column that could fail to be read."""
    with database.read() as transaction:
        return [(row.seq, row.route) for row in transaction.execute(statement, **parameters)]
