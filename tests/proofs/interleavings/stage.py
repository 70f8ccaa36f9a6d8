"""A small prepared state, put back before every order, and what relays do in it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from datetime import datetime
from typing import Any, Literal, cast

import msgspec
from sqlalchemy import Connection, CursorResult, Engine, TextClause, text
from sqlalchemy.ext.asyncio import AsyncConnection

from inbox.db.dialect import as_json
from inbox.db.engine import reading
from inbox.db.intake import STORES
from inbox.events.event import Event
from inbox.events.timestamps import as_time
from relay.delivery.outcome import Delivery, Outcome
from relay.store.audit.rebuild import rebuild
from relay.store.claim import claim, claim_suspect
from relay.store.database import _LOCK, Database
from relay.store.leases import Claimed, give_back, renew
from relay.store.reap import reap
from relay.store.record import record
from relay.store.sequence import sequence
from tests.helpers.agreement import Key, enrolled
from tests.helpers.all_orders import all_orders
from tests.helpers.reading import Row, rows
from tests.helpers.relaying import CONFIG, POLICIES, FakeClock
from tests.helpers.stepping import COMMIT, Stepped, Stepper
from tests.helpers.storing import Intake
from tests.proofs.model.receiver import in_haste

_WRITTEN = {"open_delivery": "seq, route", "delivery_log": "id", "lane": "route, lane"}
"""Tables that relays write, and the order in which to read each."""
_PUT_BACK = ("inbox", *_WRITTEN)


class Operation(msgspec.Struct, frozen=True):
    """Action of one relay, in a thread of its own."""

    kind: Literal["sequence", "claim", "renew", "give back", "record", "reap", "rebuild", "receive"]
    act: Callable[[], Any]
    deliveries: tuple[Delivery, ...] = ()
    """The claims with which it acts."""


class Tables(msgspec.Struct, frozen=True):
    """Contents of the tables at one moment."""

    open_delivery: list[Row]
    delivery_log: list[Row]
    lane: list[Row]


class Order(msgspec.Struct, frozen=True):
    """Results of one order."""

    operations: Mapping[str, Operation]
    results: Mapping[str, Any]
    errors: Mapping[str, BaseException]
    steps: Sequence[str]
    """Names of the operations, in the order of their turns."""
    arrived: set[Key]
    before: Tables
    after: Tables
    now: datetime


class Stage:
    """The database of one test. Nothing in it has to survive a power cut, so nobody waits for a disk."""

    def __init__(self, engine: Engine) -> None:
        in_haste(engine)
        self.engine = engine
        self.clock = FakeClock()
        self.database = Database(engine, self.clock)
        self.database.sql.pause_after_write = 0.0  # there is no receiver to starve
        self.routes: Sequence[str] = ()
        self._intake = Intake(engine.url.render_as_string(hide_password=False))
        self._before: Tables | None = None

    def arrive(self, *events: Event) -> None:
        """Receive these events; they are not sequenced yet."""
        self._intake.append(*events)

    def put(self, statement: str) -> None:
        """Change a table as nothing but a slip of a hand does."""
        with self.engine.begin() as connection:
            connection.exec_driver_sql(statement)

    def all_orders(
        self,
        operations: Mapping[str, Operation],
        check: Callable[[Order], None],
        *,
        coarse: bool = False,
    ) -> int:
        """Do these at once, in every order, each time from the state that was kept. Returns how many there were.

        `coarse`, for more than two, lets reads that lock nothing go with the statement before them, and begins to wait
        for the order lock only when it is free: what its holders know they read when they have it. So it always is on
        SQLite, where a transaction sees one state, and one writes at a time: only where it begins and ends matters.
        """
        coarse = coarse or not self.database.sql.is_postgres
        before = self._before
        assert before is not None

        def start() -> Stepper:
            self._put_back()
            for name, operation in operations.items():
                stepper.begin(name, operation.act)
            return stepper

        def look(stepper: Stepper) -> None:
            ended = stepper.operations.items()
            check(
                Order(
                    operations=operations,
                    results={name: stepped.result for name, stepped in ended if stepped.error is None},
                    errors={name: stepped.error for name, stepped in ended if stepped.error is not None},
                    steps=[name for name, _ in stepper.taken],
                    arrived=enrolled(rows(self.engine, "SELECT seq, routes FROM inbox")),
                    before=before,
                    after=self._look(),
                    now=self.clock.now(),
                )
            )

        with Stepper(self.engine, passing=_neither_locks_nor_writes if coarse else _is_nothing_to_others) as stepper:
            return all_orders(start, look, _would_wait_for_the_order_lock if coarse else _never)

    # What relays do.

    def sequences(self, relay: str, batch: int = 500) -> Operation:
        return Operation("sequence", lambda: sequence(self.database, POLICIES, relay, batch))

    def claims(self, relay: str, room: int = 1) -> Operation:
        return Operation("claim", lambda: claim(self.database, relay, [(self.routes, room)]))

    def claims_suspect(self, relay: str) -> Operation:
        return Operation("claim", lambda: claim_suspect(self.database, relay, self.routes))

    def renews(self, *deliveries: Delivery) -> Operation:
        return Operation("renew", lambda: renew(self.database, leases(deliveries)), deliveries)

    def gives_back(self, *deliveries: Delivery) -> Operation:
        held = leases(deliveries)
        return Operation("give back", lambda: give_back(self.database, POLICIES, "r1", held), deliveries)

    def records(self, relay: str, outcome: Outcome, *deliveries: Delivery) -> Operation:
        outcomes = [(delivery, outcome) for delivery in deliveries]
        return Operation("record", lambda: record(self.database, POLICIES, relay, outcomes), deliveries)

    def reaps(self, relay: str) -> Operation:
        return Operation("reap", lambda: reap(self.database, POLICIES, relay))

    # What a person and a receiver do.

    def rebuilds(self) -> Operation:
        return Operation(
            "rebuild",
            lambda: [found for done in rebuild(self.database, CONFIG, who="ann") for found in done.differences],
        )

    def receives(self, *events: Event) -> Operation:
        return Operation("receive", lambda: asyncio.run(self._append(events)))

    async def _append(self, events: Sequence[Event]) -> list[int | None]:
        """By the receiver's own statements, on the engine whose statements are stepped."""
        with self.engine.connect() as connection:
            if self.database.sql.is_postgres:
                connection.execution_options(isolation_level="AUTOCOMMIT")
            waiting = cast("AsyncConnection", _Awaitable(connection))
            return await STORES[self.engine.dialect.name]().append(waiting, events)

    # The state that every order begins with.

    def keep(self) -> None:
        """Keep the present contents of the tables as the state that every order begins with."""
        with self.engine.begin() as connection:
            for table in _PUT_BACK:
                connection.execute(text(f"CREATE TABLE kept_{table} AS SELECT * FROM {table}"))
            for statement in _MAY_BE_EMPTIED[self.engine.dialect.name]:
                connection.execute(text(statement))
        self._before = self._look()

    def _put_back(self) -> None:
        statements = [
            statement
            for table in _PUT_BACK
            for statement in (f"DELETE FROM {table}", f"INSERT INTO {table} SELECT * FROM kept_{table}")
        ]
        with self.engine.begin() as connection:
            for statement in ["; ".join(statements)] if self.database.sql.is_postgres else statements:
                connection.exec_driver_sql(statement)

    def _look(self) -> Tables:
        with self.engine.connect() as connection, reading(connection).begin():
            return Tables(
                **{
                    table: [_plain(dict(row)) for row in connection.execute(statement).mappings()]
                    for table, statement in _LOOK.items()
                }
            )


class _Awaitable:
    """A connection of a synchronous engine where the receiver's functions expect an asynchronous one."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self.dialect = connection.dialect
        self.sync_engine = connection.engine

    @asynccontextmanager
    async def begin(self) -> AsyncIterator[None]:
        with self._connection.begin():
            yield

    async def execute(self, statement: TextClause, parameters: Any = None) -> CursorResult[Any]:  # noqa: ANN401  # the statement's
        return self._connection.execute(statement, parameters)


def _plain(row: Row) -> Row:
    """With times and JSON as Python values on both databases."""
    times = {name: as_time(row[name]) for name in _TIMES & row.keys() if row[name] is not None}
    return {**row, **times, **({"detail": as_json(row["detail"])} if "detail" in row else {})}


_TIMES = {"occurred_at", "due_at", "lease_until"}


def leases(deliveries: Iterable[Delivery]) -> tuple[Claimed, ...]:
    return tuple((delivery.seq, delivery.route, delivery.lease_token) for delivery in deliveries)


_ORDER_LOCK = str(_LOCK)


def _is_nothing_to_others(statement: str) -> bool:
    """Reading the clock is; and appending facts: who reads any reads those of rows that it has locked."""
    return statement.startswith(("SELECT coalesce(", "\nINSERT INTO delivery_log"))


def _neither_locks_nor_writes(statement: str) -> bool:
    """With what is written of `lane` too: that only says which delivery is late."""
    return "FOR UPDATE" not in statement and not statement.startswith(("\nUPDATE", "\nDELETE"))


def _would_wait_for_the_order_lock(stepper: Stepper, stepped: Stepped) -> bool:
    return stepped.before == _ORDER_LOCK and any(
        _holds_the_order_lock(stepper, other) for other in stepper.operations.values() if not other.finished
    )


def _never(_stepper: Stepper, _stepped: Stepped) -> bool:
    return False


def _holds_the_order_lock(stepper: Stepper, stepped: Stepped) -> bool:
    taken = [statement for name, statement in stepper.taken if name == stepped.name]
    return _ORDER_LOCK in taken and COMMIT not in taken[taken.index(_ORDER_LOCK) :]


_LOOK = {table: text(f"SELECT * FROM {table} ORDER BY {key}") for table, key in _WRITTEN.items()}

_MAY_BE_EMPTIED = {
    "postgresql": [f"ALTER TABLE {table} DISABLE TRIGGER USER" for table in ("inbox", "delivery_log")],
    "sqlite": [f"DROP TRIGGER {table}_refuses_delete" for table in ("inbox", "delivery_log")],
}
