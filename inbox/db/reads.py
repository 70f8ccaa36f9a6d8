"""Queries of the receiver's listings: rows of the public tables and views."""

from __future__ import annotations

from datetime import datetime
from functools import cache
from typing import Any

from sqlalchemy import Engine, TextClause, text

from inbox.db.dialect import Sql, as_json, as_list
from inbox.db.engine import reading
from inbox.events.timestamps import as_time, time_text

Row = dict[str, Any]


def events(
    engine: Engine,
    *,
    source: str | None = None,
    entity_type: str | None = None,
    entity_id: str | None = None,
    state: str | None = None,
    since: datetime | None = None,
    before: int | None = None,
    limit: int = 50,
) -> list[Row]:
    """List rows of the view `delivery`, the newest event first; `before` is the seq to continue from."""
    sql = Sql(engine.dialect.name)
    conditions = {
        "source": source,
        "entity_type": entity_type,
        "entity_id": entity_id,
        "since": None if since is None else time_text(since),
        "before": before,
        "limit": limit,
    }
    with engine.connect() as connection, reading(connection).begin():
        lowest = None
        if state is None:  # each event has at least one line, so the view need not look further back
            lowest = connection.execute(_lowest(sql), conditions).scalar()
        found = connection.execute(_events(sql), {**conditions, "state": state, "lowest": lowest})
        return [plain(row) for row in found.mappings()]


def _conditions(sql: Sql) -> str:
    conditions = [sql.optional(column, "text") for column in ("source", "entity_type", "entity_id")]
    conditions.append(sql.optional("received_at", "time", parameter="since", operator=">="))
    conditions.append(sql.optional("seq", "bigint", parameter="before", operator="<"))
    return " AND ".join(conditions)


@cache
def _lowest(sql: Sql) -> TextClause:
    return text(f"""
SELECT min(seq) FROM (SELECT seq FROM inbox WHERE {_conditions(sql)} ORDER BY seq DESC LIMIT :limit) AS newest
""")


@cache
def _events(sql: Sql) -> TextClause:
    return text(f"""
SELECT * FROM delivery
WHERE {_conditions(sql)} AND {sql.optional("state", "text")}
  AND {sql.optional("seq", "bigint", parameter="lowest", operator=">=")}
ORDER BY seq DESC, route
LIMIT :limit
""")


def event(engine: Engine, seq: int) -> Row | None:
    """Read one event with its deliveries, facts and duplicates; None when it doesn't exist."""
    with engine.connect() as connection, reading(connection).begin():
        found = connection.execute(text("SELECT * FROM inbox WHERE seq = :seq"), {"seq": seq}).mappings().first()
        if found is None:
            return None
        row = plain(found)
        for name, query in _PARTS.items():
            row[name] = [plain(part) for part in connection.execute(query, {"seq": seq}).mappings()]
    return row


_PARTS = {
    "deliveries": text("SELECT * FROM delivery WHERE seq = :seq AND route IS NOT NULL ORDER BY route"),
    "facts": text(
        "SELECT id, at, route, kind, attempt, relay_node, detail FROM delivery_log WHERE seq = :seq ORDER BY id"
    ),
    "duplicates": text(
        "SELECT id, received_at, body, times, last_received_at, handled_at, error"
        " FROM duplicate_request WHERE seq = :seq ORDER BY id"
    ),
}


def rejected_requests(
    engine: Engine,
    *,
    source: str | None = None,
    cause: str | None = None,
    since: datetime | None = None,
    before: int | None = None,
    limit: int = 50,
) -> list[Row]:
    """List rows of `rejected_request`, the newest first; `before` is the id to continue from."""
    conditions = {
        "source": source,
        "cause": cause,
        "since": None if since is None else time_text(since),
        "before": before,
        "limit": limit,
    }
    with engine.connect() as connection, reading(connection).begin():
        found = connection.execute(_rejected_requests(Sql(engine.dialect.name)), conditions)
        return [plain(row) for row in found.mappings()]


@cache
def _rejected_requests(sql: Sql) -> TextClause:
    return text(f"""
SELECT * FROM rejected_request
WHERE {sql.optional("source", "text")} AND {sql.optional("cause", "text")}
  AND {sql.optional("received_at", "time", parameter="since", operator=">=")}
  AND {sql.optional("id", "bigint", parameter="before", operator="<")}
ORDER BY id DESC
LIMIT :limit
""")


def rejected_request(engine: Engine, number: int) -> Row | None:
    """Read one rejected request; None when it doesn't exist."""
    with engine.connect() as connection, reading(connection).begin():
        query = text("SELECT * FROM rejected_request WHERE id = :id")
        found = connection.execute(query, {"id": number}).mappings().first()
        return None if found is None else plain(found)


def plain(mapping: Any) -> Row:  # noqa: ANN401  # a result row's mapping
    """Convert a row of a public table or view to Python values: aware times, decoded JSON."""
    row = dict(mapping)
    for name, value in row.items():
        if value is not None and (name == "at" or name.endswith(("_at", "_until"))):
            row[name] = as_time(value)
        elif name in {"headers", "detail"}:
            row[name] = as_json(value)
        elif name == "routes":
            row[name] = as_list(value)
        elif name == "body_sha256":
            row[name] = value.hex()
    return row
