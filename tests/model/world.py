"""What the model works on: a real database that many runs use one after the other, and a clock that stands until it is moved."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple

from sqlalchemy import Engine, event, text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncTransaction

from inbox.config import Config, Duration, ForwardDestination, NoAuth, Retry, Route, Secret, Source
from inbox.db import engine as engines
from inbox.db.dialect import Sql, as_json
from inbox.db.engine import reading
from inbox.event import Event
from inbox.store import STORES
from inbox.timestamps import as_time
from relay.facts import decode
from relay.lifecycle import State
from relay.policy import policies
from relay.store.database import Database
from tests.helpers.stepping import Stepper
from tests.model.history import Entry, History, Key, LaneKey

LONG_AGO = datetime(2020, 1, 1, tzinfo=UTC)
"""Events of so long ago may be deleted when nothing of them is open: so a database is emptied by plain DELETEs."""

ROUTES = ("strict", "blocking", "latest")
SCHEDULE = (timedelta(seconds=5), timedelta(seconds=30))
"""A third failure is the last."""


def _route(name: str) -> Route:
    return Route(
        name=name,
        source="trivore",
        destination="audit",
        ordering="latest" if name == "latest" else "strict",
        on_dead="block" if name == "blocking" else "continue",
        retry=Retry(schedule=tuple(Duration(delay.total_seconds()) for delay in SCHEDULE), jitter=0),
    )


CONFIG = Config(
    sources={"trivore": Source(name="trivore", preset="trivore", auth=NoAuth())},
    destinations={"audit": ForwardDestination(name="audit", url=Secret("https://audit.example.com/hook"))},
    routes={name: _route(name) for name in ROUTES},
)
POLICIES = policies(CONFIG)


class Row(NamedTuple):
    """A row of `open_delivery`."""

    seq: int
    route: str
    lane: str
    occurred_at: datetime
    state: State
    attempt: int
    run: int
    crashes: int
    due_at: datetime | None
    lease_until: datetime | None
    lease_token: int | None
    relay_node: str | None

    @property
    def order(self) -> tuple[datetime, int]:
        """A lane is worked in the order of this."""
        return (self.occurred_at, self.seq)


_OPEN = f"SELECT {', '.join(Row._fields)} FROM open_delivery ORDER BY seq, route"
_TIMES = [Row._fields.index(name) for name in ("occurred_at", "due_at", "lease_until")]
_STATE = Row._fields.index("state")
_LOG = "SELECT id, at, seq, route, kind, attempt, relay_node, detail FROM delivery_log WHERE id > {last} ORDER BY id"
_INBOX = "SELECT seq, dedup_key FROM inbox ORDER BY seq"
_LANES = "SELECT route, lane, occurred_at, seq FROM lane"
_TABLES = (
    "gate",
    "alert",
    "relay_command",
    "open_delivery",
    "lane",
    "repeated_request",
    "inbox",
    "delivery_log",
    "relay_node",
)


class Stored(NamedTuple):
    """What the tables hold."""

    open: dict[Key, Row]
    new: list[Entry]
    """Facts that were not there at the last look."""
    inbox: list[tuple[int, str]]
    """seq and key of every event."""
    lanes: dict[LaneKey, tuple[datetime, int]]
    """What was delivered last in each lane, by the table `lane`."""


DAMAGES = {
    "it is gone": "DELETE FROM open_delivery",
    "another attempt": "UPDATE open_delivery SET attempt = attempt + 1",
    "another run": "UPDATE open_delivery SET run = run + 1",
    "another crash": "UPDATE open_delivery SET crashes = crashes + 1",
    "another lane": "UPDATE open_delivery SET lane = lane || '?'",
    "dead or not": "UPDATE open_delivery SET due_at = NULL, state = CASE state WHEN 'dead' THEN 'waiting' ELSE 'dead' END",
}
"""What a careless hand may do to one row, by name."""


class Clock:
    """Stands until it is advanced."""

    def __init__(self) -> None:
        self.now = LONG_AGO

    def advance(self, seconds: float) -> None:
        self.now += timedelta(seconds=seconds)


def in_haste(engine: Engine) -> None:
    """Don't let it wait for the disk: no power fails here. Call it before it connects."""
    hasty = "SET synchronous_commit = off" if Sql(engine.dialect.name).is_postgres else "PRAGMA synchronous = OFF"

    @event.listens_for(engine, "connect")
    def _connected(connection: Any, _record: object) -> None:  # noqa: ANN401  # the driver's connection
        connection.cursor().execute(hasty)
        connection.commit()


class World:
    """The database as the relays, the receiver and whoever checks them see it."""

    def __init__(self, engine: Engine, url: str) -> None:
        self.clock = Clock()
        self.database = Database(engine, lambda: self.clock.now)
        self.database.sql.pause_after_write = 0.0  # nobody waits for the lock here
        self.commits_out_of_order = Sql(engine.dialect.name).is_postgres
        self.stepper = Stepper(engine)
        self.receiver = Receiver(url)
        self._connection = engine.connect()
        if self.commits_out_of_order:
            self._connection.execution_options(isolation_level="AUTOCOMMIT")

    def close(self) -> None:
        self.receiver.close()
        self.stepper.close()
        self._connection.close()

    def empty(self) -> None:
        """Begin again, at the beginning of time."""
        self.clock.now = LONG_AGO
        with self.database.write() as transaction:
            for table in _TABLES:
                transaction.connection.execute(text(f"DELETE FROM {table}"))

    def look(self, history: History) -> Stored:
        """All that is stored now; facts that are new go into `history`."""
        with reading(self._connection).begin():
            open_delivery, log, inbox, lanes = (
                self._connection.exec_driver_sql(statement).all()
                for statement in (_OPEN, _LOG.format(last=history.last_id), _INBOX, _LANES)
            )
        return Stored(
            open={(row.seq, row.route): row for row in map(_row, open_delivery)},
            new=[
                history.take_in(
                    row.id,
                    (row.seq, row.route),
                    decode(row.kind, as_json(row.detail)),
                    at=as_time(row.at),
                    attempt=row.attempt,
                    relay_node=row.relay_node,
                )
                for row in log
            ],
            inbox=[(seq, key) for seq, key in inbox],
            lanes={(route, lane): (as_time(occurred_at), seq) for route, lane, occurred_at, seq in lanes},
        )

    def damage(self, key: Key, damage: str) -> None:
        """Do it to this row."""
        with self.database.write() as transaction:
            seq, route = key
            transaction.execute(text(f"{DAMAGES[damage]} WHERE seq = :seq AND route = :route"), seq=seq, route=route)


def _row(columns: Sequence[Any]) -> Row:
    values = list(columns)
    for index in _TIMES:
        if values[index] is not None:
            values[index] = as_time(values[index])
    values[_STATE] = State(values[_STATE])
    return Row._make(values)


class Uncommitted(NamedTuple):
    """Events that are stored in a transaction which is still open: they have their numbers, and nobody else sees them."""

    events: tuple[Event, ...]
    seqs: list[int | None]
    connection: AsyncConnection
    transaction: AsyncTransaction


class Receiver:
    """The receiver's store functions, for a caller that is not asynchronous."""

    def __init__(self, url: str) -> None:
        self._runner = asyncio.Runner()
        self._engine = engines.connect_async(url, application="tests")
        in_haste(self._engine.sync_engine)
        self._store = STORES[self._engine.dialect.name]()
        self._connection = self._runner.run(self._engine.connect().start())
        self._spare: list[AsyncConnection] = []

    def append(self, *events: Event) -> list[int | None]:
        """Store them; None for one that is there already."""
        return self._runner.run(self._store.append(self._connection, events))

    def repeat(self, event: Event) -> int | None:
        """Note that it came again; its number."""
        return self._runner.run(self._store.repeat(self._connection, [event]))[0]

    def hold(self, *events: Event) -> Uncommitted:
        """Store them, but let the commit wait: other numbers are committed before these."""
        return self._runner.run(self._hold(events))

    def commit(self, held: Uncommitted) -> None:
        self._runner.run(held.transaction.commit())
        self._spare.append(held.connection)

    def roll_back(self, held: Uncommitted) -> None:
        """As if the receiver had died before the commit."""
        self._runner.run(held.transaction.rollback())
        self._spare.append(held.connection)

    def close(self) -> None:
        for connection in (self._connection, *self._spare):
            self._runner.run(connection.close())
        self._runner.run(self._engine.dispose())
        self._runner.close()

    async def _hold(self, events: tuple[Event, ...]) -> Uncommitted:
        if self._spare:
            connection = self._spare.pop()
        else:
            connection = await self._engine.connect()
            await connection.execution_options(isolation_level="READ COMMITTED")
        transaction = await connection.begin()
        return Uncommitted(events, await self._store.append(connection, events), connection, transaction)
