"""Heads whose event can't be loaded: a claim that meets one sets it aside, and claims the others."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cache

from sqlalchemy import TextClause, text

from inbox.db.dialect import Sql, failure_of
from relay.outcome import Delivery
from relay.policy import RoutePolicy
from relay.store.bulkhead import in_parts
from relay.store.database import Database, Key, key_text, keys_param
from relay.store.events import with_events
from relay.store.quarantine import quarantine


def claiming_what_can_be_loaded(
    database: Database,
    claimed: Callable[[], list[Delivery]],
    candidates: Callable[[], Sequence[Key]],
    policies: Mapping[str, RoutePolicy],
    relay_node: str,
) -> list[Delivery]:
    """Claim; where that fails for something in it, set aside the candidates that can't be loaded, and claim again."""
    try:
        return claimed()
    except Exception as error:
        if failure_of(error) != "fault":
            raise

    def load(keys: Sequence[Key]) -> None:
        with database.read() as transaction:
            rows = transaction.execute(_candidates(database.sql), keys=keys_param(keys))
            with_events(transaction, rows)

    def set_aside(key: Key, error: Exception) -> None:
        quarantine(database, policies, relay_node, key, cause="unprocessable", error=error)

    for _ in in_parts(database, "claim", candidates(), part=load, alone=set_aside, name=key_text):
        pass
    return claimed()


@cache
def _candidates(sql: Sql) -> TextClause:
    return text(f"""
SELECT o.seq, o.route, o.lane, o.attempt, o.run, o.crashes, 0 AS lease_token, o.due_at
FROM {sql.rows("keys", seq="bigint", route="text")} JOIN open_delivery o ON o.seq = keys.seq AND o.route = keys.route
WHERE o.state = 'ready'
""")
