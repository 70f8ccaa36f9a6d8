"""Sequence: gives deliveries that the receiver wrote their place in their lane."""

from __future__ import annotations

from collections.abc import Sequence

from relay.delivery.lifecycle import State
from relay.store.coverage import supersede_covered
from relay.store.database import Places
from relay.store.deliveries import Key, as_open_delivery, key_text, rows_of_keys, write_back
from relay.store.lanes import quarantine, settle_lanes
from relay.store.statement import Statement, sql
from relay.store.work import Work, in_parts

STEP = "sequence"
BATCH = 500
"""Rows in one transaction; on SQLite a longer one would keep the receiver waiting."""
OWN_TRANSACTION = 50
"""Deliveries of a route that are worth a transaction of their own, under the lock of that route alone."""
LATE_SEQS = 1000
"""Numbers that are looked through again each time: what commits even later is found by the next scan from the beginning."""


def sequence(work: Work, places: Places | None = None, batch: int = BATCH) -> int:
    """Make up to `batch` received deliveries ready, waiting, or superseded.

    They are found by their state, never by a cursor over `seq`: numbers commit out of order, and a cursor loses rows. Where
    a scan begins only saves reading what has ended; one a second begins at the beginning.

    Routes that rest are left as they are. Those of another configuration are left to a relay that has them, as only their
    `ordering` says what their lanes drop.

    Returns:
        How many of them it has sequenced itself. `Places.is_behind` says whether there may be more.

    Raises:
        Exception: the database is unreachable or busy. Or a delivery could neither be sequenced nor set aside: then all
            others are done.
    """
    places = places or Places()
    known = sorted(work.policies.keys() - work.rests.left())
    with places.received.look() as begin, work.database.read() as transaction:
        found = transaction.execute(_RECEIVED, batch=batch, begin_seq=begin or 0, known_routes=known)
    keys = [(row.seq, row.route) for row in found]
    if keys and work.database.sql.keeps_ended_entries:
        places.received.at = max(keys)[0] - LATE_SEQS
    places.is_behind = len(keys) >= batch

    def alone(key: Key, error: Exception) -> int:
        return int(quarantine(work, key, cause="unprocessable", error=error) is not None)

    parts = in_parts(
        work,
        STEP,
        keys,
        part=lambda some: _sequence(work, some),
        alone=alone,
        name=key_text,
        routes_of=lambda key: key[1:],
        enough=OWN_TRANSACTION,
    )
    return sum(parts)


def _sequence(work: Work, keys: Sequence[Key]) -> int:
    """Sequence those of them that are received still: another relay may have been faster."""
    policies = work.policies
    with work.write() as transaction:
        now, (rows,) = transaction.lock_order_and_read({route for _, route in keys}, rows_of_keys(keys, "none"))
        received = [as_open_delivery(row) for row in rows if row.state == State.RECEIVED]
        if received:
            received.sort(key=lambda row: row.seq)
            changed = supersede_covered(transaction, received, policies, now)
            settled = settle_lanes(transaction, changed, policies, now)
            transaction.only_write()
            write_back(transaction, settled)
    return len(received)


_RECEIVED = Statement(f"""
SELECT seq, route FROM (
    SELECT o.seq, o.route, o.occurred_at FROM open_delivery o
    WHERE o.state = 'received' AND o.seq >= :begin_seq AND o.route IN (SELECT route FROM {sql.rows("known_routes", route="text")})
    ORDER BY o.seq, o.route
    LIMIT :batch) found
ORDER BY occurred_at, seq, route
""")
