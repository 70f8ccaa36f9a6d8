"""Sets aside heads whose event can't be loaded, so that a claim goes on with the others."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache

from sqlalchemy import TextClause, text

from inbox.db.dialect import Sql, blames_items
from inbox.errors import PayloadGone
from relay.delivery.outcome import Delivery
from relay.delivery.policy import Policies
from relay.store.bulkhead import in_parts
from relay.store.database import Database, Key, key_text, keys_param
from relay.store.events import with_events
from relay.store.quarantine import Cause, quarantine

MOST_ROUNDS = 20
"""The most rounds; each sets aside as many as a claim asks for."""


def claiming_what_can_be_loaded(
    database: Database,
    claimed: Callable[[], list[Delivery]],
    candidates: Callable[[], Sequence[Key]],
    policies: Policies,
    relay_node: str,
) -> list[Delivery]:
    """Claim; where an item fails, set aside the candidates that can't be loaded, and claim again.

    Where the next ones can't be loaded either, the same again, a few times; then nothing is claimed this time.
    """
    for _ in range(MOST_ROUNDS):
        try:
            return claimed()
        except Exception as error:
            if not blames_items(error) or not _set_aside(database, candidates(), policies, relay_node):
                raise
    return []


def _set_aside(database: Database, candidates: Sequence[Key], policies: Policies, relay_node: str) -> int:
    """Set aside candidates that can't be loaded. Returns their number."""

    def load(keys: Sequence[Key]) -> int:
        with database.read() as transaction:
            rows = transaction.execute(_candidates(database.sql), keys=keys_param(keys))
            with_events(transaction, rows)
        return 0

    def alone(key: Key, error: Exception) -> int:
        cause: Cause = "payload_gone" if isinstance(error, PayloadGone) else "unprocessable"
        dead = quarantine(database, policies, relay_node, key, cause=cause, error=error)
        return int(dead is not None)

    return sum(in_parts(database, "claim", candidates, part=load, alone=alone, name=key_text))


@cache
def _candidates(sql: Sql) -> TextClause:
    return text(f"""
SELECT o.seq, o.route, o.lane, o.attempt, o.run, o.crashes, 0 AS lease_token, o.due_at
FROM {sql.rows("keys", seq="bigint", route="text")} JOIN open_delivery o ON o.seq = keys.seq AND o.route = keys.route
WHERE o.state = 'ready'
""")
