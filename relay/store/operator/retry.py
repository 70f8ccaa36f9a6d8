"""Makes waiting attempts due at once for an operator. Call under the order lock."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from functools import cache

from sqlalchemy import TextClause, text

from inbox.db.dialect import Sql
from inbox.events.timestamps import time_text
from relay.delivery import facts
from relay.delivery.lifecycle import append
from relay.store.transaction import ROW, Key, Transaction, as_open_delivery, keys_param


def retry(transaction: Transaction, keys: Sequence[Key], now: datetime, *, who: str, why: str) -> int:
    """Make the next attempts of these due now. One that is due already, or that a relay has claimed meanwhile, stays.

    Each keeps its attempts and its place in its lane: it is the head, and remains it. So no lane has to be settled.

    Returns:
        How many became due.
    """
    rows = transaction.execute(_due_later(transaction.sql), wanted=keys_param(keys), at=time_text(now))
    changed = []
    for row in map(as_open_delivery, rows):
        was_due_at = row.due_at or now
        changed.append(append(row, facts.Rescheduled(due_at=now, was_due_at=was_due_at, who=who, why=why), now))
    transaction.write_back(changed, None)
    return len(changed)


@cache
def _due_later(sql: Sql) -> TextClause:
    found = "o.seq = wanted.seq AND o.route = wanted.route"
    return text(f"""
SELECT {ROW}
FROM {sql.rows("wanted", seq="bigint", route="text")} JOIN open_delivery o ON {found}
WHERE o.state = 'ready' AND o.due_at > {sql.time(":at")}
ORDER BY o.seq, o.route
{sql.for_update and "FOR UPDATE OF o"}
""")
