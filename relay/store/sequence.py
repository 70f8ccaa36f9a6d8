"""Sequence: what the receiver wrote gets its place in its lane."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache

from sqlalchemy import TextClause, text

from inbox.db.dialect import Sql
from relay.policy import RoutePolicy
from relay.store.coverage import drop_needless
from relay.store.database import ROW, Database, as_open_delivery
from relay.store.lanes import settle_lanes

BATCH = 500
"""Rows in one transaction; on SQLite a longer one would keep the receiver waiting."""


def sequence(database: Database, policies: Mapping[str, RoutePolicy], relay_node: str, batch: int = BATCH) -> int:
    """Make up to `batch` received deliveries ready, waiting, or superseded.

    They are found by their state, never by a cursor over `seq`: numbers commit out of order, and a cursor loses rows.

    Returns:
        How many there were.
    """
    with database.write() as transaction:
        now = transaction.lock_order()
        received = [as_open_delivery(row) for row in transaction.execute(_received(database.sql), batch=batch)]
        if received:
            left = drop_needless(transaction, received, policies, now)
            transaction.write_back(settle_lanes(transaction, left, policies, now), relay_node)
    return len(received)


@cache
def _received(sql: Sql) -> TextClause:  # noqa: ARG001  # the same on both, like its neighbours in form
    return text(f"SELECT {ROW} FROM open_delivery o WHERE o.state = 'received' ORDER BY o.seq LIMIT :batch")


def any_received(database: Database) -> bool:
    """Whether there is anything to sequence; takes no lock, so an idle relay disturbs nobody."""
    with database.read() as transaction:
        return bool(transaction.execute(_ANY_RECEIVED))


_ANY_RECEIVED = text("SELECT 1 FROM open_delivery o WHERE o.state = 'received' LIMIT 1")
