"""Transactions of the relay, the order lock, and how rows are read and written back."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime
from functools import cache
from typing import Any

import msgspec
from sqlalchemy import Connection, Engine, TextClause, text
from sqlalchemy.exc import DBAPIError

from inbox.db.checkpoint import Checkpoints, checkpoint
from inbox.db.dialect import Sql, failure_of, is_wait_timeout
from inbox.db.engine import LOCK_TIMEOUT_SECONDS, reading, snapshot
from inbox.db.leaves import SHARE_PAYLOADS
from inbox.db.parameters import is_storable, rows_param, storable
from inbox.db.reads import Row, plain
from inbox.db.throughput import ROUTE, Tally
from inbox.events.timestamps import as_time, time_text
from relay.delivery import facts
from relay.delivery.lifecycle import HEADS, OpenDelivery, State
from relay.store.scan_positions import Floor

SEQS_OUT_OF_ORDER = 10_000
"""A `seq` is taken before its event is committed: one that comes later may be lower, by at most so much."""
HASTE_SECONDS = 120.0
"""A thread that waited in vain for a locked row hardly waits for others for so long: longer than any step's backoff."""
HASTY_WAIT_MS = 50
"""Wait of a hasty thread under the order lock, where all relays wait with it."""
HASTY_WAIT_ALONE_MS = 500
"""Its wait without that lock: a row that is locked only for a moment costs it nothing."""
_ROWS_OF_A_WRITE = 4
"""The usual number of rows: a transaction of the relay touches a few, or hundreds."""


class FailedAlone(msgspec.Struct, frozen=True):
    """An item that a step could not process, not even in a transaction of its own."""

    step: str
    item: str
    """The item in words, such as `route=crm seq=17`."""
    error: str
    """One line, without the database's details: those may hold values."""


class Database:
    """The relay's way into the database, safe to share between threads.

    `clock` replaces the database's own clock, for tests. `on_facts` hears, after each commit, how many facts of each route
    and kind were added to the log; `on_failed_alone` hears of each item that a step could not work on.
    """

    on_facts: Callable[[Mapping[tuple[str, str], int]], None] | None = None
    on_failed_alone: Callable[[FailedAlone], None] | None = None

    def __init__(self, engine: Engine, clock: Callable[[], datetime] | None = None) -> None:
        self.engine = engine
        self.sql = Sql(engine.dialect.name)
        self.arrivals: Floor[int] = Floor()
        """The place where looks for arrived deliveries begin."""
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
                transaction = Transaction(connection, self.sql, self._now(), is_hasty=is_hasty)
                yield transaction
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

    def _now(self) -> str | None:
        return None if self._clock is None else time_text(self._clock())


class Transaction:
    """A connection inside one transaction, with the fragments of its dialect."""

    def __init__(self, connection: Connection, sql: Sql, now: str | None, *, is_hasty: bool = False) -> None:
        self.connection = connection
        self.sql = sql
        self.appended: Counter[tuple[str, str]] = Counter()
        """Counts of the facts it adds, by route and kind."""
        self.left_out: list[FailedAlone] = []
        """The parts that were skipped because the database has rejected them."""
        self.rows = _ROWS_OF_A_WRITE
        """About how many rows it writes, which makes the next checkpoint due."""
        self.has_payloads = False
        """True when retention deletes no payload before it ends."""
        self._now = now
        self._is_hasty = is_hasty

    def execute(self, statement: TextClause, **parameters: object) -> list[Any]:
        """Run a statement; its rows, if it has any. Texts become `storable`, and `:now` is bound for it."""
        if "now" in statement._bindparams:  # noqa: SLF001  # SQLAlchemy has no public name for a text's parameters
            parameters["now"] = self._now
        for name, value in parameters.items():
            if isinstance(value, str) and not is_storable(value):
                parameters[name] = storable(value)
        result = self.connection.execute(statement, parameters)
        return list(result.all()) if result.returns_rows else []

    def rows_of(self, statement: TextClause, **parameters: object) -> list[Row]:
        """Run a statement; its rows as plain values, for a listing."""
        found = self.execute(statement, **parameters)
        return [plain(row._mapping) for row in found]  # noqa: SLF001  # SQLAlchemy's public name

    def attempt(self, statement: TextClause, **parameters: object) -> Exception | None:
        """Run a statement that must not end the transaction. Returns the error when the statement itself is at fault."""
        try:
            with self.connection.begin_nested():
                self.execute(statement, **parameters)
        except Exception as error:
            if failure_of(error) != "fault":
                raise
            return error
        return None

    def stream(self, statement: TextClause, at_a_time: int, **parameters: object) -> Iterator[Any]:
        """Yield the rows of a statement in parts, for results too large to hold."""
        options = {"yield_per": at_a_time}
        with self.connection.execute(statement, parameters, execution_options=options) as result:
            yield from result

    def lock_order(self, *, keeps_payloads: bool = False) -> datetime:
        """Take the order lock, then return the database's time.

        With `keeps_payloads`, retention deletes no payload until this transaction ends. That lock comes first: who waits for
        a batch of retention must not have the order lock, for which all others wait.

        Every transaction that ends or makes a head takes it first, as a statement of its own: what it reads afterwards
        is what the one before it left. Without it lanes get stuck for good. On SQLite the transaction holds the write
        lock already.
        """
        if self.sql.is_postgres:
            if keeps_payloads:
                self.connection.execute(_SHARE_PAYLOADS)
            self.connection.execute(_LOCK)
        self.has_payloads = keeps_payloads
        self.hurry(HASTY_WAIT_MS)
        return self.now()

    def hurry(self, milliseconds: int = HASTY_WAIT_ALONE_MS) -> None:
        """Wait for locked rows no longer than this from now on, if this thread has waited for one in vain lately."""
        if self._is_hasty:
            self.limit_waits(milliseconds)

    def limit_waits(self, milliseconds: int) -> None:
        """Wait for locks no longer than this from now on. SQLite's only lock is taken already."""
        if self.sql.is_postgres:
            self.connection.execute(text(f"SET LOCAL lock_timeout = '{milliseconds}ms'"))

    def now(self) -> datetime:
        """The database's clock, UTC."""
        return as_time(self.execute(_now(self.sql))[0].now)

    def write_back(self, changed: Iterable[OpenDelivery], relay_node: str | None) -> None:
        """Append the facts of these deliveries and give their rows the state that follows.

        Those that cease to be heads are written before those that become one: the database refuses two heads in a lane,
        and checks row by row.
        """
        rows = sorted(changed, key=lambda row: (row.seq, row.route))
        if not rows:
            return
        history = [
            {
                "seq": row.seq,
                "route": row.route,
                "kind": facts.kind_of(fact),
                "attempt": attempt,
                "relay_node": relay_node,
                "detail": facts.detail_of(fact),
            }
            for row in rows
            for fact, attempt in zip(row.facts, row.counts, strict=True)
        ]
        if history:
            self.execute(_append_facts(self.sql), facts=rows_param(history))
            self.appended.update((str(fact["route"]), str(fact["kind"])) for fact in history)
        self.remove(row for row in rows if row.state is State.ENDED)
        stay = [row for row in rows if row.state is not State.ENDED]
        for are_heads in (False, True):
            if group := [row for row in stay if (row.state in HEADS) is are_heads]:
                self.execute(_move(self.sql), moved=fields_param(group, _MOVED))

    def remove(self, deliveries: Iterable[OpenDelivery]) -> None:
        """Take the rows of these deliveries out of `open_delivery`."""
        if ended := [(row.seq, row.route) for row in deliveries]:
            self.execute(_end(self.sql), ended=keys_param(ended))


Key = tuple[int, str]
"""seq and route of a delivery."""


def read_keys(database: Database, statement: TextClause, **parameters: object) -> list[Key]:
    """Read seq and route of a statement's rows, and no column that could fail to be read."""
    with database.read() as transaction:
        return [(row.seq, row.route) for row in transaction.execute(statement, **parameters)]


def keys_param(keys: Iterable[Key]) -> str:
    """The keys as rows of a bound parameter."""
    return rows_param({"seq": seq, "route": route} for seq, route in keys)


def fields_param(rows: Iterable[object], fields: Iterable[str]) -> str:
    """These fields of each of the rows, as rows of a bound parameter."""
    names = list(fields)
    return rows_param({name: getattr(row, name) for name in names} for row in rows)


def key_text(key: Key) -> str:
    """A delivery in words, for a log."""
    return f"route={key[1]} seq={key[0]}"


_SHARE_PAYLOADS = text(SHARE_PAYLOADS)
_LOCK = text("SELECT id FROM order_lock WHERE id = 1 FOR UPDATE")

ROW = "o.seq, o.route, o.lane, o.occurred_at, o.state, o.attempt, o.run, o.crashes, o.due_at"
"""The columns that `as_open_delivery` reads."""


def as_open_delivery(row: Any) -> OpenDelivery:  # noqa: ANN401  # a result row
    """A row of ROW's columns."""
    return OpenDelivery(
        seq=row.seq,
        route=row.route,
        lane=row.lane,
        occurred_at=as_time(row.occurred_at),
        state=State(row.state),
        attempt=row.attempt,
        run=row.run,
        crashes=row.crashes,
        due_at=None if row.due_at is None else as_time(row.due_at),
    )


@cache
def _now(sql: Sql) -> TextClause:
    return text(f"SELECT {sql.now} AS now")


@cache
def _append_facts(sql: Sql) -> TextClause:
    rows = sql.rows("facts", seq="bigint", route="text", kind="text", attempt="int", relay_node="text", detail="json")
    return text(f"""
INSERT INTO delivery_log (at, seq, route, kind, attempt, relay_node, detail)
SELECT (SELECT {sql.now}), seq, route, kind, attempt, relay_node, detail
FROM {rows}
""")


@cache
def _end(sql: Sql) -> TextClause:
    return text(f"""
DELETE FROM open_delivery
WHERE (seq, route) IN (SELECT seq, route FROM {sql.rows("ended", seq="bigint", route="text")})
""")


_MOVED = {
    "seq": "bigint", "route": "text", "state": "text", "attempt": "int", "run": "int", "crashes": "int", "due_at": "time"
}  # fmt: skip


@cache
def _move(sql: Sql) -> TextClause:
    return text(f"""
UPDATE open_delivery AS o
SET state = moved.state, attempt = moved.attempt, run = moved.run, crashes = moved.crashes, due_at = moved.due_at,
    lease_until = NULL, lease_token = NULL, relay_node = NULL
FROM {sql.rows("moved", **_MOVED)}
WHERE o.seq = moved.seq AND o.route = moved.route
""")
