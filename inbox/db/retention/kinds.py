"""Kinds of rows that expire: one registry with the step of each.

Every kind is walked by a key in whose order rows arrive. Rows that must stay are passed over: they are looked at again
when the walk begins anew, once a day.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import datetime
from functools import cache, partial

import msgspec
from sqlalchemy import Connection, TextClause, text

from inbox.config.retention import RetentionKind
from inbox.db.dialect import Sql
from inbox.db.retention import payloads, walk
from inbox.db.retention.pruned import Expiry, Pruned
from inbox.db.retention.walk import Walk
from inbox.events.timestamps import time_text

Step = Callable[[Connection, Expiry, int, int], Pruned]
"""Takes a connection in a transaction, the expiry, the position and the most rows to look at."""

_UNJUDGED = "EXISTS (SELECT 1 FROM duplicate_request d WHERE d.seq = t.seq AND d.handled_at IS NULL)"
_OPEN = "EXISTS (SELECT 1 FROM open_delivery o WHERE o.seq = t.seq{of_route})"

WALKS: Mapping[RetentionKind, Walk] = {
    "payloads": Walk(
        "inbox_payload",
        "seq",
        "(SELECT i.received_at FROM inbox i WHERE i.seq = t.seq)",
        goes=f"NOT {_OPEN.format(of_route='')}",
        needs_closed=True,
    ),
    "events": Walk(
        "inbox",
        "seq",
        "t.received_at",
        # The newest event stays: `relay verify` takes a number above it for one that never was.
        # One that was replayed lately keeps its facts, by the database's clock; so does one from a receiver whose clock was wrong.
        goes=f"""NOT {_OPEN.format(of_route="")} AND NOT {_UNJUDGED} AND t.seq < (SELECT max(n.seq) FROM inbox n)
            AND coalesce((SELECT max(l.at) FROM delivery_log l WHERE l.seq = t.seq) < {{before}}, true)""",
        lag_seconds=60,  # most are delivered within it; an event that a walk has left waits for the lap of the next day
        needs_closed=True,
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
    "reveals": Walk("payload_reveal", "id", "t.at"),
}


def _walked(each: Walk, connection: Connection, expiry: Expiry, position: int, most: int) -> Pruned:
    return walk.step(connection, each, expiry, position, most)


class Aged(msgspec.Struct, frozen=True):
    """Rows that go in the order of an indexed time, or are few enough to be scanned."""

    table: str
    key: str
    """Columns of the primary key."""
    time: str
    goes: str
    """Condition that the index's row has expired; `{before}` stands for the time."""
    row_bytes: int
    """Size of a row, about."""


def _aged(each: Aged, connection: Connection, expiry: Expiry, position: int, most: int) -> Pruned:  # noqa: ARG001  # as every step
    if expiry.before is None:
        return Pruned()
    parameters = {"before": time_text(expiry.before), "most": most}
    gone = connection.execute(_remove_oldest(Sql(connection.dialect.name), each), parameters).rowcount
    return Pruned(gone, gone * each.row_bytes, is_done=gone < most)


def expired(sql: Sql, each: Aged) -> str:
    """Return the condition on a row of `t` that has expired; it binds `:before`."""
    return each.goes.replace("{before}", sql.time(":before"))


@cache
def _remove_oldest(sql: Sql, each: Aged) -> TextClause:
    return text(f"""
DELETE FROM {each.table} WHERE ({each.key}) IN (
    SELECT {each.key} FROM {each.table} t WHERE {expired(sql, each)} ORDER BY t.{each.time} LIMIT :most {sql.skip_locked})
""")


AGED: Mapping[RetentionKind, Aged] = {
    # A relay that still runs is passed over; few have run for so long.
    "relay_nodes": Aged(
        "relay_node", "id", "started_at", "t.started_at < {before} AND t.heartbeat_at < {before}", row_bytes=200
    ),
    "throughput": Aged(
        "throughput_minute", "kind, name, outcome, minute", "minute", "t.minute < {before}", row_bytes=80
    ),
}


STEPS: Mapping[RetentionKind, Step] = {
    **{kind: partial(_walked, each) for kind, each in WALKS.items()},
    **{kind: partial(_aged, each) for kind, each in AGED.items()},
    "payloads": partial(payloads.step, WALKS["payloads"]),
}
"""The step of each kind, in the order of a round."""


def oldest_expired(connection: Connection, kind: RetentionKind, expiry: Expiry, position: int) -> datetime | None:
    """Return the time of the oldest expired row after the position, of a kind that is walked."""
    each = WALKS.get(kind)
    return None if each is None else walk.oldest_expired(connection, each, expiry, position)
