"""Rows that a run left behind in the database, as the checkers take them."""

from __future__ import annotations

import json

from sqlalchemy import Engine
from tests.helpers.tables import Row, rows

from inbox.db.dialect import as_json
from inbox.events.timestamps import as_time


def stored(engine: Engine) -> list[Row]:
    """The inbox: entity, occurred_at as it was sent, seq, routes."""
    found = rows(engine, "SELECT seq, routes, body FROM inbox JOIN inbox_payload USING (seq) ORDER BY seq")
    events = [(row, json.loads(row.pop("body"))) for row in found]
    return [{**row, "entity": event["id"], "occurred_at": event["timestamp"]} for row, event in events]


def facts(engine: Engine) -> list[Row]:
    """The log: seq, route, kind, what it says of the state, relay_node, at, and detail without its calls, which are most of it."""
    columns = "seq, route, kind, state, attempt, run, crashes, relay_node, at, detail"
    found = rows(engine, f"SELECT {columns} FROM delivery_log ORDER BY id")
    for row in found:
        row["at"], row["detail"] = as_time(row["at"]), as_json(row["detail"])
        row["detail"].pop("calls", None)
    return found


def open_states(engine: Engine) -> dict[str, int]:
    """Count the open deliveries in each state."""
    return {
        row["state"]: row["n"] for row in rows(engine, "SELECT state, count(*) AS n FROM open_delivery GROUP BY state")
    }


def in_flight_of(engine: Engine, pid: int) -> list[Row]:
    """List what the relay of this pid works on, as far as the database knows: seq, run, attempt."""
    query = (
        "SELECT o.seq, o.run, o.attempt FROM open_delivery o JOIN relay_node r ON r.id = o.relay_node"
        " WHERE o.state = 'in_flight' AND r.pid = :pid AND r.stopped_at IS NULL"
    )
    return rows(engine, query, pid=pid)


def in_flight_elsewhere(engine: Engine, node: str) -> set[int]:
    """The seqs that any other relay node works on."""
    query = "SELECT seq FROM open_delivery WHERE state = 'in_flight' AND relay_node <> :node"
    return {row["seq"] for row in rows(engine, query, node=node)}


def nodes(engine: Engine) -> dict[str, int]:
    """The pid of every relay node that ever ran."""
    return {row["id"]: row["pid"] for row in rows(engine, "SELECT id, pid FROM relay_node")}
