"""SQL of intake: store a batch of events, and return a `seq` for each.

Each call of `inbox.db.link.Link.write` is one transaction. On Postgres a batch is one statement on an autocommit
connection, so that waiting for the commit is cheap: 10,000 to 11,700 requests/s, against 1,500 with a transaction for
each request.

Repeated requests for an event become duplicates: the first ones as rows, the rest as a count. A sender that repeats one
event endlessly costs one update per batch, not a row per request. A new count resets its row to unhandled, so that the
relay judges it like a new row.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime
from itertools import chain
from typing import Any

import msgspec
from sqlalchemy import Connection, TextClause, text

from inbox.clock import SystemClock
from inbox.db.dialect import (
    POSTGRES,
    SQLITE,
    Blobs,
    Sql,
    array_param,
    json_text,
    require_storable,
)
from inbox.events.event import Event
from inbox.events.states import State
from inbox.events.timestamps import time_text


class Rejected(msgspec.Struct, frozen=True):
    """A row of `rejected_request`."""

    received_at: datetime
    source: str
    status: int
    cause: str
    reason: str
    field: str | None
    remote_address: str | None
    body_sha256: bytes
    headers: dict[str, str] | None
    """Allow-listed headers; they and the body are stored only for authenticated senders."""
    body: bytes | None


KEPT_DUPLICATES = 20
"""Maximum duplicate rows per event: more than senders' retries produce, but few enough to judge 200 events at once."""


def append(connection: Connection, events: Sequence[Event]) -> list[int | None]:
    """Store new events with their deliveries.

    Returns:
        For each event its new `seq`, in arrival order; None if its key is already stored.
    """
    if connection.dialect.name == SQLITE:
        return _append_to_sqlite(connection, events)
    return _order_by_position(len(events), connection.execute(_POSTGRES_APPEND, _postgres_columns(events)))


def note_duplicates(connection: Connection, events: Sequence[Event], kept: int = KEPT_DUPLICATES) -> list[int | None]:
    """Store duplicates of known events: the first ones of each event as rows, the rest as a count.

    Returns:
        For each the `seq` of its event; None if the event is gone.
    """
    given, found = note_param(events, kept), None
    for statement in NOTES[connection.dialect.name]:
        found = connection.execute(statement, given)
    return _order_by_position(len(events), found or ())


def reject(connection: Connection, rows: Sequence[Rejected]) -> None:
    """Store rejected requests."""
    for row in rows:
        values = msgspec.structs.asdict(row)
        values["received_at"] = time_text(row.received_at)
        values["headers"] = None if row.headers is None else json_text(row.headers)
        connection.execute(_REJECT[connection.dialect.name], values)


def probe(connection: Connection, now: datetime) -> None:
    """Write one row, to check that the database is writable."""
    connection.execute(_PROBE[connection.dialect.name], {"now": time_text(now)})


_EVENT_COLUMNS = (
    "seq, source, dedup_key, entity_type, entity_id, event_type, action, event_id, occurred_at, received_at, routes,"
    " content_type, body_bytes, body_is_text, body_sha256, traceparent"
)

_TAKEN_OVER = (
    "source",
    "dedup_key",
    "entity_type",
    "entity_id",
    "event_type",
    "action",
    "event_id",
    "occurred_at",
    "received_at",
    "content_type",
    "body_sha256",
    "traceparent",
    "ahead",
)

_PG = Sql(POSTGRES)
_POSTGRES_APPEND = text(f"""
WITH arrived AS MATERIALIZED (
    -- the numbers are taken in arrival order, and with them the times: `Event.resolve_time` ...
    SELECT nextval('inbox_seq_seq') AS seq, a.*, CASE
        WHEN a.ahead IS NULL THEN clock_timestamp()
        WHEN a.said_at > clock_timestamp() + make_interval(secs => a.ahead) THEN date_trunc('second', clock_timestamp())
        ELSE a.said_at END AS occurred_at
    FROM unnest(
        CAST(:n AS int[]), CAST(:source AS text[]), CAST(:dedup_key AS text[]), CAST(:entity_type AS text[]),
        CAST(:entity_id AS text[]), CAST(:event_type AS text[]), CAST(:action AS text[]), CAST(:event_id AS text[]),
        CAST(:occurred_at AS timestamptz[]), CAST(:received_at AS timestamptz[]), CAST(:routes AS text[]),
        CAST(:headers AS text[]), CAST(:content_type AS text[]), CAST(:body_at AS int[]), CAST(:body_size AS int[]),
        CAST(:body_is_text AS boolean[]), CAST(:body_sha256 AS bytea[]), CAST(:traceparent AS text[]), CAST(:ahead AS float8[])
    ) AS a(n, source, dedup_key, entity_type, entity_id, event_type, action, event_id, said_at, received_at, routes, headers,
           content_type, body_at, body_size, body_is_text, body_sha256, traceparent, ahead)
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

_REJECT = {
    sql.name: text(f"""
INSERT INTO rejected_request (received_at, source, status, cause, reason, field, remote_address, body_sha256, headers, body)
VALUES ({sql.time(":received_at")}, :source, :status, :cause, :reason, :field, :remote_address, :body_sha256,
        {"CAST(:headers AS jsonb)" if sql.is_postgres else ":headers"}, :body)
""")
    for sql in (Sql(POSTGRES), Sql(SQLITE))
}
_PROBE = {
    dialect: text(f"UPDATE write_probe SET probed_at = {Sql(dialect).time(':now')} WHERE id = 1")
    for dialect in (POSTGRES, SQLITE)
}


_SQL = Sql(SQLITE)
_SQLITE_APPEND = f"INSERT INTO inbox ({_EVENT_COLUMNS.removeprefix('seq, ')})"
_UNLESS_KNOWN = "ON CONFLICT (source, dedup_key) DO NOTHING"
_SQLITE_LAST = "SELECT coalesce(max(seq), 0) FROM inbox"
_SQLITE_STORED = "SELECT source, dedup_key, seq FROM inbox WHERE seq > ?"
_SQLITE_KEEP = text(f"""
INSERT INTO inbox_payload (seq, headers, body)
SELECT seq, headers, {_SQL.blob("bodies.bodies", "body_at", "body_size")}
FROM {_SQL.blobs("bodies")} CROSS JOIN {_SQL.rows("payloads", seq="bigint", headers="json", body_at="int", body_size="int")}
""")
_SQLITE_OPEN = "INSERT INTO open_delivery (seq, route, lane, occurred_at, state)"


_AT_ONCE = 256
"""Rows of one INSERT, the size of a receiver's batch; SQLite takes 32,766 parameters."""


def _append_to_sqlite(connection: Connection, events: Sequence[Event]) -> list[int | None]:
    """Store new events by few statements with many rows each."""
    first: dict[tuple[str, str], int] = {}
    for n, event in enumerate(events):
        first.setdefault((event.source, event.dedup_key), n)
    seqs: list[int | None] = [None] * len(events)
    last = connection.exec_driver_sql(_SQLITE_LAST).scalar_one()
    now = SystemClock().now()
    rows = [_sqlite_row(event, now) for event in events]
    _insert(connection, _SQLITE_APPEND, rows, _UNLESS_KNOWN)
    for source, key, seq in connection.exec_driver_sql(_SQLITE_STORED, (last,)):
        seqs[first[source, key]] = seq
    stored = [(seq, event) for seq, event in zip(seqs, events, strict=True) if seq is not None]
    if stored:
        connection.execute(_SQLITE_KEEP, _sqlite_payloads(stored))
    deliveries = [
        (seq, enrolment.route, enrolment.lane, time_text(event.resolve_time(now)), State.RECEIVED.value)
        for seq, event in stored
        for enrolment in event.enrolments
    ]
    _insert(connection, _SQLITE_OPEN, deliveries)
    return seqs


def _order_by_position(length: int, rows: Iterable[Any]) -> list[int | None]:
    seqs: list[int | None] = [None] * length
    for n, seq in rows:
        seqs[n] = seq
    return seqs


def _insert(connection: Connection, into: str, rows: Sequence[tuple[Any, ...]], then: str = "") -> None:
    """Insert rows on SQLite with few statements: at each, `sqlite3` competes with the event loop's thread for the GIL.

    The numbers of rows are powers of two, so that few statements differ: the driver caches each with its last values.
    """
    require_storable(rows)
    at = 0
    while at < len(rows):
        some = rows[at : at + min(_AT_ONCE, 1 << ((len(rows) - at).bit_length() - 1))]
        row = "(" + ",".join("?" * len(some[0])) + ")"
        connection.exec_driver_sql(f"{into} VALUES {','.join([row] * len(some))} {then}", tuple(chain(*some)))
        at += len(some)


def _postgres_columns(events: Sequence[Event]) -> dict[str, str | bytes]:
    bodies = Blobs()
    places = [bodies.place(event.body) for event in events]
    enrolled = [(n, enrolment) for n, event in enumerate(events) for enrolment in event.enrolments]
    columns: dict[str, list[Any]] = {
        "n": list(range(len(events))),
        **{name: [getattr(e, name) for e in events] for name in _TAKEN_OVER},
        # an array of arrays would be flattened; route names need no quotes: [A-Za-z0-9_-]
        "routes": ["{" + ",".join(enrolment.route for enrolment in e.enrolments) + "}" for e in events],
        "headers": [json_text(e.headers) for e in events],
        "body_at": [at for at, _ in places],
        "body_size": [size for _, size in places],
        "body_is_text": [_is_text(e.body) for e in events],
        "delivery_n": [n for n, _ in enrolled],
        "route": [enrolment.route for _, enrolment in enrolled],
        "lane": [enrolment.lane for _, enrolment in enrolled],
    }
    return {"bodies": bodies.join(), **{name: array_param(values) for name, values in columns.items()}}


def _sqlite_row(event: Event, now: datetime) -> tuple[Any, ...]:
    """Return the values for `_SQLITE_APPEND`, in the order of `_EVENT_COLUMNS`."""
    return (
        event.source,
        event.dedup_key,
        event.entity_type,
        event.entity_id,
        event.event_type,
        event.action,
        event.event_id,
        time_text(event.resolve_time(now)),
        time_text(event.received_at),
        json_text([enrolment.route for enrolment in event.enrolments]),
        event.content_type,
        len(event.body),
        _is_text(event.body),
        event.body_sha256,
        event.traceparent,
    )


def _is_text(body: bytes) -> bool:
    """Return whether both databases can return the body as text, which SQLite can't tell."""
    if b"\0" in body:
        return False
    try:
        return body.isascii() or body.decode("utf-8") is not None
    except UnicodeDecodeError:
        return False


def _sqlite_payloads(stored: Sequence[tuple[int, Event]]) -> dict[str, str | bytes]:
    """Build the parameters of `_SQLITE_KEEP`, which stores any number of bodies: cached statements keep their values."""
    bodies, payloads = Blobs(), []
    for seq, event in stored:
        at, size = bodies.place(event.body)
        payloads.append({"seq": seq, "headers": event.headers, "body_at": at, "body_size": size})
    return {"payloads": json_text(payloads), "bodies": bodies.join()}


# This is a separate statement, since the first one can't see rows committed by other receivers after its snapshot.
# Receivers that count duplicates of one event concurrently lock different rows (SKIP LOCKED), and add a row if all are
# locked. None waits for another or for the marking relay, so there are no deadlocks, and no count is lost.


def _notes(sql: Sql) -> tuple[TextClause, ...]:
    """Return the statements that count and add duplicates; the last one selects the `seq` of each."""
    asked = sql.rows(
        "asked",
        n="int",
        source="text",
        dedup_key="text",
        received_at="time",
        body_sha256="bytes",
        body_at="int",
        body_size="int",
    )
    known = f"FROM {asked} JOIN inbox i ON i.source = asked.source AND i.dedup_key = asked.dedup_key"
    body_sha256 = sql.hex_bytes("asked.body_sha256")
    placed = f"""
WITH known AS MATERIALIZED (
    SELECT asked.n, i.seq, asked.received_at, {body_sha256} AS body_sha256,
           CASE WHEN i.body_sha256 <> {body_sha256} AND i.erased_at IS NULL
                THEN (SELECT {sql.blob("bodies.bodies", "asked.body_at", "asked.body_size")} FROM {sql.blobs("bodies")}) END AS body
    {known}
), ranked AS (
    SELECT known.*, row_number() OVER (PARTITION BY seq ORDER BY n) AS place, count(*) OVER (PARTITION BY seq) AS times,
           max(received_at) OVER (PARTITION BY seq) AS last_received_at
    FROM known
), placed AS MATERIALIZED (
    SELECT r.*, max(r.number) OVER (PARTITION BY r.seq) AS there
    FROM (
        SELECT ranked.*, (SELECT count(*) FROM (
            -- as a range in the order of the index: by statistics of one event's storm it would read the whole table else
            SELECT 1 FROM duplicate_request d
            WHERE ranked.place = 1 AND d.seq BETWEEN ranked.seq AND ranked.seq ORDER BY d.seq LIMIT :kept
        ) AS found) AS number
        FROM ranked) r
)"""
    counts = "SET times = duplicate_request.times + c.times, handled_at = NULL, error = NULL, last_received_at ="
    adds = "INSERT INTO duplicate_request (seq, received_at, body_sha256, body, times, last_received_at)"
    made = """
    SELECT seq, received_at, body_sha256, body,
           CASE WHEN place_there = :kept THEN times - place + 1 ELSE 1 END,
           CASE WHEN place_there = :kept AND times > place THEN last_received_at END
    FROM (SELECT p.*, CASE WHEN there < :kept THEN there ELSE :kept - 1 END + place AS place_there FROM placed p) AS made
    WHERE place_there <= :kept"""
    if not sql.is_postgres:
        counted = f"""
UPDATE duplicate_request {counts} max(coalesce(duplicate_request.last_received_at, ''), c.last_received_at)
FROM placed c WHERE c.place = 1 AND c.there = :kept
  AND duplicate_request.id = (SELECT max(r.id) FROM duplicate_request r WHERE r.seq = c.seq)"""
        noted = f"{adds} {made} AND there < :kept ORDER BY n"
        return text(placed + counted), text(placed + noted), text(f"SELECT asked.n, i.seq {known}")
    return (
        text(f"""{placed}, counting AS MATERIALIZED (
    SELECT r.id, placed.seq, placed.times, placed.last_received_at
    FROM placed
    CROSS JOIN LATERAL (
        SELECT id FROM duplicate_request WHERE seq BETWEEN placed.seq AND placed.seq
        ORDER BY seq DESC LIMIT 1 FOR UPDATE SKIP LOCKED
    ) AS r
    WHERE placed.place = 1 AND placed.there = :kept
), counted AS (
    UPDATE duplicate_request {counts} greatest(duplicate_request.last_received_at, c.last_received_at)
    FROM counting c WHERE duplicate_request.id = c.id
), noted AS (
    {adds} {made} AND seq NOT IN (SELECT seq FROM counting) ORDER BY n
)
SELECT n, seq FROM known
"""),
    )


NOTES = {dialect: _notes(Sql(dialect)) for dialect in (POSTGRES, SQLITE)}


def note_param(events: Sequence[Event], kept: int) -> dict[str, str | bytes | int]:
    """Build the parameters of `NOTES`."""
    bodies, asked = Blobs(), []
    for n, event in enumerate(events):
        at, size = bodies.place(event.body)
        asked.append(
            {
                "n": n,
                "source": event.source,
                "dedup_key": event.dedup_key,
                "received_at": time_text(event.received_at),
                "body_sha256": event.body_sha256.hex(),
                "body_at": at,
                "body_size": size,
            }
        )
    return {"asked": json_text(asked), "bodies": bodies.join(), "kept": kept}
