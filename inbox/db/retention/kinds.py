"""Kinds of rows that expire: one registry with the step of each.

Every kind is walked by a key in whose order rows arrive. Rows that must stay are passed over: they are looked at again
when the walk begins anew, once a day.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import datetime
from functools import cache, partial

from sqlalchemy import Connection, TextClause, text

from inbox.config.retention import RetentionKind
from inbox.db.dialect import Sql
from inbox.db.retention import walk
from inbox.db.retention.pruned import Expiry, Pruned
from inbox.db.retention.walk import Walk
from inbox.events.timestamps import time_text

Step = Callable[[Connection, Expiry, int, int], Pruned]
"""Takes a connection in a transaction, the expiry, the position and the most rows to look at."""

_UNJUDGED = "EXISTS (SELECT 1 FROM duplicate_request d WHERE d.seq = t.seq AND d.handled_at IS NULL)"
_OPEN = "EXISTS (SELECT 1 FROM open_delivery o WHERE o.seq = t.seq{of_route})"

WALKS: Mapping[RetentionKind, Walk] = {
    "events": Walk(
        "inbox",
        "seq",
        "t.received_at",
        # The newest event stays: `relay verify` takes a number above it for one that never was.
        goes=f"NOT {_OPEN.format(of_route='')} AND NOT {_UNJUDGED} AND t.seq < (SELECT max(n.seq) FROM inbox n)",
        companions=(("delivery_log", "seq"), ("duplicate_request", "seq")),
    ),
    "attempts": Walk(
        "delivery_log",
        "id",
        "t.at",
        # A younger fact of the delivery counts the attempts before it: `relay verify` would miss them.
        goes=f"""NOT {_OPEN.format(of_route=" AND o.route = t.route")} AND NOT EXISTS (
            SELECT 1 FROM delivery_log l
            WHERE l.seq = t.seq AND l.route = t.route AND l.id > t.id AND l.at >= {{before}})""",
        among="t.kind IN ('attempt_failed', 'abandoned')",
    ),
    "rejected": Walk("rejected_request", "id", "t.received_at", capped=("t.body IS NULL", "t.body IS NOT NULL")),
    "duplicates": Walk(
        "duplicate_request", "id", "coalesce(t.last_received_at, t.received_at)", goes="t.handled_at IS NOT NULL"
    ),
    "alerts": Walk(
        "alert",
        "id",
        "t.at",
        goes="""t.told_at IS NOT NULL AND EXISTS (
            SELECT 1 FROM alert n WHERE n.kind = t.kind AND n.subject = t.subject AND n.id > t.id)""",
    ),
    "commands": Walk(
        "relay_command", "id", "coalesce(t.finished_at, t.asked_at)", goes="t.state NOT IN ('asked', 'running')"
    ),
}


def _walked(each: Walk, connection: Connection, expiry: Expiry, position: int, most: int) -> Pruned:
    return walk.step(connection, each, expiry, position, most)


def _relay_nodes(connection: Connection, expiry: Expiry, position: int, most: int) -> Pruned:  # noqa: ARG001  # as every step
    """Delete runs of relays that have ended, those that started first. A relay that still runs is passed over."""
    if expiry.before is None:
        return Pruned()
    parameters = {"before": time_text(expiry.before), "most": most}
    gone = connection.execute(_old_nodes(Sql(connection.dialect.name)), parameters).rowcount
    return Pruned(gone, gone * _NODE_BYTES, is_done=gone < most)


_NODE_BYTES = 200
"""Size of a row of `relay_node`, about."""


@cache
def _old_nodes(sql: Sql) -> TextClause:
    before = sql.time(":before")
    return text(f"""
DELETE FROM relay_node WHERE id IN (
    SELECT n.id FROM relay_node n WHERE n.started_at < {before} AND n.heartbeat_at < {before}
    ORDER BY n.started_at LIMIT :most {sql.skip_locked})
""")


STEPS: Mapping[RetentionKind, Step] = {
    **{kind: partial(_walked, each) for kind, each in WALKS.items()},
    "relay_nodes": _relay_nodes,
}
"""The step of each kind, in the order of a round."""


def oldest_expired(connection: Connection, kind: RetentionKind, expiry: Expiry, position: int) -> datetime | None:
    """Return the time of the oldest expired row after the position, of a kind that is walked."""
    each = WALKS.get(kind)
    return None if each is None else walk.oldest_expired(connection, each, expiry, position)
