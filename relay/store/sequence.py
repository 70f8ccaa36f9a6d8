"""Sequence: gives deliveries that the receiver wrote their place in their lane."""

from __future__ import annotations

from functools import cache

from sqlalchemy import TextClause, text

from inbox.db.dialect import Sql
from relay.delivery.policy import Policies
from relay.store.bulkhead import isolated
from relay.store.coverage import supersede_covered
from relay.store.database import (
    ROW,
    SEQS_OUT_OF_ORDER,
    Database,
    Key,
    as_open_delivery,
    key_text,
    keys_param,
    read_keys,
)
from relay.store.lanes import settle_lanes
from relay.store.quarantine import quarantine

BATCH = 500
"""Rows in one transaction; on SQLite a longer one would keep the receiver waiting."""


def sequence(database: Database, policies: Policies, relay_node: str, batch: int = BATCH) -> int:
    """Make up to `batch` received deliveries ready, waiting, or superseded.

    They are found by their state, never by a cursor over `seq`: numbers commit out of order, and a cursor loses rows. Where
    a look begins only saves reading what has ended; each second one begins at the beginning.

    Returns:
        How many there were.
    """
    return sum(
        isolated(
            database,
            "sequence",
            batch=lambda: _sequence_next(database, policies, relay_node, batch),
            items=lambda: read_keys(database, _RECEIVED_KEYS, batch=batch),
            part=lambda keys: _sequence(
                database, policies, relay_node, _received_of(database.sql), keys=keys_param(keys)
            ),
            alone=lambda key, error: _set_aside(database, policies, relay_node, key, error),
            name=key_text,
        )
    )


def _sequence_next(database: Database, policies: Policies, relay_node: str, batch: int) -> int:
    with database.arrivals.look() as begin:
        return _sequence(database, policies, relay_node, _RECEIVED, batch=batch, begin_seq=begin or 0)


def _sequence(
    database: Database,
    policies: Policies,
    relay_node: str,
    statement: TextClause,
    **which: object,
) -> int:
    with database.write() as transaction:
        now = transaction.lock_order()
        received = [as_open_delivery(row) for row in transaction.execute(statement, **which)]
        if received:
            left = supersede_covered(transaction, received, policies, now)
            transaction.write_back(settle_lanes(transaction, left, policies, now), relay_node)
    if received:
        _look_from(database, received[-1].seq)
    return len(received)


def _set_aside(database: Database, policies: Policies, relay_node: str, key: Key, error: Exception) -> int:
    return int(quarantine(database, policies, relay_node, key, cause="unprocessable", error=error) is not None)


def _look_from(database: Database, seq: int) -> None:
    """Move the start of later looks, but so far below this one that late commits are found, too."""
    if database.sql.keeps_ended_entries:
        database.arrivals.at = seq - SEQS_OUT_OF_ORDER


_RECEIVED = text(f"""
SELECT {ROW} FROM open_delivery o WHERE o.state = 'received' AND o.seq >= :begin_seq ORDER BY o.seq LIMIT :batch
""")


@cache
def _received_of(sql: Sql) -> TextClause:
    return text(f"""
SELECT {ROW}
FROM {sql.rows("keys", seq="bigint", route="text")} JOIN open_delivery o ON o.seq = keys.seq AND o.route = keys.route
WHERE o.state = 'received'
ORDER BY o.seq
""")


_RECEIVED_KEYS = text(
    "SELECT o.seq, o.route FROM open_delivery o WHERE o.state = 'received' ORDER BY o.seq, o.route LIMIT :batch"
)


def any_received(database: Database) -> bool:
    """True when there is anything to sequence; takes no lock, so an idle relay disturbs nobody."""
    with database.arrivals.look() as begin, database.read() as transaction:
        found = transaction.execute(_ANY_RECEIVED, begin_seq=begin or 0)
    if found:
        _look_from(database, found[0].seq)
    return bool(found)


_ANY_RECEIVED = text("""
SELECT o.seq FROM open_delivery o WHERE o.state = 'received' AND o.seq >= :begin_seq ORDER BY o.seq LIMIT 1
""")
