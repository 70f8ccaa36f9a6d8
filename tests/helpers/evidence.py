"""What a run left behind in the database, as the checkers take it."""

from __future__ import annotations

import json

from sqlalchemy import Engine

from tests.helpers.reading import Row, rows


def stored(engine: Engine) -> list[Row]:
    """The inbox: entity, occurred_at as it was sent, seq."""
    found = rows(engine, "SELECT seq, body FROM inbox ORDER BY seq")
    events = [(row["seq"], json.loads(row["body"])) for row in found]
    return [{"seq": seq, "entity": event["id"], "occurred_at": event["timestamp"]} for seq, event in events]


def facts(engine: Engine) -> list[Row]:
    """The log: seq, kind, attempt, relay_node, detail."""
    found = rows(engine, "SELECT seq, kind, attempt, relay_node, detail FROM delivery_log ORDER BY id")
    return [{**row, "detail": _json(row["detail"])} for row in found]


def open_states(engine: Engine) -> dict[str, int]:
    """How many open deliveries are in each state."""
    return {
        row["state"]: row["n"] for row in rows(engine, "SELECT state, count(*) AS n FROM open_delivery GROUP BY state")
    }


def in_flight_of(engine: Engine, pid: int) -> int:
    """How many deliveries the relay of this pid works on, as far as the database knows."""
    query = (
        "SELECT count(*) AS n FROM open_delivery o JOIN relay_node r ON r.id = o.relay_node"
        " WHERE o.state = 'in_flight' AND r.pid = :pid AND r.stopped_at IS NULL"
    )
    return int(rows(engine, query, pid=pid)[0]["n"])


def _json(value: object) -> object:
    return json.loads(value) if isinstance(value, str) else value
