"""The order lock: rows that every transaction locks, before it reads, that ends or makes heads of lanes.

Every rule of order is about one route. So who works on given routes locks their rows of `route_lock`, in the order of their
names; who may touch any route locks the row of `order_lock`, then every row of `route_lock`. Rows are added under the row of
`order_lock`, so nobody who has it misses one, and none is ever removed.

All are locked FOR UPDATE: a row that many share would get a new MultiXact with each of them, which Postgres has to vacuum away.
Rows, as any login of the database could hold an advisory lock for good. On SQLite the one writer is all the order there is.
"""

from __future__ import annotations

from functools import cache

from sqlalchemy import TextClause, text

from inbox.db.dialect import Sql

HELD_SECONDS = 5
"""Longest transaction on given routes, from the grant of its lock. No batch takes a second.

The limit for idle transactions, 3 s, does not count while a pipeline is open: a relay that stands still between two of its
statements would keep its routes for good.
"""

LOCKED_ROW_SECONDS = 1
"""Longest wait for a row under the lock of its route: all others who need the route wait meanwhile."""

FIRST = text("SELECT id FROM order_lock WHERE id = 1 FOR UPDATE")
"""The first of the two statements that lock everything: the other one has to see rows that are added until now."""
FIRST_TO_ADD_NOW = text("SELECT id FROM order_lock WHERE id = 1 FOR UPDATE NOWAIT /* to add to route_lock */")
"""The same for who has a route already. It fails rather than waits, as who has this row may wait for that route."""


@cache
def every_route(sql: Sql) -> TextClause:
    """Lock every route, then read the clock."""
    return _locking(sql, "SELECT route FROM route_lock ORDER BY route FOR UPDATE")


@cache
def given_routes(sql: Sql) -> TextClause:
    """Lock the given routes for at most `HELD_SECONDS`, then count those that have a row, and read the clock."""
    given = f"route_lock l JOIN {sql.rows('given', route='text')} ON given.route = l.route"
    return _locking(sql, f"SELECT l.route FROM {given} ORDER BY l.route FOR UPDATE OF l", _LIMITED)


@cache
def add_routes(sql: Sql) -> TextClause:
    """Add the rows of given routes that have none yet, after `FIRST`."""
    return text(f"""
INSERT INTO route_lock (route) SELECT route FROM {sql.rows("given", route="text")} ON CONFLICT DO NOTHING
""")


def _locking(sql: Sql, rows: str, more: str = "") -> TextClause:
    """The clock is read when all are locked: an aggregate has read all of its rows."""
    return text(f"""
WITH granted AS MATERIALIZED ({rows})
SELECT count(*) AS routes, {sql.now} AS now {more} FROM granted
""")


_LIMITED = f""",
    set_config('lock_timeout', '{LOCKED_ROW_SECONDS}s', true),
    CASE WHEN current_setting('transaction_timeout', true) IS NOT NULL
        THEN concat(set_config('transaction_timeout', '0', true), set_config('transaction_timeout', '{HELD_SECONDS}s', true))
    END AS limited
"""
"""Limits the wait for each row, and starts the timer.

The 0 ends a timer that runs already by a setting of the server or the role, and would go on otherwise.
Older servers than Postgres 17 lack the setting: there, `Transaction` opens no pipeline.
"""
