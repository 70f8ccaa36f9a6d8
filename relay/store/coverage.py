"""Ends deliveries that past successes cover, and webhooks that duplicate a sweep's event. Call under the order lock."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Any

from inbox.config.routing import OWN_LANE
from inbox.events.event import swept_key
from inbox.events.timestamps import as_time, to_nanoseconds
from relay.delivery import facts
from relay.delivery.lifecycle import OpenDelivery, append
from relay.delivery.ordering import ChangeId, LastDelivered, covers, duplicates_swept_event
from relay.delivery.policy import UNKNOWN_ROUTE, Policies
from relay.store.database import SEQS_OUT_OF_ORDER
from relay.store.deliveries import ROW, Key, Lane, as_open_delivery
from relay.store.statement import Statement, sql
from relay.store.transaction import Transaction


def supersede_covered(
    transaction: Transaction, received: Sequence[OpenDelivery], policies: Policies, now: datetime
) -> list[OpenDelivery]:
    """End deliveries that past successes of their lanes cover, by the route's ordering.

    In `latest` these are changes that the last success certainly includes. In `strict` they are webhooks of changes for
    which a sweep's event was delivered. Deliveries that were replayed or re-armed are left alone.
    """
    new = [row for row in received if row.run == 0 and row.route in policies and not row.lane.startswith(OWN_LANE)]
    lasts = last_delivered(transaction, {(row.route, row.lane) for row in new})
    superseded: dict[Key, facts.Superseded] = {}
    late = []
    for row in new:
        last, policy = lasts.get((row.route, row.lane)), policies[row.route]
        if last is None:
            continue
        if policy.ordering == "strict":
            # When the last delivered event is older, as nearly always, no sweep's event of this instant was delivered.
            late += [row] if row.occurred_at <= last.occurred_at else []
        elif covers(last, row.key, policy.skew):
            superseded[row.seq, row.route] = facts.Superseded(by=last.seq, because="covered")
    superseded |= _duplicates_of_swept(transaction, late)
    return [
        append(row, superseded[row.seq, row.route], now) if (row.seq, row.route) in superseded else row
        for row in received
    ]


def _duplicates_of_swept(transaction: Transaction, late: Sequence[OpenDelivery]) -> dict[Key, facts.Superseded]:
    """Find webhooks among `late` whose change a sweep's event has delivered on their route.

    Each sweep's event supersedes one webhook, the first that comes. It is found by its key, which follows from entity and
    instant: one entry of an index, however many events an entity has.
    """
    if not late:
        return {}
    seqs = sorted({row.seq for row in late})
    events = {event.seq: event for event in transaction.execute(_OF_LATE, late=seqs)}
    asked = [
        (row.seq, row.route, event.source, _swept_key(event))
        for row in late
        if (event := events.get(row.seq)) and event.entity_type is not None and event.entity_id is not None
    ]
    found = transaction.execute(_SWEPT, asked=asked) if asked else []
    swept = [row for row in found if duplicates_swept_event(_change_id(events[row.late_seq]), _change_id(row))]
    used = _used_already(transaction, swept) if swept else set()
    superseded = {}
    for row in sorted(swept, key=lambda row: row.late_seq):
        if (row.seq, row.route) not in used:
            used.add((row.seq, row.route))
            superseded[row.late_seq, row.route] = facts.Superseded(by=row.seq, because="swept")
    return superseded


def _used_already(transaction: Transaction, swept: Sequence[Any]) -> set[Key]:
    """The keys of these sweeps' events that have superseded a webhook before."""
    of_entities = defaultdict(list)
    for row in swept:
        of_entities[row.source, row.entity_type, row.entity_id].append(row)
    asked = [
        (
            *entity,
            min(row.seq for row in rows) - SEQS_OUT_OF_ORDER,
            min(as_time(row.occurred_at) for row in rows),
            max(as_time(row.occurred_at) for row in rows),
        )
        for entity, rows in of_entities.items()
    ]
    found = transaction.execute(_SUPERSEDED_BY_SWEEPS, asked=asked)
    return {(row.by_seq, row.route) for row in found}


def _swept_key(event: Any) -> str:  # noqa: ANN401  # a result row
    return swept_key(event.entity_type, event.entity_id, to_nanoseconds(as_time(event.occurred_at)))


def _change_id(event: Any) -> ChangeId:  # noqa: ANN401  # a result row
    entity = (event.source, event.entity_type, event.entity_id)
    return ChangeId(entity, event.event_type, as_time(event.occurred_at), event.dedup_key == _swept_key(event))


MOST_HEALED = 500
"""Dead deliveries that one transaction ends, in all its lanes together: some 40 ms under the order lock."""


def heal(
    transaction: Transaction, delivered: Iterable[OpenDelivery], policies: Policies, now: datetime
) -> list[OpenDelivery]:
    """On routes in `latest`, end dead deliveries that a later event of their lane, delivered now, covers.

    `MOST_HEALED` at most: the next success of the lane ends the rest.
    """
    newest = {
        (row.route, row.lane): row.key
        for row in delivered
        if policies.get(row.route, UNKNOWN_ROUTE).ordering == "latest"
    }
    if not newest:
        return []
    lanes = [(*lane, *key) for lane, key in newest.items()]
    dead = [as_open_delivery(row) for row in transaction.execute(_DEAD, lanes=lanes, most=MOST_HEALED)]
    return [append(row, facts.Superseded(by=newest[row.route, row.lane][1], because="healed"), now) for row in dead]


def last_delivered(transaction: Transaction, lanes: Iterable[Lane]) -> dict[Lane, LastDelivered]:
    """The last success in each of these lanes that has one."""
    wanted = list(lanes)
    rows = transaction.execute(_LAST_DELIVERED, lanes=wanted) if wanted else []
    return {
        (row.route, row.lane): LastDelivered(
            as_time(row.occurred_at),
            row.seq,
            row.fetch_began_at and as_time(row.fetch_began_at),
            row.last_modified and as_time(row.last_modified),
        )
        for row in rows
    }


_LAST_DELIVERED = Statement(f"""
SELECT l.route, l.lane, l.occurred_at, l.seq, l.fetch_began_at, l.last_modified
FROM {sql.rows("lanes", route="text", lane="text")} JOIN lane l ON l.route = lanes.route AND l.lane = lanes.lane
""")


_CHANGE = "i.seq, i.source, i.dedup_key, i.entity_type, i.entity_id, i.event_type, i.occurred_at"


_OF_LATE = Statement(f"SELECT {_CHANGE} FROM {sql.rows('late', seq='bigint')} JOIN inbox i ON i.seq = late.seq")


_ASKED = sql.rows("asked", seq="bigint", route="text", source="text", key="text")
# The sweeps' events among them that were delivered. An EXISTS would have Postgres read the whole log.
_SWEPT = Statement(f"""
SELECT asked.seq AS late_seq, asked.route, {_CHANGE}
FROM {sql.looked_up(_ASKED, "inbox i", "i.source = asked.source AND i.dedup_key = asked.key")}
WHERE (
    SELECT l.id FROM delivery_log l
    WHERE l.seq = i.seq AND l.route = asked.route AND l.kind IN ('delivered', 'unchanged')
    LIMIT 1) IS NOT NULL
""")

_ENTITIES = {
    "source": "text", "entity_type": "text", "entity_id": "text", "above": "bigint", "first": "time", "last": "time"
}  # fmt: skip
# Read only webhooks that came after the sweep's event.
_LATER = sql.looked_up(
    sql.rows("asked", **_ENTITIES),
    "inbox i",
    "i.source = asked.source AND i.entity_type = asked.entity_type AND i.entity_id = asked.entity_id"
    " AND i.seq > asked.above AND i.occurred_at BETWEEN asked.first AND asked.last",
)
_SUPERSEDED_BY_SWEEPS = Statement(f"""
SELECT {sql.number("l.detail ->> 'by'")} AS by_seq, l.route
FROM {sql.looked_up(_LATER, "delivery_log l", "l.seq = i.seq AND l.kind = 'superseded'")}
WHERE l.detail ->> 'because' = 'swept'
""")

_OLDER = "o.state = 'dead' AND o.route = lanes.route AND o.lane = lanes.lane AND (o.occurred_at, o.seq) < (lanes.at, lanes.seq)"
_PLACES = sql.rows("lanes", route="text", lane="text", at="time", seq="bigint")
# Some of the dead before the place that is given for each lane, locked in their order.
_DEAD = Statement(f"""
WITH found AS MATERIALIZED (
    SELECT o.seq, o.route FROM {sql.looked_up(_PLACES, "open_delivery o", _OLDER)} LIMIT :most
)
SELECT {ROW}
FROM {sql.looked_up("found", "open_delivery o", "o.seq = found.seq AND o.route = found.route")}
ORDER BY o.seq, o.route
{sql.lock("o")}
""")
