"""Sets aside heads whose event can't be loaded, so that a claim goes on with the others."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from functools import cache

from sqlalchemy import TextClause, text

from inbox.db.dialect import Sql, blames_items
from inbox.errors import PayloadGone
from relay.delivery.outcome import Delivery
from relay.delivery.policy import Policies
from relay.store.bulkhead import in_parts_by_route
from relay.store.database import Database
from relay.store.events import with_events
from relay.store.quarantine import Cause, quarantine
from relay.store.transaction import Key, key_text, keys_param

MOST_ROUNDS = 20
"""The most rounds; each sets aside as many as a claim asks for."""


def claiming_what_can_be_loaded(
    database: Database,
    claimed: Callable[[Collection[str]], list[Delivery]],
    candidates: Callable[[Collection[str]], Sequence[Key]],
    policies: Policies,
    relay_node: str,
    *,
    step: str,
) -> list[Delivery]:
    """Claim; where an item fails, set aside the candidates that can't be loaded, and claim again.

    Where the next ones can't be loaded either, the same again, a few times; then nothing is claimed this time. `claimed` and
    `candidates` are given the routes that go without: one can't be loaded, nor set aside, as somebody keeps it locked.
    """
    without = database.back_offs.of(step)
    if database.back_offs.of(step, even_late=True):  # though this claim may ask for nothing of these
        database.still_leaves(step)
    for _ in range(MOST_ROUNDS):
        try:
            return claimed(without)
        except Exception as error:
            if not blames_items(error):
                raise
            left: list[Key] = []
            if not _set_aside(database, candidates(without), policies, relay_node, step=step, left=left) and not left:
                raise
            locked = {route for _, route in left}
            database.back_offs.began(step, locked)  # also where only one delivery waits: each claim would meet it again
            without |= locked
    return []


def _set_aside(
    database: Database, candidates: Sequence[Key], policies: Policies, relay_node: str, *, step: str, left: list[Key]
) -> int:
    """Set aside candidates that can't be loaded. Returns their number; those that are locked are added to `left`."""

    def load(keys: Sequence[Key]) -> int:
        with database.read() as transaction:
            rows = transaction.execute(_candidates(database.sql), keys=keys_param(keys))
            with_events(transaction, rows)
        return 0

    def alone(key: Key, error: Exception) -> int:
        cause: Cause = "payload_gone" if isinstance(error, PayloadGone) else "unprocessable"
        dead = quarantine(database, policies, relay_node, key, cause=cause, error=error)
        return int(dead is not None)

    return sum(
        in_parts_by_route(
            database,
            step,
            candidates,
            route_of=lambda key: key[1],
            part=load,
            alone=alone,
            name=key_text,
            enough=len(candidates),
            left=left,
        )
    )


@cache
def _candidates(sql: Sql) -> TextClause:
    return text(f"""
SELECT o.seq, o.route, o.lane, o.attempt, o.run, o.crashes, 0 AS lease_token, o.due_at
FROM {sql.rows("keys", seq="bigint", route="text")} JOIN open_delivery o ON o.seq = keys.seq AND o.route = keys.route
WHERE o.state = 'ready'
""")
