"""The relay's way into the database, and what one process knows of it from one transaction to the next."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from collections.abc import Set as AbstractSet
from contextlib import contextmanager
from datetime import datetime, timedelta
from typing import Generic, TypeVar

from sqlalchemy import Engine, TextClause

from inbox.db.dialect import Sql, error_text
from inbox.db.engine import Checkpoints, checkpoint, reading, snapshot
from inbox.db.throughput import ROUTE, Tally
from inbox.events.timestamps import time_text
from relay.store.transaction import FailedAlone, Key, Transaction

WHOLE_EVERY_SECONDS = 1.0
"""The least pause between two looks for work from the beginning."""
_PART_OF_THE_TIME = 1 / 30
"""The largest share of time for looks from the beginning, however much lies there."""

LATE = timedelta(seconds=5)
"""The longest time between becoming due and its commit: a relay's transaction may not stand for longer than 3 s."""

_Value = TypeVar("_Value")


class Floor(Generic[_Value]):
    """The place where the next look begins."""

    def __init__(
        self, whole_every: float = WHOLE_EVERY_SECONDS, monotonic: Callable[[], float] = time.monotonic
    ) -> None:
        self.at: _Value | None = None
        """None: at the beginning."""
        self._whole_every = whole_every
        self._monotonic = monotonic
        self._whole_at = float("-inf")

    @contextmanager
    def look(self, *, whole: bool = False) -> Iterator[_Value | None]:
        """Begin a look. Yields its place: None, the beginning, when that is due again, or `whole` is asked for."""
        began = self._monotonic()
        if self.at is not None and began < self._whole_at and not whole:
            yield self.at
            return
        yield None
        ended = self._monotonic()
        self._whole_at = ended + max(self._whole_every, (ended - began) / _PART_OF_THE_TIME)


class Places:
    """The places of one relay process, for each route."""

    def __init__(self) -> None:
        self.due: defaultdict[str, Floor[datetime]] = defaultdict(Floor)


SEQS_OUT_OF_ORDER = 10_000
"""A `seq` is taken before its event is committed: one that comes later may be lower, by at most so much."""
REST_SECONDS = 2.0
"""The time for which every step leaves a route whose lock or rows stay locked."""


class Database:
    """The relay's way into the database, safe to share between threads.

    `clock` replaces the database's own clock, for tests. `on_facts` hears, after each commit, how many facts of each route
    and kind were added to the log; `on_failed_alone` hears of each item that a step could not work on; `on_rest` of each
    step whose routes rest, and why.
    """

    on_facts: Callable[[Mapping[tuple[str, str], int]], None] | None = None
    on_failed_alone: Callable[[FailedAlone], None] | None = None
    on_rest: Callable[[str, Exception], None] | None = None

    def __init__(self, engine: Engine, clock: Callable[[], datetime] | None = None) -> None:
        self.engine = engine
        self.sql = Sql(engine.dialect.name)
        self.received: Floor[int] = Floor()
        """The seq at which the next scan for received deliveries begins."""
        self.is_behind = False
        """True when the last scan for them was full, so that there are more."""
        self._rests: dict[str, tuple[float, str, str]] = {}
        """By route that stayed locked: until when it rests (monotonic seconds), the step, and the error."""
        self.tally = Tally()
        """The figures of its transactions, which a relay writes."""
        self._clock = clock
        self._checkpoints = Checkpoints() if self.sql.needs_checkpoints else None

    @contextmanager
    def write(self) -> Iterator[Transaction]:
        """One short transaction, committed when the block ends without an exception."""
        with self.engine.begin() as connection:
            transaction = Transaction(connection, self.sql, self._now(), impatient_of=frozenset(self._rests))
            yield transaction
            transaction.send_writes()
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

    def rest(self, step: str, routes: AbstractSet[str], error: Exception, *, is_tried_now: bool = False) -> None:
        """Let every step leave these routes for a while, as they stay locked, and wait only shortly for them then."""
        until = time.monotonic() + (0 if is_tried_now else REST_SECONDS)
        self._rests |= dict.fromkeys(routes, (until, step, error_text(error)))
        if self.on_rest is not None:
            self.on_rest(f"{step} of {', '.join(sorted(routes))}", error)

    def end_rest(self, routes: Iterable[str]) -> None:
        """Wait again for the locks of these routes, which were granted."""
        if self._rests:
            for route in routes:
                self._rests.pop(route, None)

    def end_rests(self) -> None:
        """Let every step try all routes at once."""
        self._rests = {route: (0.0, step, error) for route, (_, step, error) in self._rests.copy().items()}

    def resting(self) -> set[str]:
        """Return the routes that every step leaves for now."""
        now = time.monotonic()
        return {route for route, (until, _, _) in self._rests.copy().items() if now < until}

    def rests(self) -> dict[str, str]:
        """Return the routes that stay locked in words, by the step that met it."""
        return {step: f"{route} is locked: {error}" for route, (_, step, error) in self._rests.copy().items()}

    def _now(self) -> str | None:
        return None if self._clock is None else time_text(self._clock())


def read_keys(database: Database, statement: TextClause, **parameters: object) -> list[Key]:
    """Read seq and route of a statement's rows, and no column that could fail to be read."""
    with database.read() as transaction:
        return [(row.seq, row.route) for row in transaction.execute(statement, **parameters)]
