"""Leases on deliveries in flight: renewing them, and giving back those whose attempt never began."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from functools import cache

from sqlalchemy import TextClause, text

from inbox.db.dialect import Sql, rows_param
from inbox.events import states
from relay.delivery.policy import Policies
from relay.store.bulkhead import in_parts_by_route
from relay.store.database import Database
from relay.store.lanes import settle_lanes
from relay.store.transaction import key_text

LEASE_SECONDS = states.LEASE_SECONDS

Claimed = tuple[int, str, int]
"""seq, route and the lease's token."""


def renew(database: Database, held: Collection[Claimed]) -> set[Claimed]:
    """Extend these leases. Returns the extended ones: one that is missing is lost, or locked at this moment.

    Only what is held is renewed: a claim whose commit was never confirmed to us has to run out.
    """
    with database.write() as transaction:
        renewed = transaction.execute(_renew(database.sql), held=claims_param(held), lease=LEASE_SECONDS)
        return {(row.seq, row.route, row.lease_token) for row in renewed}


def claims_param(claims: Iterable[Claimed]) -> str:
    """The claims as rows of a bound parameter."""
    return rows_param({"seq": seq, "route": route, "token": token} for seq, route, token in claims)


@cache
def _renew(sql: Sql) -> TextClause:
    return text(f"""
WITH mine AS MATERIALIZED (
    SELECT o.seq, o.route, o.lease_token
    FROM {sql.deliveries("held", token="bigint")}
    WHERE o.state || '' = 'in_flight' AND o.lease_token = held.token
    ORDER BY o.seq, o.route
    {sql.skip_locked and "FOR UPDATE OF o SKIP LOCKED"}
)
UPDATE open_delivery
SET lease_until = {sql.plus_seconds(f"(SELECT {sql.now})", ":lease")}
FROM mine
WHERE {sql.has_key("open_delivery", "mine", found=True)} AND open_delivery.lease_token = mine.lease_token
RETURNING open_delivery.seq, open_delivery.route, open_delivery.lease_token
""")


def give_back(database: Database, policies: Policies, relay_node: str, claimed: Sequence[Claimed]) -> int:
    """Return leases whose attempt never began: the attempt is not used, and the delivery is due at once. Returns how many.

    Their lanes are settled again: an older event that came meanwhile goes first. Leases of lanes that can't be settled
    run out; those of routes that rest stay as they are.
    """
    return sum(
        in_parts_by_route(
            database,
            "give_back",
            claimed,
            part=lambda some: _give_back_in_order(database, policies, relay_node, some),
            alone=lambda _one, _error: 0,
            name=lambda one: key_text(one[:2]),
            route_of=lambda one: one[1],
            enough=len(claimed),
        )
    )


def _give_back_in_order(database: Database, policies: Policies, relay_node: str, claimed: Sequence[Claimed]) -> int:
    with database.write() as transaction:
        now = transaction.lock_order(route for _, route, _ in claimed)
        returned = transaction.execute(_give_back(transaction.sql), returned=claims_param(claimed))
        lanes = [(row.route, row.lane) for row in returned]
        transaction.write_back(settle_lanes(transaction, (), policies, now, lanes), relay_node)
    return len(returned)


@cache
def _give_back(sql: Sql) -> TextClause:
    return text(f"""
UPDATE open_delivery
SET state = 'ready', attempt = open_delivery.attempt - 1, due_at = (SELECT {sql.now}), lease_until = NULL, lease_token = NULL,
    relay_node = NULL
FROM {sql.rows("returned", seq="bigint", route="text", token="bigint")}
WHERE {sql.has_key("open_delivery", "returned")} AND open_delivery.state || '' = 'in_flight'
  AND open_delivery.lease_token = returned.token
RETURNING open_delivery.route, open_delivery.lane
""")
