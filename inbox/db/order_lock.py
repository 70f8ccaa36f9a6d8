"""The order lock: a transaction that ends or makes heads of lanes locks these rows before it reads.

All ordering is per route. A transaction on given routes locks their rows of `route_lock`, ordered by name; one that may
touch any route locks the row of `order_lock`, then all rows of `route_lock`. Rows are only added under `order_lock`,
and never removed, so its holder sees all of them.

Rows are locked FOR UPDATE, as shared locks would create a MultiXact each, which Postgres has to vacuum. They are rows,
not advisory locks, which any login of the database could hold forever. On SQLite the single writer is enough.
"""

from __future__ import annotations

from functools import cache

from sqlalchemy import TextClause, text

from inbox.db.dialect import Sql

HELD_SECONDS = 5
"""Maximum seconds of a transaction on given routes, from the grant of its lock. No batch takes a second.

The limit for idle transactions, 3 s, does not apply while a pipeline is open: a relay frozen between two statements
would lock its routes forever.
"""

LOCKED_ROW_SECONDS = 1
"""Maximum seconds to wait for a row under the lock of its route, as others wait for the route meanwhile."""

LOCK_OF_ALL = text("SELECT id FROM order_lock WHERE id = 1 FOR UPDATE")
"""Statement 1 of 2; `every_route` needs a new snapshot to see rows added meanwhile."""


@cache
def every_route(sql: Sql) -> TextClause:
    """Lock every route, then read the clock."""
    return _locking(sql, "SELECT route FROM route_lock ORDER BY route FOR UPDATE")


@cache
def given_routes(sql: Sql) -> TextClause:
    """Lock the given routes for at most `HELD_SECONDS`, then count those with a row, and read the clock."""
    given = f"route_lock l JOIN {sql.rows('given', route='text')} ON given.route = l.route"
    return _locking(sql, f"SELECT l.route FROM {given} ORDER BY l.route FOR UPDATE OF l", _LIMITED)


@cache
def add_routes(sql: Sql) -> TextClause:
    """Add missing rows of given routes; run it after `LOCK_OF_ALL`."""
    return text(f"""
INSERT INTO route_lock (route) SELECT route FROM {sql.rows("given", route="text")} ON CONFLICT DO NOTHING
""")


def _locking(sql: Sql, rows: str, more: str = "") -> TextClause:
    """Return a statement that locks rows, then reads the clock: an aggregate is computed after all rows are locked."""
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
"""Limit the wait for each row, and start the timer.

The 0 stops a timer already started by a setting of the server or role. Servers before Postgres 17 lack the setting, so
`Transaction` opens no pipeline there.
"""
