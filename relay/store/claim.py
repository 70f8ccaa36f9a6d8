"""Claim: leases on heads, shared by all relays through the database alone. Leases and due times use the database's clock."""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

from sqlalchemy import TextClause, text

from inbox.db.dialect import Sql, as_json, rows_param
from inbox.timestamps import as_time
from relay import facts
from relay.lifecycle import append
from relay.outcome import Delivery
from relay.policy import RoutePolicy
from relay.store.database import ROW, Database, Transaction, as_open_delivery
from relay.store.lanes import settle_lanes

LEASE_SECONDS = 15
REAP_BATCH = 500

Claimed = tuple[int, str, int]
"""seq, route and the lease's token."""


def claim(database: Database, relay_node: str, wanted: Sequence[tuple[Sequence[str], int]]) -> list[Delivery]:
    """Lease due heads: for each destination, of its routes in turn, as many as there is room for, the longest due first.

    Any relay may claim any head. Order does not rest on row locks but on there being one head for each lane, which
    makes SKIP LOCKED a mere optimisation.
    """
    with database.write() as transaction:
        token = secrets.randbits(62)
        claimed: list[Any] = []
        for routes, room in wanted:
            left = room
            for route in routes:
                if left > 0:
                    rows = transaction.execute(
                        _claim(database.sql), route=route, most=left, token=token, node=relay_node, lease=LEASE_SECONDS
                    )
                    claimed += rows
                    left -= len(rows)
        return _with_events(transaction, claimed) if claimed else []


@cache
def _claim(sql: Sql) -> TextClause:
    return text(f"""
WITH due AS MATERIALIZED (
    SELECT seq, route FROM open_delivery
    WHERE state = 'ready' AND route = :route AND due_at <= (SELECT {sql.now})
    ORDER BY due_at, seq
    LIMIT :most
    {sql.skip_locked}
)
UPDATE open_delivery
SET state = 'in_flight', attempt = open_delivery.attempt + 1, due_at = NULL,
    lease_until = {sql.plus_seconds(f"(SELECT {sql.now})", ":lease")}, lease_token = :token, relay_node = :node
FROM due
WHERE open_delivery.seq = due.seq AND open_delivery.route = due.route AND open_delivery.state = 'ready'
RETURNING open_delivery.seq, open_delivery.route, open_delivery.lane, open_delivery.attempt, open_delivery.run,
    open_delivery.lease_token
""")


def _with_events(transaction: Transaction, claimed: Sequence[Any]) -> list[Delivery]:
    keys = rows_param({"seq": row.seq, "route": row.route, "lane": row.lane} for row in claimed)
    events = {(row.seq, row.route): row for row in transaction.execute(_events(transaction.sql), claimed=keys)}
    return [_delivery(row, events[row.seq, row.route]) for row in sorted(claimed, key=lambda row: row.seq)]


def _delivery(row: Any, event: Any) -> Delivery:  # noqa: ANN401  # result rows
    occurred_at = as_time(event.occurred_at)
    late = event.last_occurred_at is not None and (occurred_at, row.seq) < (
        as_time(event.last_occurred_at),
        event.last_seq,
    )
    return Delivery(
        seq=row.seq,
        route=row.route,
        lane=row.lane,
        attempt=row.attempt,
        run=row.run,
        lease_token=row.lease_token,
        source=event.source,
        entity_type=event.entity_type,
        entity_id=event.entity_id,
        event_type=event.event_type,
        action=event.action,
        event_id=event.event_id,
        occurred_at=occurred_at,
        received_at=as_time(event.received_at),
        content_type=event.content_type,
        headers=as_json(event.headers) or {},
        body=event.body,
        traceparent=event.traceparent,
        late=late,
    )


@cache
def _events(sql: Sql) -> TextClause:
    return text(f"""
SELECT i.seq, claimed.route, i.source, i.entity_type, i.entity_id, i.event_type, i.action, i.event_id, i.occurred_at,
       i.received_at, i.content_type, i.headers, i.body, i.traceparent, l.occurred_at AS last_occurred_at, l.seq AS last_seq
FROM {sql.rows("claimed", seq="bigint", route="text", lane="text")}
JOIN inbox i ON i.seq = claimed.seq
LEFT JOIN lane l ON l.route = claimed.route AND l.lane = claimed.lane
""")


def renew(database: Database, held: Sequence[Claimed]) -> set[Claimed]:
    """Extend these leases. Returns those that were: one that is missing is lost, or its row is locked at this moment.

    Only what is held is renewed: a claim whose commit was never confirmed to us has to run out.
    """
    rows = rows_param({"seq": seq, "route": route, "token": token} for seq, route, token in held)
    with database.write() as transaction:
        renewed = transaction.execute(_renew(database.sql), held=rows, lease=LEASE_SECONDS)
        return {(row.seq, row.route, row.lease_token) for row in renewed}


@cache
def _renew(sql: Sql) -> TextClause:
    return text(f"""
WITH mine AS MATERIALIZED (
    SELECT o.seq, o.route, o.lease_token
    FROM {sql.rows("held", seq="bigint", route="text", token="bigint")}
    JOIN open_delivery o ON o.seq = held.seq AND o.route = held.route
    WHERE o.state = 'in_flight' AND o.lease_token = held.token
    ORDER BY o.seq, o.route
    {sql.skip_locked and "FOR UPDATE OF o SKIP LOCKED"}
)
UPDATE open_delivery
SET lease_until = {sql.plus_seconds(f"(SELECT {sql.now})", ":lease")}
FROM mine
WHERE open_delivery.seq = mine.seq AND open_delivery.route = mine.route AND open_delivery.lease_token = mine.lease_token
RETURNING open_delivery.seq, open_delivery.route, open_delivery.lease_token
""")


def give_back(database: Database, claimed: Sequence[Claimed]) -> int:
    """Return leases whose attempt never began: the attempt is not used, and the delivery is due at once. Returns how many."""
    if not claimed:
        return 0
    rows = rows_param({"seq": seq, "route": route, "token": token} for seq, route, token in claimed)
    with database.write() as transaction:
        return len(transaction.execute(_give_back(database.sql), returned=rows))


@cache
def _give_back(sql: Sql) -> TextClause:
    return text(f"""
UPDATE open_delivery
SET state = 'ready', attempt = open_delivery.attempt - 1, due_at = (SELECT {sql.now}), lease_until = NULL, lease_token = NULL,
    relay_node = NULL
FROM {sql.rows("returned", seq="bigint", route="text", token="bigint")}
WHERE open_delivery.seq = returned.seq AND open_delivery.route = returned.route
    AND open_delivery.state = 'in_flight' AND open_delivery.lease_token = returned.token
RETURNING open_delivery.seq
""")


def reap(database: Database, policies: Mapping[str, RoutePolicy], relay_node: str) -> list[tuple[int, str]]:
    """Take back leases that ran out, so that another attempt can be made; how far the last one came is unknown.

    Returns:
        seq and route of each.
    """
    with database.read() as transaction:
        if not transaction.execute(_any_expired(database.sql)):
            return []
    with database.write() as transaction:
        now = transaction.lock_order()
        rows = transaction.execute(_expired(database.sql), batch=REAP_BATCH)
        abandoned = [append(as_open_delivery(row), facts.Abandoned(relay_node=row.relay_node), now) for row in rows]
        transaction.write_back(settle_lanes(transaction, abandoned, policies, now), relay_node)
    return [(row.seq, row.route) for row in rows]


@cache
def _any_expired(sql: Sql) -> TextClause:
    return text(f"SELECT 1 FROM open_delivery WHERE state = 'in_flight' AND lease_until < (SELECT {sql.now}) LIMIT 1")


@cache
def _expired(sql: Sql) -> TextClause:
    return text(f"""
SELECT {ROW}, o.relay_node FROM open_delivery o
WHERE o.state = 'in_flight' AND o.lease_until < (SELECT {sql.now})
ORDER BY o.seq, o.route
LIMIT :batch
{sql.skip_locked}
""")
