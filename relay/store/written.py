"""Statements that write the state of deliveries back: facts, ends and moves."""

from __future__ import annotations

from functools import cache

from sqlalchemy import TextClause, text

from inbox.db.dialect import Sql


@cache
def append_facts(sql: Sql) -> TextClause:
    """Append the rows `facts` to the log."""
    rows = sql.rows("facts", seq="bigint", route="text", kind="text", attempt="int", relay_node="text", detail="json")
    return text(f"""
INSERT INTO delivery_log (at, seq, route, kind, attempt, relay_node, detail)
SELECT (SELECT {sql.now}), seq, route, kind, attempt, relay_node, detail
FROM {rows}
""")


@cache
def end(sql: Sql) -> TextClause:
    """Remove the open deliveries `ended`."""
    return text(f"""
DELETE FROM open_delivery AS o
WHERE (o.seq, o.route) IN (SELECT seq, route FROM {sql.keys("ended")}){sql.of_keys("o", "ended")}
""")


MOVED = {
    "seq": "bigint", "route": "text", "state": "text", "attempt": "int", "run": "int", "crashes": "int", "due_at": "time"
}  # fmt: skip
"""Types of the columns of `moved`."""


@cache
def move(sql: Sql) -> TextClause:
    """Give the open deliveries `moved` their state, without a lease."""
    return text(f"""
UPDATE open_delivery AS o
SET state = moved.state, attempt = moved.attempt, run = moved.run, crashes = moved.crashes, due_at = moved.due_at,
    lease_until = NULL, lease_token = NULL, relay_node = NULL
FROM {sql.rows("moved", **MOVED)}
WHERE {sql.has_key("o", "moved")}
""")
