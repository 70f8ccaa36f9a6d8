"""Finds deliveries in any state, including ended ones, and reopens them. Call it under the order lock."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from inbox.config.model import Config
from inbox.config.routing import name_lane
from inbox.events.timestamps import as_time
from relay.delivery.lifecycle import OpenDelivery, State
from relay.delivery.policy import Policies
from relay.store.deliveries import Key, read_deliveries, write_back
from relay.store.events import read_payloads
from relay.store.sequence import settle_lanes
from relay.store.statement import Statement, sql
from relay.store.transaction import Transaction


def find_open_or_ended(
    transaction: Transaction, config: Config, keys: Sequence[Key], *, locked: bool = True
) -> list[OpenDelivery]:
    """Find these deliveries by their row, which is locked, or by their last fact and the configuration.

    Ended deliveries on routes that are no longer configured are skipped: they have no destination.
    """
    if not keys:
        return []
    present = read_deliveries(transaction, keys, lock="wait" if locked else "none")
    there = {(row.seq, row.route) for row in present}
    absent = [key for key in keys if key not in there and key[1] in config.routes]
    return present + [
        OpenDelivery(
            seq=row.seq,
            route=row.route,
            lane=name_lane(
                config.routes[row.route], entity_type=row.entity_type, entity_id=row.entity_id, key=row.dedup_key
            ),
            occurred_at=as_time(row.occurred_at),
            state=State(row.state or State.ENDED),  # without a fact, its event has never taken this route
            run=row.run or 0,
        )
        for row in transaction.execute(_LAST_FACTS, wanted=absent)
    ]


def keep_payloads(transaction: Transaction, seqs: Iterable[int], *, locked: bool = True) -> set[int]:
    """Return the events that still have their payload. With `locked`, payloads are not deleted until the transaction ends.

    Raises:
        RuntimeError: with `locked`, if the order lock was taken without `keeps_payloads`.
    """
    if locked and not transaction.keeps_payloads:
        raise RuntimeError("take the order lock with keeps_payloads before reopening deliveries")
    return {row.seq for row in read_payloads(transaction, seqs, "seq")}


def reinsert_and_settle(
    transaction: Transaction,
    before: Iterable[OpenDelivery],
    reopened: Sequence[OpenDelivery],
    policies: Policies,
) -> None:
    """Give reopened deliveries their places in their lanes, after inserting rows for those that had ended `before`."""
    ended = {(row.seq, row.route) for row in before if row.state is State.ENDED}
    if absent := [row for row in reopened if (row.seq, row.route) in ended]:
        insert(transaction, absent)
    write_back(transaction, settle_lanes(transaction, reopened, policies, transaction.now()))


def insert(transaction: Transaction, new: Iterable[OpenDelivery]) -> None:
    """Insert rows for these deliveries as received; settling their lanes sets their state."""
    transaction.execute(_INSERT, new=new)


_LAST_FACTS = Statement(f"""
SELECT i.seq, wanted.route, i.entity_type, i.entity_id, i.dedup_key, i.occurred_at, l.state, l.run
FROM {sql.keys("wanted")} JOIN inbox i ON i.seq = wanted.seq
LEFT JOIN delivery_log l ON l.id = (
    SELECT max(f.id) FROM delivery_log f WHERE f.seq = wanted.seq AND f.route = wanted.route)
ORDER BY i.seq, wanted.route
""")

_INSERT = Statement(f"""
INSERT INTO open_delivery (seq, route, lane, occurred_at, state, run)
SELECT seq, route, lane, occurred_at, 'received', run
FROM {sql.rows("new", seq="bigint", route="text", lane="text", occurred_at="time", run="int")}
""")
