"""Reads events as deliveries: claimed ones, the newest ones, and the newest of each entity."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any

import msgspec
from sqlalchemy import text

from inbox.config.model import Route
from inbox.config.routing import possible_lanes
from inbox.db.dialect import as_json
from inbox.errors import PayloadGone
from inbox.events.states import SUSPECT_CRASHES
from inbox.events.timestamps import as_time
from relay.delivery.outcome import Delivery
from relay.store.database import Database
from relay.store.deliveries import limit_to_run
from relay.store.statement import Statement, sql
from relay.store.transaction import Transaction


def load_events(transaction: Transaction, claimed: Sequence[Any]) -> list[Delivery]:
    """Make deliveries of claimed rows and their events, in order of seq.

    Raises:
        PayloadGone: the headers and body of an event have been deleted.
    """
    if not claimed:
        return []
    keys = [(row.seq, row.route, row.lane, row.run) for row in claimed]
    events = {(row.seq, row.route): row for row in transaction.execute(_EVENTS, claimed=keys)}
    payloads = {row.seq: row for row in read_payloads(transaction, (row.seq for row in claimed))}
    named = [event.edited_body for event in events.values() if event.edited_body is not None]
    edited = {row.id: row.body for row in transaction.execute(_EDITED, wanted=named)} if named else {}
    return [
        _make_delivery(row, events[row.seq, row.route], payloads.get(row.seq), edited)
        for row in sorted(claimed, key=lambda row: row.seq)
    ]


def read_payloads(transaction: Transaction, seqs: Iterable[int], columns: str = "seq, headers, body") -> Sequence[Any]:
    """Read the payloads of these events that still exist.

    The numbers are literals, so that Postgres opens only the partitions that contain them. With parameters it opens every
    partition, which takes 90 ms for 400 of them.
    """
    numbers = ", ".join(str(int(seq)) for seq in sorted(set(seqs)))
    if not numbers:
        return ()
    statement = f"SELECT {columns} FROM inbox_payload WHERE seq IN ({numbers})"
    return transaction.connection.exec_driver_sql(statement).all()


def _make_delivery(row: Any, event: Any, payload: Any, edited: Mapping[int, bytes]) -> Delivery:  # noqa: ANN401  # result rows
    is_edited = event.edited_body is not None
    if payload is None or (is_edited and event.edited_body not in edited):
        raise PayloadGone
    own = {"body": edited[event.edited_body]} if is_edited else {}
    late = event.last_occurred_at is not None and (as_time(event.occurred_at), row.seq) < (
        as_time(event.last_occurred_at),
        event.last_seq,
    )
    return Delivery(
        seq=row.seq,
        route=row.route,
        lane=row.lane,
        attempt=row.attempt,
        run=row.run,
        lease_token=row.lease_token,
        is_suspect=row.crashes >= SUSPECT_CRASHES,
        **(_as_fields(event, payload) | own),
        is_edited=is_edited,
        late=late,
        applied_hash=event.applied_hash,
        stale_before=event.stale_before,
    )


_FIELDS = (
    "source", "entity_type", "entity_id", "event_type", "action", "event_id", "dedup_key", "occurred_at", "received_at",
    "content_type", "traceparent",
)  # fmt: skip
_EVENT = ", ".join(f"i.{name}" for name in _FIELDS)
"""The columns of the inbox that `_as_fields` reads."""


def _as_fields(event: Any, payload: Any | None) -> dict[str, Any]:  # noqa: ANN401  # result rows
    """Return the fields of a `Delivery` from its event; without a payload, no headers and None as the body."""
    return {name: getattr(event, name) for name in _FIELDS} | {
        "occurred_at": as_time(event.occurred_at),
        "received_at": as_time(event.received_at),
        "headers": {} if payload is None else as_json(payload.headers),
        "body": None if payload is None else payload.body,
    }


# Reads events and last successes; `kind || ''` keeps Postgres from scanning the whole index of failed attempts.
_EVENTS = Statement(f"""
SELECT i.seq, claimed.route, {_EVENT},
       l.occurred_at AS last_occurred_at, l.seq AS last_seq,
       l.applied_hash,
       (SELECT count(*) FROM delivery_log f
        WHERE {limit_to_run("f", "claimed")} AND f.kind || '' = 'attempt_failed'
          AND f.detail ->> 'error_class' = 'stale') AS stale_before,
       CASE WHEN claimed.run > 0 THEN (
        SELECT max({sql.number("f.detail ->> 'edited_body'")}) FROM delivery_log f
        WHERE {limit_to_run("f", "claimed")} AND f.kind || '' = 'replayed') END AS edited_body
FROM {sql.rows("claimed", seq="bigint", route="text", lane="text", run="int")}
JOIN inbox i ON i.seq = claimed.seq
LEFT JOIN lane l ON l.route = claimed.route AND l.lane = claimed.lane
""")
_EDITED = Statement(f"""
SELECT e.id, e.body FROM {sql.look_up(sql.rows("wanted", id="bigint"), "edited_body e", "e.id = wanted.id")}
""")


def read_newest_events(database: Database, most: int) -> Iterator[Delivery]:
    """Yield the newest events, newest first, as deliveries without a route; those without a payload have no headers and body."""
    with database.read() as transaction:
        numbers = [row.seq for row in transaction.execute(_NEWEST_SEQS, most=most)]
    for seq in numbers:  # a short transaction for each
        if (event := read_event(database, seq)) is not None:
            yield event


def read_event(database: Database, seq: int) -> Delivery | None:
    """Read an event as a delivery without a route, or without headers and body if it has no payload; None without one."""
    with database.read() as transaction:
        rows = transaction.execute(_BY_SEQ, seq=seq)
        payloads = read_payloads(transaction, (seq,))
    return _as_if_due(rows[0], payloads[0] if payloads else None, "") if rows else None


_NEWEST_SEQS = text("SELECT seq FROM inbox ORDER BY seq DESC LIMIT :most")
_BY_SEQ = text(f"SELECT i.seq, {_EVENT} FROM inbox i WHERE i.seq = :seq")


# --- the newest event of each entity

Place = tuple[str, str]
"""Type and id of an entity, the order of pages."""
FIRST: Place = ("", "")


class Chosen(msgspec.Struct, frozen=True):
    """A selection of entities."""

    route: Route
    """Only entities of the types that this sync route takes."""
    entity_type: str | None = None
    entity_id: str | None = None
    since: datetime | None = None
    """Only entities with an event since this time."""


def read_entities(database: Database, chosen: Chosen, after: Place, most: int) -> list[Delivery]:
    """Read the newest events of the next entities after this place, as if each were delivered now.

    If the route fetches, these are the last that arrived, including events that did not take the route: the current
    state of their entities may concern it. Without fetch, they are the newest by their own time that the route takes.
    """
    route = chosen.route
    statement = _NEWEST_TAKEN if route.api is None else _NEWEST[bool(route.when.entity_type)]
    with database.read() as transaction:
        rows = transaction.execute(
            statement,
            source=route.source,
            types=route.when.entity_type,
            event_types=route.when.event_type,
            actions=route.when.action,
            **{name: getattr(chosen, name) for name in ("entity_type", "entity_id", "since")},
            after_type=after[0],
            after_id=after[1],
            most=most,
        )
        payloads = {row.seq: row for row in read_payloads(transaction, (row.seq for row in rows))}
    return [_as_if_due_in_lane(row, payloads.get(row.seq), route.name) for row in rows]


def read_newest_of_entity(database: Database, route: Route, place: Place) -> Delivery | None:
    """Read the newest event of one entity, as `read_entities` does; None without one."""
    if route.api is None:
        return next(iter(read_entities(database, Chosen(route, *place), FIRST, 1)), None)
    with database.read() as transaction:  # reads one row
        rows = transaction.execute(_NEWEST_OF_ONE, source=route.source, entity_type=place[0], entity_id=place[1])
        payloads = {row.seq: row for row in read_payloads(transaction, (row.seq for row in rows))}
    return _as_if_due_in_lane(rows[0], payloads.get(rows[0].seq), route.name) if rows else None


def _as_if_due(event: Any, payload: Any | None, route: str, lane: str = "") -> Delivery:  # noqa: ANN401  # result rows
    return Delivery(
        seq=event.seq, route=route, lane=lane, attempt=1, run=0, lease_token=0, **_as_fields(event, payload)
    )


def _as_if_due_in_lane(event: Any, payload: Any | None, route: str) -> Delivery:  # noqa: ANN401  # result rows
    lanes = possible_lanes(entity_type=event.entity_type, entity_id=event.entity_id, key="")
    return _as_if_due(event, payload, route, min(lanes))


_NEWEST_OF_ONE = text(f"""
SELECT i.seq, {_EVENT} FROM inbox i
WHERE i.source = :source AND i.entity_type = :entity_type AND i.entity_id = :entity_id
ORDER BY i.seq DESC LIMIT 1
""")


_OF_TYPES = f" AND entity_type IN (SELECT types.name FROM {sql.rows('types', name='text')})"
_NAMED_ENTITIES = f"""
    FROM inbox
    WHERE source = :source AND entity_type IS NOT NULL AND entity_id IS NOT NULL
      AND {sql.optional("entity_type", "text")} AND {sql.optional("entity_id", "text")}
      AND {sql.optional("received_at", "time", parameter="since", operator=">=")}
      AND (entity_type, entity_id) > (:after_type, :after_id)
"""
_IN_PAGES = "GROUP BY entity_type, entity_id ORDER BY entity_type, entity_id LIMIT :most"
# By whether types are selected: without that condition the statement is simpler to plan.
_NEWEST = {
    of_types: Statement(f"""
SELECT i.seq, {_EVENT}
FROM (SELECT entity_type, entity_id, max(seq) AS seq {_NAMED_ENTITIES}{_OF_TYPES * of_types} {_IN_PAGES}) newest
JOIN inbox i ON i.seq = newest.seq
ORDER BY i.entity_type, i.entity_id
""")
    for of_types in (False, True)
}
_IS_TAKEN = " AND ".join(
    f"(NOT EXISTS (SELECT 1 FROM {names}) OR {column} IN (SELECT {parameter}.name FROM {names}))"
    for column, parameter in (("entity_type", "types"), ("event_type", "event_types"), ("action", "actions"))
    for names in [sql.rows(parameter, name="text")]
)
_TAKEN_OF_ONE = (
    f"i.source = :source AND (i.entity_type, i.entity_id) = (found.entity_type, found.entity_id) AND {_IS_TAKEN}"
)
_TAKEN = f"(SELECT entity_type, entity_id {_NAMED_ENTITIES} AND {_IS_TAKEN} {_IN_PAGES}) AS found"
_NEWEST_TAKEN = Statement(f"""
SELECT i.seq, {_EVENT} FROM {sql.select_first(_TAKEN, "inbox i", _TAKEN_OF_ONE, "i.occurred_at DESC, i.seq DESC", "1")}
ORDER BY i.entity_type, i.entity_id
""")
