"""Access to the database, and the positions where scans begin."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from collections.abc import Set as AbstractSet
from contextlib import contextmanager
from datetime import datetime, timedelta
from typing import Generic, TypeVar

from sqlalchemy import Engine

from inbox.db.dialect import Sql
from inbox.db.engine import checkpoint, is_checkpoint_due, reading, snapshot
from inbox.db.throughput import ROUTE, Tally
from inbox.events.timestamps import time_text
from relay.store.transaction import Transaction

WHOLE_EVERY_SECONDS = 1.0
"""Minimum interval between two scans from the beginning."""
_PART_OF_THE_TIME = 1 / 30
"""The largest share of time for scans from the beginning."""

COMMIT_LAG = timedelta(seconds=5)
"""The longest time from a due time to its commit: a transaction on given routes ends within `HELD_SECONDS`, 5 s."""

_Value = TypeVar("_Value")


class ScanStart(Generic[_Value]):
    """The position where the next scan begins."""

    def __init__(
        self, whole_every: float = WHOLE_EVERY_SECONDS, monotonic: Callable[[], float] = time.monotonic
    ) -> None:
        self.at: _Value | None = None
        """The position; None for the beginning."""
        self._whole_every = whole_every
        self._monotonic = monotonic
        self._whole_at = float("-inf")

    @contextmanager
    def scan(self) -> Iterator[_Value | None]:
        """Begin a scan. Yields its start; None if a scan from the beginning is due."""
        began = self._monotonic()
        if self.at is not None and began < self._whole_at:
            yield self.at
            return
        yield None
        ended = self._monotonic()
        self._whole_at = ended + max(self._whole_every, (ended - began) / _PART_OF_THE_TIME)


class ScanStarts:
    """The positions where the scans of one relay process begin."""

    def __init__(self) -> None:
        self.due: defaultdict[str, ScanStart[datetime]] = defaultdict(ScanStart)
        """The due time where the next claim of each route begins."""
        self.received: ScanStart[int] = ScanStart()
        """The seq where the next scan for received deliveries begins."""
        self.is_behind = False
        """True when the last scan for received deliveries was full, so that there may be more."""


class Database:
    """Opens transactions; safe to share between threads. `clock` replaces the database's own clock, for tests."""

    def __init__(self, engine: Engine, clock: Callable[[], datetime] | None = None) -> None:
        self.engine = engine
        self.sql = Sql(engine.dialect.name)
        self.tally = Tally()
        """The throughput counts of the transactions; a relay stores them."""
        self._clock = clock

    @contextmanager
    def write(
        self, node: str | None = None, *, short_timeouts_for: AbstractSet[str] = frozenset()
    ) -> Iterator[Transaction]:
        """Open a short transaction, committed if the block ends without an exception. Its facts name `node` as their relay."""
        with self.engine.begin() as connection:
            transaction = Transaction(connection, self.sql, self._now(), node, short_timeouts_for=short_timeouts_for)
            yield transaction
            transaction.send_writes()
            is_due = is_checkpoint_due(connection)
        for (route, kind), count in transaction.appended.items():
            self.tally.add(ROUTE, route, kind, count=count)
        if self.sql.pause_after_write:
            time.sleep(self.sql.pause_after_write)
        if is_due:
            checkpoint(self.engine)

    @contextmanager
    def read(self) -> Iterator[Transaction]:
        """Open a read-only transaction."""
        with self.engine.connect() as connection, reading(connection).begin():
            yield Transaction(connection, self.sql, self._now())

    @contextmanager
    def snapshot(self) -> Iterator[Transaction]:
        """Open a read-only transaction whose statements all see the same snapshot."""
        with self.engine.connect() as connection, snapshot(connection).begin():
            yield Transaction(connection, self.sql, self._now())

    def _now(self) -> str | None:
        return None if self._clock is None else time_text(self._clock())
