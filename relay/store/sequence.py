"""Sequence: gives deliveries that the receiver wrote their place in their lane."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

from sqlalchemy import TextClause, text

from inbox.db.dialect import Sql, rows_param
from relay.delivery.policy import Policies
from relay.store.bulkhead import in_parts_by_route
from relay.store.coverage import supersede_covered
from relay.store.database import Database, read_keys
from relay.store.lanes import quarantine, settle_lanes
from relay.store.transaction import ROW, Key, as_open_delivery, key_text, keys_param

STEP = "sequence"
BATCH = 500
"""Rows in one transaction; on SQLite a longer one would keep the receiver waiting."""
OWN_TRANSACTION = 50
"""Deliveries of a route that are worth a transaction of their own, under the lock of that route alone."""
LATE_SEQS = 1000
"""Numbers that are looked through again each time: what commits even later is found by the next scan from the beginning."""


def sequence(database: Database, policies: Policies, relay_node: str, batch: int = BATCH) -> int:
    """Make up to `batch` received deliveries ready, waiting, or superseded.

    They are found by their state, never by a cursor over `seq`: numbers commit out of order, and a cursor loses rows. Where
    a scan begins only saves reading what has ended; one a second begins at the beginning.

    Routes that rest are left as they are. Those of another configuration are left to a relay that has them, as only their
    `ordering` says what their lanes drop.

    Returns:
        How many of them it has sequenced itself. `Database.is_behind` says whether there may be more.

    Raises:
        Exception: the database is unreachable or busy. Or a delivery could neither be sequenced nor set aside: then all
            others are done.
    """
    with database.received.look() as begin:
        known = _known(database, policies)
        keys = read_keys(database, _received(database.sql), batch=batch, begin_seq=begin or 0, known_routes=known)
    if keys:
        _scan_from(database, max(keys)[0])
    database.is_behind = len(keys) >= batch

    def alone(key: Key, error: Exception) -> int:
        dead = quarantine(database, policies, relay_node, key, cause="unprocessable", error=error)
        return int(dead is not None)

    parts = in_parts_by_route(
        database,
        STEP,
        keys,
        part=lambda some: _sequence(database, policies, relay_node, some),
        alone=alone,
        name=key_text,
        route_of=lambda key: key[1],
        enough=OWN_TRANSACTION,
    )
    return sum(parts)


def _sequence(database: Database, policies: Policies, relay_node: str, keys: Sequence[Key]) -> int:
    """Sequence those of them that are received still: another relay may have been faster."""
    with database.write() as transaction:
        read = (_of_keys(database.sql), {"keys": keys_param(keys)})
        now, (rows,) = transaction.lock_order_and_read({route for _, route in keys}, read)
        if rows:
            changed = supersede_covered(transaction, [as_open_delivery(row) for row in rows], policies, now)
            settled = settle_lanes(transaction, changed, policies, now)
            transaction.only_write()
            transaction.write_back(settled, relay_node)
    return len(rows)


def any_received(database: Database, policies: Policies) -> bool:
    """True when there is anything to sequence; takes no lock, so an idle relay disturbs nobody."""
    with database.received.look() as begin, database.read() as transaction:
        known = _known(database, policies)
        found = transaction.execute(_any_received(database.sql), begin_seq=begin or 0, known_routes=known)
    if found:
        _scan_from(database, found[0].seq)
    return bool(found)


def _known(database: Database, policies: Policies) -> str:
    resting = database.resting()
    return rows_param({"route": route} for route in sorted(policies) if route not in resting)


def _scan_from(database: Database, seq: int) -> None:
    """Move the start of later scans, but so far below this one that commits a little late are found, too."""
    if database.sql.keeps_ended_entries:
        database.received.at = seq - LATE_SEQS


@cache
def _of_keys(sql: Sql) -> TextClause:
    """`state || ''` stops Postgres from reading the index of received ones from end to end, as in `record`."""
    return text(f"""
SELECT {ROW}
FROM {sql.deliveries("keys")}
WHERE o.state || '' = 'received'
ORDER BY o.seq
""")


@cache
def _received(sql: Sql) -> TextClause:
    return text(f"""
SELECT seq, route FROM (
    SELECT o.seq, o.route, o.occurred_at FROM open_delivery o
    WHERE o.state = 'received' AND o.seq >= :begin_seq AND {_is_known(sql)}
    ORDER BY o.seq, o.route
    LIMIT :batch) found
ORDER BY occurred_at, seq, route
""")


def _is_known(sql: Sql) -> str:
    return f"o.route IN (SELECT route FROM {sql.rows('known_routes', route='text')})"


@cache
def _any_received(sql: Sql) -> TextClause:
    return text(f"""
SELECT o.seq FROM open_delivery o
WHERE o.state = 'received' AND o.seq >= :begin_seq AND {_is_known(sql)} ORDER BY o.seq LIMIT 1
""")
