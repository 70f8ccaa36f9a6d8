"""Ends deliveries that past successes cover, and webhooks that duplicate a sweep's event. Call under the order lock."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from datetime import datetime
from functools import cache
from typing import Any

from sqlalchemy import TextClause, text

from inbox.config.routing import OWN_LANE
from inbox.db.dialect import Sql, rows_param
from inbox.events.event import swept_key
from inbox.events.timestamps import as_time, to_nanoseconds
from relay.delivery import facts
from relay.delivery.lifecycle import OpenDelivery, append
from relay.delivery.ordering import LastDelivered, covers
from relay.delivery.policy import UNKNOWN_ROUTE, Policies
from relay.store.database import SEQS_OUT_OF_ORDER
from relay.store.lanes import Lane, lanes_param
from relay.store.transaction import ROW, Key, Transaction, as_open_delivery


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
    rows = rows_param({"seq": seq} for seq in sorted({row.seq for row in late}))
    events = {event.seq: event for event in transaction.execute(_of_late(transaction.sql), late=rows)}
    asked = [
        {"seq": row.seq, "route": row.route, "source": event.source, "key": _swept_key(event)}
        for row in late
        if (event := events.get(row.seq)) and event.entity_type is not None and event.entity_id is not None
    ]
    found = transaction.execute(_swept(transaction.sql), asked=rows_param(asked)) if asked else []
    swept = [row for row in found if _is_same_change(events[row.late_seq], row)]
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
        {
            "source": source,
            "entity_type": entity_type,
            "entity_id": entity_id,
            "above": min(row.seq for row in rows) - SEQS_OUT_OF_ORDER,
            "first": min(as_time(row.occurred_at) for row in rows),
            "last": max(as_time(row.occurred_at) for row in rows),
        }
        for (source, entity_type, entity_id), rows in of_entities.items()
    ]
    found = transaction.execute(_superseded_by_sweeps(transaction.sql), asked=rows_param(asked))
    return {(row.by_seq, row.route) for row in found}


def _swept_key(event: Any) -> str:  # noqa: ANN401  # a result row
    return swept_key(event.entity_type, event.entity_id, to_nanoseconds(as_time(event.occurred_at)))


def _is_same_change(event: Any, swept: Any) -> bool:  # noqa: ANN401  # result rows
    """True when an event duplicates a sweep's event that has its swept key: same entity, event type and instant.

    The source's `dedup` decides about two webhooks by their keys: two keys are two events, whatever else they share, and in
    `strict` every event matters. A sweep's event has a key of another kind, so the late webhook of the same change differs
    from it in the key alone. The sweep's event stands for one webhook: a second one of the same instant is another change.
    The reverse needs no decision: a sweep adds no event for a change that a webhook reported.

    On a `latest` route the fetched entity counts, not the event: two changes in one second look the same, and the second
    must not be lost. There `covers` alone decides.
    """
    names = ("entity_type", "entity_id", "event_type", "occurred_at")
    return event.seq != swept.seq and all(getattr(event, name) == getattr(swept, name) for name in names)


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
    lanes = rows_param({"route": r, "lane": lane, "at": at, "seq": seq} for (r, lane), (at, seq) in newest.items())
    dead = [as_open_delivery(row) for row in transaction.execute(_dead(transaction.sql), lanes=lanes, most=MOST_HEALED)]
    return [append(row, facts.Superseded(by=newest[row.route, row.lane][1], because="healed"), now) for row in dead]


def last_delivered(transaction: Transaction, lanes: Iterable[Lane]) -> dict[Lane, LastDelivered]:
    """The last success in each of these lanes that has one."""
    wanted = list(lanes)
    if not wanted:
        return {}
    rows = transaction.execute(_last_delivered(transaction.sql), lanes=lanes_param(wanted))
    return {(row.route, row.lane): _last(row) for row in rows}


def _last(row: Any) -> LastDelivered:  # noqa: ANN401  # a result row
    began, modified = row.fetch_began_at, row.last_modified
    return LastDelivered(
        as_time(row.occurred_at),
        row.seq,
        None if began is None else as_time(began),
        None if modified is None else as_time(modified),
    )


@cache
def _last_delivered(sql: Sql) -> TextClause:
    return text(f"""
SELECT l.route, l.lane, l.occurred_at, l.seq, l.fetch_began_at, l.last_modified
FROM {sql.rows("lanes", route="text", lane="text")} JOIN lane l ON l.route = lanes.route AND l.lane = lanes.lane
""")


_CHANGE = "i.seq, i.source, i.dedup_key, i.entity_type, i.entity_id, i.event_type, i.occurred_at"


@cache
def _of_late(sql: Sql) -> TextClause:
    return text(f"SELECT {_CHANGE} FROM {sql.rows('late', seq='bigint')} JOIN inbox i ON i.seq = late.seq")


@cache
def _swept(sql: Sql) -> TextClause:
    """The sweeps' events among them that were delivered. An EXISTS would have Postgres read the whole log."""
    asked = sql.rows("asked", seq="bigint", route="text", source="text", key="text")
    found = sql.looked_up(asked, "inbox i", "i.source = asked.source AND i.dedup_key = asked.key")
    return text(f"""
SELECT asked.seq AS late_seq, asked.route, {_CHANGE}
FROM {found}
WHERE (
    SELECT l.id FROM delivery_log l
    WHERE l.seq = i.seq AND l.route = asked.route AND l.kind IN ('delivered', 'unchanged')
    LIMIT 1) IS NOT NULL
""")


@cache
def _superseded_by_sweeps(sql: Sql) -> TextClause:
    """Read only webhooks that came after the sweep's event."""
    asked = sql.rows(
        "asked", source="text", entity_type="text", entity_id="text", above="bigint", first="time", last="time"
    )
    later = sql.looked_up(
        asked,
        "inbox i",
        "i.source = asked.source AND i.entity_type = asked.entity_type AND i.entity_id = asked.entity_id"
        " AND i.seq > asked.above AND i.occurred_at BETWEEN asked.first AND asked.last",
    )
    return text(f"""
SELECT {sql.number("l.detail ->> 'by'")} AS by_seq, l.route
FROM {sql.looked_up(later, "delivery_log l", "l.seq = i.seq AND l.kind = 'superseded'")}
WHERE l.detail ->> 'because' = 'swept'
""")


@cache
def _dead(sql: Sql) -> TextClause:
    """Some of the dead before the place that is given for each lane, locked in their order."""
    lanes = sql.rows("lanes", route="text", lane="text", at="time", seq="bigint")
    older = "o.state = 'dead' AND o.route = lanes.route AND o.lane = lanes.lane AND (o.occurred_at, o.seq) < (lanes.at, lanes.seq)"
    found = sql.looked_up(lanes, "open_delivery o", older)
    return text(f"""
WITH found AS MATERIALIZED (
    SELECT o.seq, o.route FROM {found} LIMIT :most
)
SELECT {ROW}
FROM {sql.looked_up("found", "open_delivery o", "o.seq = found.seq AND o.route = found.route")}
ORDER BY o.seq, o.route
{sql.for_update and "FOR UPDATE OF o"}
""")
