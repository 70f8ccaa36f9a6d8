"""Forgets what was applied last in lanes where a later attempt may have changed the other system without a success."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache

from sqlalchemy import TextClause, text

from inbox.db.dialect import Sql
from relay.delivery.outcome import Delivery, Failed, Outcome
from relay.store.lanes import Lane, lanes_param
from relay.store.transaction import Transaction

_WRITES = frozenset({"create", "update", "delete"})


def lanes_in_doubt(attempts: Iterable[tuple[Delivery, Outcome]]) -> set[Lane]:
    """Return the lanes of failed attempts with a write that may have had an effect.

    An entity that then returns to its earlier state looks unchanged, by its hash or its ETag, and its counterpart is not.
    """
    return {
        (delivery.route, delivery.lane)
        for delivery, outcome in attempts
        if isinstance(outcome, Failed)
        and (delivery.applied_hash is not None or delivery.applied_etag is not None)
        and any(call.step in _WRITES and call.sent != "not_sent" for call in outcome.calls)
    }


def forget_applied(transaction: Transaction, lanes: Iterable[Lane]) -> None:
    """Forget hash and ETag of what was applied last in these lanes, so that the next attempt compares with nothing."""
    known = sorted(set(lanes))
    if known:
        transaction.execute(_forget(transaction.sql), lanes=lanes_param(known))


@cache
def _forget(sql: Sql) -> TextClause:
    return text(f"""
UPDATE lane
SET applied_hash = NULL, etag = NULL, etag_config = NULL
WHERE (route, lane) IN (SELECT lanes.route, lanes.lane FROM {sql.rows("lanes", route="text", lane="text")})
  AND (applied_hash IS NOT NULL OR etag IS NOT NULL)
""")
