"""Quarantine: a delivery that a step can't process becomes dead, with the error's text, so that it stops nothing else."""

from __future__ import annotations

from datetime import datetime
from functools import cache
from typing import Literal

from sqlalchemy import TextClause, text

from inbox.db.dialect import Sql, error_text
from relay.delivery import facts
from relay.delivery.alerts import deaths
from relay.delivery.lifecycle import OpenDelivery, State, append
from relay.delivery.policy import UNKNOWN_ROUTE, Policies
from relay.store.alerts import note
from relay.store.applied import forget_applied
from relay.store.database import Database
from relay.store.lanes import settle_lanes
from relay.store.transaction import Key, Transaction

Cause = Literal["unrecordable", "unprocessable", "payload_gone"]
"""Its attempt's outcome can't be recorded; it can't be ordered, rescued or loaded; its event has no payload any more."""


def quarantine(
    database: Database,
    policies: Policies,
    relay_node: str,
    key: Key,
    *,
    cause: Cause,
    error: Exception,
    token: int | None = None,
) -> facts.Dead | None:
    """Make a delivery dead that is in flight under the lease of `token`, or, without one, received or ready.

    Its lane goes on, even where the alert is refused (`note`).

    Args:
        database: of the delivery.
        policies: by route.
        relay_node: who does it.
        key: the delivery.
        cause: why, in one word.
        error: why, in its own words.
        token: of the lease that it must still be under; None: it must be under none.

    Returns:
        The fact; None when the delivery has moved on meanwhile.

    Raises:
        Exception: it could not even be written.
    """
    # One that is under no lease may be no head, so it can't hold its lane; nor is it attempted.
    is_leased = token is not None
    blocks = is_leased and policies.get(key[1], UNKNOWN_ROUTE).blocks_on_death
    fact = facts.Dead(cause=cause, error=error_text(error), blocks_lane=blocks, counted=is_leased)

    with database.write() as transaction:
        now = transaction.lock_order([key[1]])
        row = _find(transaction, key, token, now)
        if row is None:
            return None
        dead = append(row, fact, now)
        note(transaction, deaths([dead]), now)
        if is_leased:  # its attempt may have changed the other system
            forget_applied(transaction, [(row.route, row.lane)])
        transaction.write_back(settle_lanes(transaction, [dead], policies, now), relay_node)
    return fact


def _find(transaction: Transaction, key: Key, token: int | None, now: datetime) -> OpenDelivery | None:
    """The delivery, locked, without its times: they may be what can't be read."""
    found = transaction.execute(_row(transaction.sql), seq=key[0], route=key[1], token=token)
    if not found:
        return None
    row = found[0]
    return OpenDelivery(
        seq=row.seq,
        route=row.route,
        lane=row.lane,
        occurred_at=now,
        state=State(row.state),
        attempt=row.attempt,
        run=row.run,
        crashes=row.crashes,
    )


@cache
def _row(sql: Sql) -> TextClause:
    token = "CAST(:token AS bigint)" if sql.is_postgres else ":token"
    return text(f"""
SELECT o.seq, o.route, o.lane, o.state, o.attempt, o.run, o.crashes FROM open_delivery o
WHERE o.seq = :seq AND o.route = :route
  AND (o.state = 'in_flight' AND o.lease_token = {token} OR o.state IN ('received', 'ready') AND {token} IS NULL)
{sql.for_update}
""")
