"""Queries of tests: rows, counts, plans of Postgres, and recorded statements."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping
from typing import Any

from sqlalchemy import Connection, Engine, event, text

from inbox.db.dialect import as_json
from inbox.db.engine import reading
from inbox.events.timestamps import as_time

Row = dict[str, Any]


def rows(engine: Engine, statement: str, **parameters: object) -> list[Row]:
    """Return the rows of a query, without taking SQLite's write lock."""
    with engine.connect() as connection, reading(connection).begin():
        return [dict(row._mapping) for row in connection.execute(text(statement), parameters)]


def count(engine: Engine, table: str, **parameters: object) -> int:
    """Count the rows of a table, perhaps with a condition."""
    return int(rows(engine, f"SELECT count(*) AS n FROM {table}", **parameters)[0]["n"])


def duplicates(engine: Engine) -> int:
    """Count the noted duplicates, whether stored as rows or as counts."""
    return int(rows(engine, "SELECT coalesce(sum(times), 0) AS n FROM duplicate_request")[0]["n"])


def read_inbox(engine: Engine) -> list[Row]:
    """Return the inbox: entity, occurred_at as sent, seq, routes."""
    found = rows(engine, "SELECT seq, routes, body FROM inbox JOIN inbox_payload USING (seq) ORDER BY seq")
    events = [(row, json.loads(row.pop("body"))) for row in found]
    return [{**row, "entity": event["id"], "occurred_at": event["timestamp"]} for row, event in events]


def facts(engine: Engine) -> list[Row]:
    """Return the log: seq, route, kind, state columns, relay_node, at, and detail without calls."""
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


def list_in_flight(engine: Engine, pid: int) -> list[Row]:
    """Return seq, run and attempt of the deliveries in flight at the relay of this pid."""
    query = (
        "SELECT o.seq, o.run, o.attempt FROM open_delivery o JOIN relay_node r ON r.id = o.relay_node"
        " WHERE o.state = 'in_flight' AND r.pid = :pid AND r.stopped_at IS NULL"
    )
    return rows(engine, query, pid=pid)


def list_in_flight_elsewhere(engine: Engine, node: str) -> set[int]:
    """Return the seqs in flight at any other relay node."""
    query = "SELECT seq FROM open_delivery WHERE state = 'in_flight' AND relay_node <> :node"
    return {row["seq"] for row in rows(engine, query, node=node)}


def relay_pids(engine: Engine) -> dict[str, int]:
    """Return the pid of every relay node that ever ran."""
    return {row["id"]: row["pid"] for row in rows(engine, "SELECT id, pid FROM relay_node")}


Node = dict[str, Any]


def explain(connection: Connection, statement: str, parameters: Mapping[str, Any], options: str = "") -> list[Node]:
    """Return all nodes of a statement's plan, from the top."""
    return list(
        plan_nodes(connection.execute(text(f"EXPLAIN ({options}FORMAT JSON) {statement}"), parameters).scalar_one())
    )


def plan_nodes(found: list[Node]) -> Iterator[Node]:
    """Yield all nodes of EXPLAIN's JSON."""
    below = [found[0]["Plan"]]
    while below:
        node = below.pop()
        yield node
        below += node.get("Plans", ())


@contextlib.contextmanager
def record_statements() -> Iterator[list[str]]:
    """Record the statements of all engines of this process."""
    seen: list[str] = []

    def note(_connection: object, _cursor: object, statement: str, *_: object) -> None:
        seen.append(statement)

    event.listen(Engine, "before_cursor_execute", note)
    try:
        yield seen
    finally:
        event.remove(Engine, "before_cursor_execute", note)
