"""Reads of one event without its payload, for everybody who may read: what became of it, and its neighbours."""

from __future__ import annotations

from typing import Any

import msgspec
from sqlalchemy import Connection, Engine, text

from inbox.db.engine import reading
from inbox.db.reads import ENTITY, EVENT_GATES, Row, plain
from inbox.events.event import escape
from inbox.events.states import HEADS

MOST_FACTS = 400
MOST_DUPLICATES = 50
MOST_WAITING = 500
"""Deliveries that wait in a lane are counted up to here."""


class EventRead(msgspec.Struct, frozen=True):
    """An event, and all that is known of it besides its payload."""

    event: Row
    """Its row of `inbox`, with `is_pruned`: its payload is gone."""
    deliveries: list[Row]
    """Its rows of the view `delivery`."""
    facts: list[Row]
    """Its newest facts, the oldest first, at most `MOST_FACTS`."""
    has_earlier_facts: bool
    duplicates: list[Row]
    """The newest duplicates, at most `MOST_DUPLICATES`; `is_other`: its body differs from the event's."""
    lanes: list[Row]
    """Of each open delivery, by `route`: `head_seq` and `head_state` of its lane, and `waiting` deliveries there."""
    gates: list[Row]
    relays: list[Row]
    previous_seq: int | None
    """The event of the same entity before this one."""
    next_seq: int | None


def event_without_payload(engine: Engine, seq: int) -> EventRead | None:
    """Read an event; None when it doesn't exist. Every statement is bounded, and finds its rows through an index."""
    with engine.connect() as connection, reading(connection).begin():
        rows = _rows(connection, _EVENT, seq=seq)
        if not rows:
            return None
        event = rows[0]
        # The number is written into it, so that Postgres opens only the leaf of payloads that has it.
        pruned = connection.exec_driver_sql(f"SELECT is_pruned FROM event WHERE seq = {int(seq)}").scalar()
        event |= {"is_pruned": bool(pruned), "body_is_text": bool(event["body_is_text"])}  # SQLite has numbers
        facts = _rows(connection, _FACTS, seq=seq, most=MOST_FACTS + 1)
        entity = "|".join(escape(str(event[name])) for name in ENTITY)
        return EventRead(
            event=event,
            deliveries=_rows(connection, _DELIVERIES, seq=seq),
            facts=facts[:MOST_FACTS][::-1],
            has_earlier_facts=len(facts) > MOST_FACTS,
            duplicates=[
                {**row, "is_other": bool(row["is_other"])}
                for row in _rows(connection, _DUPLICATES, seq=seq, most=MOST_DUPLICATES)
            ],
            lanes=_rows(connection, _LANES, seq=seq, most=MOST_WAITING + 1),
            gates=_rows(connection, EVENT_GATES, entity=entity),
            relays=_rows(connection, _RELAYS, seq=seq),
            previous_seq=_neighbour(connection, event, "max", "<"),
            next_seq=_neighbour(connection, event, "min", ">"),
        )


def payload(connection: Connection, seq: int) -> tuple[dict[str, str], bytes] | None:
    """Read headers and body of an event; None when they are gone."""
    found = (
        connection.exec_driver_sql(f"SELECT headers, body FROM inbox_payload WHERE seq = {int(seq)}").mappings().first()
    )
    if found is None:
        return None
    row = plain(found)
    return row["headers"], bytes(row["body"])


def _rows(connection: Connection, statement: Any, **values: object) -> list[Row]:  # noqa: ANN401  # a text
    return [plain(row) for row in connection.execute(statement, values).mappings()]


def _neighbour(connection: Connection, event: Row, which: str, side: str) -> int | None:
    if event["entity_type"] is None or event["entity_id"] is None:
        return None
    of_entity = " AND ".join(f"{name} = :{name}" for name in ENTITY)
    statement = text(f"SELECT {which}(seq) FROM inbox WHERE {of_entity} AND seq {side} :seq")
    found: int | None = connection.execute(statement, {name: event[name] for name in (*ENTITY, "seq")}).scalar()
    return found


_EVENT = text("SELECT * FROM inbox WHERE seq = :seq")
_DELIVERIES = text("SELECT * FROM delivery WHERE seq = :seq AND route IS NOT NULL ORDER BY route")
_FACTS = text(
    "SELECT id, at, route, kind, attempt, relay_node, detail FROM delivery_log WHERE seq = :seq ORDER BY id DESC LIMIT :most"
)
_DUPLICATES = text("""
SELECT d.id, d.received_at, d.times, d.last_received_at, d.handled_at, d.error, d.body_sha256 <> i.body_sha256 AS is_other
FROM duplicate_request d JOIN inbox i ON i.seq = d.seq
WHERE d.seq = :seq
ORDER BY d.id DESC LIMIT :most
""")
_IS_HEAD = ", ".join(f"'{state}'" for state in HEADS)
_LANES = text(f"""
SELECT o.route, o.lane, h.seq AS head_seq, h.state AS head_state,
       (SELECT count(*) FROM (
            SELECT 1 FROM open_delivery w WHERE w.route = o.route AND w.lane = o.lane AND w.state = 'waiting' LIMIT :most
        ) waiting) AS waiting
FROM open_delivery o
LEFT JOIN open_delivery h ON h.route = o.route AND h.lane = o.lane AND h.state IN ({_IS_HEAD})
WHERE o.seq = :seq
ORDER BY o.route
""")
_RELAYS = text(
    "SELECT id, host, pid FROM relay_node WHERE id IN (SELECT relay_node FROM open_delivery WHERE seq = :seq)"
)
