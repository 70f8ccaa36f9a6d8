"""The world of the model: a real database reused by all runs, its log fact by fact, and a fake clock."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple

import msgspec
from sqlalchemy import Connection, Engine, RootTransaction, event, text

from inbox.config.model import Config, ForwardDestination, Retry, Route
from inbox.config.sources import NoAuth, Source
from inbox.config.values import Duration, Secret
from inbox.db import engine as engines
from inbox.db import intake
from inbox.db.dialect import Sql, as_json
from inbox.db.engine import one_transaction, reading
from inbox.errors import IllegalTransition
from inbox.events.event import Event
from inbox.events.timestamps import as_time
from relay.delivery.facts import AnyFact, DeliveredFact, Superseded
from relay.delivery.gates import BreakerLimits, BreakerState, GateKey
from relay.delivery.lifecycle import Standing, State
from relay.delivery.ordering import LastDelivered
from relay.store.database import Database
from tests.helpers.agreement import NOTHING_YET, Folded, decode, fold, standing_of
from tests.helpers.relaying import fetching
from tests.helpers.stepping import Stepper

Key = tuple[int, str]
"""seq and route of a delivery."""
LaneKey = tuple[str, str]
"""Route and lane."""


class Entry(NamedTuple):
    """A row of `delivery_log`."""

    number: int
    at: datetime
    key: Key
    before: Folded
    """State and counts folded from the earlier facts."""
    standing: Standing
    """State and counts of the delivery afterwards."""
    relay_node: str | None
    fact: AnyFact


class History:
    """All facts so far."""

    def __init__(self) -> None:
        self.last_id = 0
        self.entries: dict[Key, list[Entry]] = defaultdict(list)
        self.successes: list[Entry] = []
        """Entries of kind `delivered`."""
        self.told: dict[Key, list[Entry]] = defaultdict(list)
        """Entries of events superseded by a sweep's event, by the delivery of that event."""
        self.standing: dict[Key, Folded] = {}
        self.impossible: dict[Key, str] = {}
        """Deliveries with an impossible history."""

    def take_in(
        self, number: int, key: Key, fact: AnyFact, *, at: datetime, standing: Standing, relay_node: str | None
    ) -> Entry:
        """Append a fact and return its entry."""
        entry = Entry(number, at, key, self.standing.get(key, NOTHING_YET), standing, relay_node, fact)
        self.last_id = number
        self.entries[key].append(entry)
        match fact:
            case DeliveredFact():
                self.successes.append(entry)
            case Superseded(because="swept"):
                self.told[fact.by, key[1]].append(entry)
        try:
            self.standing[key] = fold((entry.fact, entry.standing) for entry in self.entries[key])
        except IllegalTransition as error:
            self.impossible[key] = str(error)
        return entry


def skip_disk_waits(engine: Engine) -> None:
    """Turn off waiting for the disk. Call it before the engine connects."""
    hasty = "SET synchronous_commit = off" if Sql(engine.dialect.name).is_postgres else "PRAGMA synchronous = OFF"

    @event.listens_for(engine, "connect")
    def _on_connect(connection: Any, _record: object) -> None:  # noqa: ANN401  # the driver's connection
        connection.cursor().execute(hasty)
        connection.commit()


KEPT_REPEATS = 2
"""Duplicates of an event stored as rows; the third is only counted."""


class Uncommitted(NamedTuple):
    """Events stored in an open transaction: they have seqs, but are invisible to others."""

    events: tuple[Event, ...]
    seqs: list[int | None]
    connection: Connection
    transaction: RootTransaction


class Receiver:
    """The receiver's store functions."""

    def __init__(self, url: str) -> None:
        engine = engines.connect(url, application="tests")
        skip_disk_waits(engine)
        is_postgres = Sql(engine.dialect.name).is_postgres
        self._engine = engine.execution_options(isolation_level="AUTOCOMMIT") if is_postgres else engine
        self._connection = self._engine.connect()
        self._spare: list[Connection] = []

    def append(self, *events: Event) -> list[int | None]:
        """Store events and return their seqs, None for duplicates."""
        with one_transaction(self._connection):
            return intake.append(self._connection, events)

    def repeat(self, event: Event) -> int | None:
        """Note a duplicate and return the event's seq."""
        with one_transaction(self._connection):
            return intake.note_duplicates(self._connection, [event], KEPT_REPEATS)[0]

    def hold(self, *events: Event) -> Uncommitted:
        """Store events without a commit, so that later seqs are committed first."""
        if self._spare:
            connection = self._spare.pop()
        else:
            connection = self._engine.connect().execution_options(isolation_level="READ COMMITTED")
            connection.exec_driver_sql("SET idle_in_transaction_session_timeout = 0")  # held for any time
            connection.commit()
        transaction = connection.begin()
        return Uncommitted(events, intake.append(connection, events), connection, transaction)

    def commit(self, held: Uncommitted) -> None:
        held.transaction.commit()
        self._spare.append(held.connection)

    def roll_back(self, held: Uncommitted) -> None:
        """Roll back, as if the receiver had died before the commit."""
        held.transaction.rollback()
        self._spare.append(held.connection)

    def close(self) -> None:
        for connection in (self._connection, *self._spare):
            connection.close()
        self._engine.dispose()


LONG_AGO = datetime(2020, 1, 1, tzinfo=UTC)
"""Time of events old enough to be deleted, so that plain DELETEs empty the database."""

ROUTES = ("strict", "blocking", "latest")
SKEW = timedelta(seconds=2)
OPEN_FOR = timedelta(seconds=30)
SCHEDULE = (timedelta(seconds=5), timedelta(seconds=30))
"""Retry delays; the third failure is the last."""


def _route(name: str) -> Route:
    return Route(
        name=name,
        source="trivore",
        destination="mirror" if name == "latest" else "audit",
        ordering="latest" if name == "latest" else "strict",
        on_dead="block" if name == "blocking" else "continue",
        retry=Retry(schedule=tuple(Duration(delay.total_seconds()) for delay in SCHEDULE)),
    )


def _destination(name: str) -> ForwardDestination:
    return ForwardDestination(name=name, url=Secret(f"https://{name}.example.com/hook"))


CONFIG = Config(
    sources={
        "trivore": Source(name="trivore", preset="trivore", auth=NoAuth(), clock_skew=Duration(SKEW.total_seconds()))
    },
    destinations={name: _destination(name) for name in ("audit", "mirror")},
    routes={name: _route(name) for name in ROUTES},
)
LIMITS = BreakerLimits(open_for=OPEN_FOR.total_seconds(), longest=2 * OPEN_FOR.total_seconds())
POLICIES = {
    name: msgspec.structs.replace(each, breakers=dict.fromkeys(each.breakers, LIMITS))
    for name, each in fetching(CONFIG).items()
}
BEFORE_THE_CHANGE = {
    name: msgspec.structs.replace(policy, ordering="strict") if policy.ordering == "latest" else policy
    for name, policy in POLICIES.items()
}
"""Policies of a relay before `ordering` became "latest"."""

_VACUUM_AFTER = 20
"""Runs between two vacuums."""
FEW = 2
"""Events folded in one transaction at most, so that some are left."""


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
    def lane_key(self) -> LaneKey:
        return (self.route, self.lane)

    @property
    def order(self) -> tuple[datetime, int]:
        """Position in the lane."""
        return (self.occurred_at, self.seq)


_OPEN = f"SELECT {', '.join(Row._fields)} FROM open_delivery ORDER BY seq, route"
_TIMES = [Row._fields.index(name) for name in ("occurred_at", "due_at", "lease_until")]
_STATE = Row._fields.index("state")
_LOG = "SELECT * FROM delivery_log WHERE id > {last} ORDER BY id"
_INBOX = "SELECT seq, dedup_key FROM inbox ORDER BY seq"
_LANES = "SELECT route, lane, occurred_at, seq, fetch_began_at, last_modified FROM lane"
_REPEATS = "SELECT id, seq, times, handled_at FROM duplicate_request ORDER BY id"
_GATES = "SELECT kind, name, paused_at, breaker, breaker_until FROM gate"
_END_COMMANDS = text("UPDATE relay_command SET state = 'cancelled' WHERE state IN ('asked', 'running')")
_TABLES = (
    "gate",
    "alert",
    "relay_command",
    "open_delivery",
    "lane",
    "duplicate_request",
    "inbox",
    "delivery_log",
    "relay_node",
)


class GateRow(NamedTuple):
    """Relevant columns of a row of `gate`."""

    is_paused: bool
    breaker: BreakerState
    until: datetime | None


OPEN_GATE = GateRow(is_paused=False, breaker=BreakerState.CLOSED, until=None)


class Repeat(NamedTuple):
    """Relevant columns of a row of `duplicate_request`."""

    seq: int
    times: int
    is_handled: bool


class Stored(NamedTuple):
    """Contents of the tables."""

    open: dict[Key, Row]
    new: list[Entry]
    """Facts since the previous reading."""
    inbox: list[tuple[int, str]]
    """Seq and key of every event."""
    lanes: dict[LaneKey, LastDelivered]
    """Last delivery of each lane, by the table `lane`."""
    repeats: dict[int, Repeat]
    """Duplicates by id."""
    gates: dict[GateKey, GateRow]


NOTHING = Stored({}, [], [], {}, {}, {})


class Clock:
    """A clock that stands still until it is advanced."""

    def __init__(self) -> None:
        self.now = LONG_AGO

    def advance(self, seconds: float) -> None:
        self.now += timedelta(seconds=seconds)


class World:
    """The database of the relays, the receiver and the checks."""

    def __init__(self, engine: Engine, url: str) -> None:
        skip_disk_waits(engine)
        self.clock = Clock()
        self.database = Database(engine, lambda: self.clock.now)
        self.database.sql.pause_after_write = 0.0  # no other program waits for the lock
        self.database.sql.pipelines = False  # so that others can run between any two statements
        self.commits_out_of_order = Sql(engine.dialect.name).is_postgres
        self.stepper = Stepper(engine)
        self.receiver = Receiver(url)
        self._emptied = 0
        self._connection = engine.connect()
        if self.commits_out_of_order:
            self._connection.execution_options(isolation_level="AUTOCOMMIT")

    def close(self) -> None:
        self.receiver.close()
        self.stepper.close()
        self._connection.close()

    def empty(self) -> None:
        """Empty the database and reset the clock."""
        self.clock.now = LONG_AGO
        with self.database.write() as transaction:
            transaction.connection.execute(_END_COMMANDS)  # open commands cannot be deleted
            for table in _TABLES:
                transaction.connection.execute(text(f"DELETE FROM {table}"))
        self._emptied += 1
        if self._emptied % _VACUUM_AFTER == 0:
            self.vacuum(*_TABLES)

    def vacuum(self, *tables: str) -> None:
        """Vacuum the tables, as the tests' Postgres has no autovacuum, and dead rows slow down every reading."""
        if self.commits_out_of_order:
            with self._connection.begin():
                self._connection.exec_driver_sql(f"VACUUM {', '.join(tables)}")

    def look(self, history: History) -> Stored:
        """Read the stored state and append new facts to `history`."""
        with reading(self._connection).begin():
            log_since = _LOG.format(last=history.last_id)
            open_delivery, log, inbox, lanes, repeats, gates = (
                self._connection.exec_driver_sql(statement).all()
                for statement in (_OPEN, log_since, _INBOX, _LANES, _REPEATS, _GATES)
            )
        return Stored(
            open={(row.seq, row.route): row for row in map(_row, open_delivery)},
            new=[
                history.take_in(
                    row.id,
                    (row.seq, row.route),
                    decode(row.kind, json.dumps(as_json(row.detail))),
                    at=as_time(row.at),
                    standing=standing_of(row),
                    relay_node=row.relay_node,
                )
                for row in log
            ],
            inbox=[(seq, key) for seq, key in inbox],
            lanes={
                (route, lane): LastDelivered(as_time(occurred_at), seq, _time(began), _time(modified))
                for route, lane, occurred_at, seq, began, modified in lanes
            },
            repeats={number: Repeat(seq, times, handled_at is not None) for number, seq, times, handled_at in repeats},
            gates={
                (kind, name): GateRow(paused_at is not None, BreakerState(breaker), _time(until))
                for kind, name, paused_at, breaker, until in gates
            },
        )


def _time(stored: Any) -> datetime | None:  # noqa: ANN401  # as the driver has it
    return None if stored is None else as_time(stored)


def _row(columns: Sequence[Any]) -> Row:
    values = list(columns)
    for index in _TIMES:
        if values[index] is not None:
            values[index] = as_time(values[index])
    values[_STATE] = State(values[_STATE])
    return Row._make(values)
