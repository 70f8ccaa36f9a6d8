"""Intake SQL: stores a batch of events and gives a `seq` for each.

Each call is one transaction. On Postgres the batch is one statement on an autocommitted connection, which is what
makes a commit cheap enough to be waited for (10,000 to 11,700 requests/s against 1,500 with a transaction for each
request).

The statements of a transaction are a generator, which yields each and gets its rows. The receiver runs it on an
asynchronous connection, a sweep on a synchronous one (`append`).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Generator, Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec
from sqlalchemy import Connection, CursorResult, TextClause, bindparam, text
from sqlalchemy.dialects.postgresql import JSONB

from inbox.db.checkpoint import Checkpoints, checkpoint_async
from inbox.db.dialect import POSTGRES, SQLITE, Sql
from inbox.db.duplicates import (
    KEPT_DUPLICATES,
    POSTGRES_NOTE,
    SQLITE_COUNT,
    SQLITE_KNOWN,
    SQLITE_NOTE,
    known_param,
    noted_and_counted,
    noted_param,
    postgres_columns,
)
from inbox.db.engine import one_transaction
from inbox.db.parameters import Blobs, array_param, rows_param, verbatim_param
from inbox.events.event import Event
from inbox.events.timestamps import time_text

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncConnection

Made = TypeVar("Made")
Statements = Generator[tuple[TextClause, Mapping[str, Any]], Sequence[Any], Made]
"""The statements of one transaction, each with its parameters. Each is answered with its rows."""


class Rejected(msgspec.Struct, frozen=True):
    """A rejected request: a row of `rejected_request`."""

    received_at: datetime
    source: str
    status: int
    cause: str
    reason: str
    field: str | None
    remote_address: str | None
    body_sha256: bytes
    headers: dict[str, str] | None
    """Allow-listed headers, only of an authenticated sender; so is the body."""
    body: bytes | None


class IntakeStore(ABC):
    """Calls that the writer makes on a database. Each commits before it returns. A dialect gives the statements."""

    def __init__(self, kept_duplicates: int = KEPT_DUPLICATES) -> None:
        self._kept = kept_duplicates

    async def append(self, connection: AsyncConnection, events: Sequence[Event]) -> list[int | None]:
        """Store the events, and their deliveries, that are not there yet.

        Returns:
            For each event its new `seq`, in arrival order; None where its key is in the inbox already.
        """
        return await _run(connection, self.appending(events))

    async def note_duplicates(self, connection: AsyncConnection, events: Sequence[Event]) -> list[int | None]:
        """Note duplicates of stored events: the first of each event as rows, further ones as a count.

        Returns:
            For each the `seq` of its first arrival; None where there is none after all.
        """
        return await _run(connection, self.noting(events))

    async def reject(self, connection: AsyncConnection, rows: Sequence[Rejected]) -> None:
        """Store rejected requests."""
        await _run(connection, self._rejecting(rows))

    async def probe(self, connection: AsyncConnection, now: datetime) -> None:
        """Write one row, to see that the database can be written."""
        await _run(connection, self._probing(now))

    @abstractmethod
    def appending(self, events: Sequence[Event]) -> Statements[list[int | None]]:
        """Give the statements of `append`."""

    @abstractmethod
    def noting(self, events: Sequence[Event]) -> Statements[list[int | None]]:
        """Give the statements of `note_duplicates`."""

    @abstractmethod
    def _rejecting(self, rows: Sequence[Rejected]) -> Statements[None]: ...

    @abstractmethod
    def _probing(self, now: datetime) -> Statements[None]: ...


def append(connection: Connection, events: Sequence[Event]) -> list[int | None]:
    """Store events as `IntakeStore.append` does, in the transaction of a synchronous connection."""
    return _run_sync(connection, STORES[connection.dialect.name]().appending(events))


def note_duplicates(connection: Connection, events: Sequence[Event]) -> list[int | None]:
    """Note duplicates as `IntakeStore.note_duplicates` does, in the transaction of a synchronous connection."""
    return _run_sync(connection, STORES[connection.dialect.name]().noting(events))


def _run_sync(connection: Connection, statements: Statements[Made]) -> Made:
    try:
        statement, parameters = next(statements)
        while True:
            statement, parameters = statements.send(_rows(connection.execute(statement, parameters)))
    except StopIteration as end:
        made: Made = end.value
        return made


async def _run(connection: AsyncConnection, statements: Statements[Made]) -> Made:
    """Run one transaction of `connect_async`."""
    async with one_transaction(connection):
        try:
            statement, parameters = next(statements)
            while True:
                statement, parameters = statements.send(_rows(await connection.execute(statement, parameters)))
        except StopIteration as end:
            made: Made = end.value
            return made


def _rows(result: CursorResult[Any]) -> Sequence[Any]:
    return result.all() if result.returns_rows else ()


_EVENT_COLUMNS = (
    "seq, source, dedup_key, entity_type, entity_id, event_type, action, event_id, occurred_at, received_at, routes,"
    " content_type, body_bytes, body_is_text, body_sha256, traceparent"
)

_TAKEN_OVER = (
    "entity_type",
    "entity_id",
    "event_type",
    "action",
    "event_id",
    "occurred_at",
    "content_type",
    "traceparent",
)

_PG = Sql(POSTGRES)
_POSTGRES_APPEND = text(f"""
WITH arrived AS MATERIALIZED (
    -- the numbers are taken in arrival order ...
    SELECT nextval('inbox_seq_seq') AS seq, a.*
    FROM unnest(
        CAST(:n AS int[]), CAST(:source AS text[]), CAST(:dedup_key AS text[]), CAST(:entity_type AS text[]),
        CAST(:entity_id AS text[]), CAST(:event_type AS text[]), CAST(:action AS text[]), CAST(:event_id AS text[]),
        CAST(:occurred_at AS timestamptz[]), CAST(:received_at AS timestamptz[]), CAST(:routes AS text[]),
        CAST(:headers AS text[]), CAST(:content_type AS text[]), CAST(:body_at AS int[]), CAST(:body_size AS int[]),
        CAST(:body_is_text AS boolean[]), CAST(:body_sha256 AS bytea[]), CAST(:traceparent AS text[])
    ) AS a(n, source, dedup_key, entity_type, entity_id, event_type, action, event_id, occurred_at, received_at, routes, headers,
           content_type, body_at, body_size, body_is_text, body_sha256, traceparent)
), stored AS (
    -- ... and the rows are inserted in the order of their keys: in arrival order, receivers with overlapping keys deadlock
    INSERT INTO inbox ({_EVENT_COLUMNS})
    SELECT seq, source, dedup_key, entity_type, entity_id, event_type, action, event_id, occurred_at, received_at,
           CAST(routes AS text[]), content_type, body_size, body_is_text, body_sha256, traceparent
    FROM arrived
    ORDER BY source, dedup_key, seq
    ON CONFLICT (source, dedup_key) DO NOTHING
    RETURNING seq
), kept AS (
    INSERT INTO inbox_payload (seq, headers, body)
    SELECT a.seq, CAST(a.headers AS jsonb), {_PG.blob("bodies.bodies", "a.body_at", "a.body_size")}
    FROM {_PG.blobs("bodies")} CROSS JOIN arrived a JOIN stored s ON s.seq = a.seq
), opened AS (
    INSERT INTO open_delivery (seq, route, lane, occurred_at, state)
    SELECT a.seq, d.route, d.lane, a.occurred_at, 'received'
    FROM unnest(CAST(:delivery_n AS int[]), CAST(:route AS text[]), CAST(:lane AS text[])) AS d(n, route, lane)
    JOIN arrived a ON a.n = d.n
    JOIN stored s ON s.seq = a.seq
)
SELECT a.n, a.seq FROM arrived a JOIN stored s ON s.seq = a.seq
""")

_REJECT = """
INSERT INTO rejected_request (received_at, source, status, cause, reason, field, remote_address, body_sha256, headers, body)
VALUES (:received_at, :source, :status, :cause, :reason, :field, :remote_address, :body_sha256, :headers, :body)
"""
_POSTGRES_REJECT = text(_REJECT).bindparams(bindparam("headers", type_=JSONB(none_as_null=True)))
_SQLITE_REJECT = text(_REJECT)

_PROBE = text("UPDATE write_probe SET probed_at = :now WHERE id = 1")


class PostgresIntake(IntakeStore):
    """Runs one statement for each transaction: on a connection in autocommit it costs one round trip."""

    def appending(self, events: Sequence[Event]) -> Statements[list[int | None]]:
        """See IntakeStore."""
        return _by_position(len(events), (yield _POSTGRES_APPEND, _postgres_columns(events)))

    def noting(self, events: Sequence[Event]) -> Statements[list[int | None]]:
        """See IntakeStore."""
        return _by_position(len(events), (yield POSTGRES_NOTE, {**postgres_columns(events), "kept": self._kept}))

    def _rejecting(self, rows: Sequence[Rejected]) -> Statements[None]:
        for row in rows:
            yield _POSTGRES_REJECT, msgspec.structs.asdict(row)

    def _probing(self, now: datetime) -> Statements[None]:
        yield _PROBE, {"now": now}


_SQL = Sql(SQLITE)
_EVENT_ROWS = _SQL.rows(  # SQLite's have no types
    "events",
    **dict.fromkeys(_EVENT_COLUMNS.removeprefix("seq, ").split(", "), "any"),
)

_SQLITE_APPEND = text(f"""
INSERT INTO inbox ({_EVENT_COLUMNS.removeprefix("seq, ")})
SELECT source, dedup_key, entity_type, entity_id, event_type, action, event_id, occurred_at, received_at, routes,
       content_type, body_bytes, body_is_text, from_hex(body_sha256), traceparent
FROM {_EVENT_ROWS}
WHERE true  -- or the parser takes ON CONFLICT for a join's ON
ON CONFLICT (source, dedup_key) DO NOTHING
""")
# RETURNING would have SQLite put all rows in a temporary table first, which takes five times their memory.
_SQLITE_LAST = text("SELECT coalesce(max(seq), 0) FROM inbox")
_SQLITE_STORED = text("SELECT source, dedup_key, seq FROM inbox WHERE seq > :last")

_SQLITE_KEEP = text(f"""
INSERT INTO inbox_payload (seq, headers, body)
SELECT seq, headers, {_SQL.blob("bodies.bodies", "body_at", "body_size")}
FROM {_SQL.blobs("bodies")} CROSS JOIN {_SQL.rows("payloads", seq="bigint", headers="json", body_at="int", body_size="int")}
""")

_SQLITE_OPEN = text(f"""
INSERT INTO open_delivery (seq, route, lane, occurred_at, state)
SELECT seq, route, lane, occurred_at, 'received'
FROM {_SQL.rows("deliveries", seq="bigint", route="text", lane="text", occurred_at="time")}
""")


class SqliteIntake(IntakeStore):
    """Runs one BEGIN IMMEDIATE for each call. A batch is a few parameters: its rows, its payloads and its bodies."""

    def __init__(self, kept_duplicates: int = KEPT_DUPLICATES) -> None:
        super().__init__(kept_duplicates)
        self._checkpoints = Checkpoints()

    async def append(self, connection: AsyncConnection, events: Sequence[Event]) -> list[int | None]:
        """See IntakeStore; copies the write-ahead log back when that is due."""
        seqs = await super().append(connection, events)
        if self._checkpoints.due(len(events)):
            self._checkpoints.made(complete=await checkpoint_async(connection))
        return seqs

    def appending(self, events: Sequence[Event]) -> Statements[list[int | None]]:
        """See IntakeStore."""
        first: dict[tuple[str, str], int] = {}
        for n, event in enumerate(events):
            first.setdefault((event.source, event.dedup_key), n)
        seqs: list[int | None] = [None] * len(events)
        ((last,),) = yield _SQLITE_LAST, {}
        yield _SQLITE_APPEND, {"events": verbatim_param(map(_sqlite_row, events))}
        for source, key, seq in (yield _SQLITE_STORED, {"last": last}):
            seqs[first[source, key]] = seq
        stored = [(seq, event) for seq, event in zip(seqs, events, strict=True) if seq is not None]
        if stored:
            yield _SQLITE_KEEP, _sqlite_payloads(stored)
        deliveries = [
            {"seq": seq, "route": enrolment.route, "lane": enrolment.lane, "occurred_at": event.occurred_at}
            for seq, event in stored
            for enrolment in event.enrolments
        ]
        if deliveries:
            yield _SQLITE_OPEN, {"deliveries": verbatim_param(deliveries)}
        return seqs

    def noting(self, events: Sequence[Event]) -> Statements[list[int | None]]:
        """See IntakeStore."""
        known = yield SQLITE_KNOWN, {"asked": known_param(events), "kept": self._kept}
        noted, counted = noted_and_counted(events, known, self._kept)
        if noted:
            yield SQLITE_NOTE, noted_param(noted)
        if counted:
            yield SQLITE_COUNT, {"counted": rows_param(counted)}
        return _by_position(len(events), [(row.n, row.seq) for row in known])

    def _rejecting(self, rows: Sequence[Rejected]) -> Statements[None]:
        for row in rows:
            values = msgspec.structs.asdict(row)
            values["received_at"] = time_text(row.received_at)
            values["headers"] = None if row.headers is None else msgspec.json.encode(row.headers).decode()
            yield _SQLITE_REJECT, values

    def _probing(self, now: datetime) -> Statements[None]:
        yield _PROBE, {"now": time_text(now)}


STORES: dict[str, type[PostgresIntake | SqliteIntake]] = {POSTGRES: PostgresIntake, SQLITE: SqliteIntake}


def _by_position(length: int, rows: Sequence[Any]) -> list[int | None]:
    seqs: list[int | None] = [None] * length
    for n, seq in rows:
        seqs[n] = seq
    return seqs


def _postgres_columns(events: Sequence[Event]) -> dict[str, str | bytes]:
    enrolled = [(n, enrolment) for n, event in enumerate(events) for enrolment in event.enrolments]
    columns: dict[str, list[Any]] = {
        **{name: [getattr(e, name) for e in events] for name in _TAKEN_OVER},
        # an array of arrays would be flattened; names of routes need no quoting: [A-Za-z0-9_-]
        "routes": ["{" + ",".join(enrolment.route for enrolment in e.enrolments) + "}" for e in events],
        "headers": [msgspec.json.encode(e.headers).decode() for e in events],
        "body_is_text": [_is_text(e.body) for e in events],
        "delivery_n": [n for n, _ in enrolled],
        "route": [enrolment.route for _, enrolment in enrolled],
        "lane": [enrolment.lane for _, enrolment in enrolled],
    }
    return postgres_columns(events) | {name: array_param(values) for name, values in columns.items()}


def _sqlite_row(event: Event) -> dict[str, object]:
    row = msgspec.structs.asdict(event)
    del row["enrolments"], row["headers"], row["body"]
    return {
        **row,
        "routes": [enrolment.route for enrolment in event.enrolments],
        "body_bytes": len(event.body),
        "body_is_text": _is_text(event.body),
    }


def _is_text(body: bytes) -> bool:
    """Return whether every reader of either database can take the body as text. SQLite has no function that tells it."""
    if b"\0" in body:
        return False
    try:
        return body.isascii() or body.decode("utf-8") is not None
    except UnicodeDecodeError:
        return False


def _sqlite_payloads(stored: Sequence[tuple[int, Event]]) -> dict[str, str | bytes]:
    bodies, payloads = Blobs(), []
    for seq, event in stored:
        at, size = bodies.place(event.body)
        payloads.append({"seq": seq, "headers": dict(event.headers), "body_at": at, "body_size": size})
    return {"payloads": verbatim_param(payloads), "bodies": bodies.joined()}
