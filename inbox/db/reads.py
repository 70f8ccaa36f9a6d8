"""Queries of single events and rejected requests, and the form in which rows of public tables and views are shown."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Engine, text

from inbox.db.dialect import as_json, as_list
from inbox.db.engine import reading
from inbox.events.event import escape
from inbox.events.states import HEADS
from inbox.events.timestamps import as_time

Row = dict[str, Any]


def event(engine: Engine, seq: int) -> Row | None:
    """Read one event with its deliveries, facts, duplicates, and what its deliveries wait for; None when it doesn't exist."""
    with engine.connect() as connection, reading(connection).begin():
        found = connection.execute(_EVENT, {"seq": seq}).mappings().first()
        if found is None:
            return None
        row = plain(found)
        given = {"seq": seq, "entity": "|".join(escape(str(row[name])) for name in ENTITY)}
        for name, query in _PARTS.items():
            row[name] = [plain(part) for part in connection.execute(query, given).mappings()]
    return row


_EVENT = text(
    "SELECT i.*, p.headers, p.body FROM inbox i LEFT JOIN inbox_payload p ON p.seq = i.seq WHERE i.seq = :seq"
)
"""Headers and body are null when the payload was pruned or erased."""
_HEADS = ", ".join(f"'{state}'" for state in HEADS)
ENTITY = ("source", "entity_type", "entity_id")
"""The columns that name an entity; escaped and joined, they are the name of its gate."""

EVENT_GATES = text("""
SELECT kind, name, paused_at, paused_by, pause_reason, breaker, breaker_until, breaker_cause, rate_used_until,
    held_until, hold_reason
FROM gate
WHERE kind <> 'entity' OR (kind = 'entity' AND name = :entity)
ORDER BY kind, name
""")
"""Every gate that may hold a delivery of an event back, open or not."""

_PARTS = {
    "deliveries": text("SELECT * FROM delivery WHERE seq = :seq AND route IS NOT NULL ORDER BY route"),
    "facts": text(
        "SELECT id, at, route, kind, attempt, relay_node, detail FROM delivery_log WHERE seq = :seq ORDER BY id"
    ),
    "duplicates": text(
        "SELECT id, received_at, body, times, last_received_at, handled_at, error"
        " FROM duplicate_request WHERE seq = :seq ORDER BY id"
    ),
    "heads": text(f"""
SELECT h.route, h.seq, h.state
FROM open_delivery o JOIN open_delivery h ON h.route = o.route AND h.lane = o.lane AND h.state IN ({_HEADS})
WHERE o.seq = :seq AND o.state = 'waiting'
ORDER BY h.route
"""),
    "gates": EVENT_GATES,
    "relays": text(
        "SELECT id, host, pid FROM relay_node WHERE id IN (SELECT relay_node FROM open_delivery WHERE seq = :seq)"
    ),
}
"""`heads`: what a waiting delivery waits behind."""


def rejected_request(engine: Engine, number: int) -> Row | None:
    """Read one rejected request; None when it doesn't exist."""
    with engine.connect() as connection, reading(connection).begin():
        query = text("SELECT * FROM rejected_request WHERE id = :id")
        found = connection.execute(query, {"id": number}).mappings().first()
        return None if found is None else plain(found)


def command(engine: Engine, number: int) -> Row | None:
    """Read one command of an operator; None when it doesn't exist."""
    with engine.connect() as connection, reading(connection).begin():
        found = (
            connection.execute(text("SELECT * FROM relay_command WHERE id = :id"), {"id": number}).mappings().first()
        )
        return None if found is None else plain(found)


def plain(mapping: Any) -> Row:  # noqa: ANN401  # a result row's mapping
    """Convert a row of a public table or view to Python values: aware times, decoded JSON."""
    row = dict(mapping)
    for name, value in row.items():
        if value is not None and (name in {"at", "minute"} or name.endswith(("_at", "_until"))):
            row[name] = as_time(value)
        elif name in {"headers", "detail", "selection", "sample"}:
            row[name] = as_json(value)
        elif name == "dry_run":  # SQLite has numbers
            row[name] = bool(value)
        elif name == "routes":
            row[name] = as_list(value)
        elif name == "body_sha256":
            row[name] = value.hex()
    return row
