"""Reap: rescues deliveries whose lease expired, and sets aside those that kill their process again and again."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cache

from sqlalchemy import TextClause, text

from inbox.db.dialect import Sql, rows_param
from inbox.events.timestamps import time_text
from relay.delivery.alerts import deaths
from relay.delivery.facts import AnyFact
from relay.delivery.lifecycle import append
from relay.delivery.policy import LEFT_TO_OTHERS, Policies, decide_abandoned
from relay.store.alerts import note
from relay.store.applied import forget_applied
from relay.store.bulkhead import in_parts_by_route
from relay.store.clock import DatabaseClock
from relay.store.database import Database
from relay.store.lanes import settle_lanes
from relay.store.leases import LEASE_SECONDS, Claimed, claims_param
from relay.store.quarantine import quarantine
from relay.store.transaction import ROW, as_open_delivery, key_text, keys_param

STEP = "reap"
BATCH = 200
"""Leases in one transaction. Each is a lane of its own, of which two that wait are folded, too: some 70 ms."""
TOO_LONG_SECONDS = LEASE_SECONDS + 5
"""No lease lasts for so long by a clock that is right."""
OWN_TRANSACTION = 8
"""Leases of a route that are worth a transaction of their own, under the lock of that route alone."""


def reap(
    database: Database,
    policies: Policies,
    relay_node: str,
    trusted: Iterable[Claimed] = (),
    clock: DatabaseClock | None = None,
) -> list[tuple[int, str, AnyFact]]:
    """Take back expired leases, so that another attempt can be made; how far the last one came is unknown.

    Expired are also leases that end later than any may: the database's clock was set back since.

    Nothing is taken back that this process trusts still, nor anything for a while after the `clock` was seen to step
    forward: those who hold the other leases live, too. A lease of a route that this configuration lacks is left to a relay
    that has the route. If none comes for `LEFT_TO_OTHERS`, the delivery is made ready, and never given up here.

    Returns:
        seq, route and what was recorded of each.
    """
    clock = clock or DatabaseClock()
    held = claims_param(trusted)
    with database.read() as transaction:
        expired_at = time_text(clock.look(transaction))
        if not clock.is_settled():
            return []
        expired = transaction.execute(
            _expired_leases(database.sql),
            batch=BATCH,
            at=expired_at,
            trusted=held,
            resting=rows_param({"route": route} for route in sorted(database.resting())),
            known=rows_param({"route": route} for route in sorted(policies)),
            since=-LEFT_TO_OTHERS.total_seconds(),
        )
    parts = in_parts_by_route(
        database,
        STEP,
        [(row.seq, row.route, row.lease_token) for row in expired],
        part=lambda leases: _reap(database, policies, relay_node, clock, leases, trusted=held),
        alone=lambda lease, error: _set_aside(database, policies, relay_node, lease, error),
        name=lambda lease: key_text(lease[:2]),
        route_of=lambda lease: lease[1],
        enough=OWN_TRANSACTION,
    )
    return [fact for part in parts for fact in part]


def _reap(
    database: Database,
    policies: Policies,
    relay_node: str,
    clock: DatabaseClock,
    leases: Sequence[Claimed],
    *,
    trusted: str,
) -> list[tuple[int, str, AnyFact]]:
    with database.write() as transaction:
        transaction.lock_order(route for _, route, _ in leases)
        now = clock.look(transaction)
        if not clock.is_settled():
            return []
        keys = keys_param(lease[:2] for lease in leases)
        rows = transaction.execute(_expired(database.sql), keys=keys, at=time_text(now), trusted=trusted)
        abandoned = []
        for row in rows:
            delivery = as_open_delivery(row)
            abandoned.append(append(delivery, decide_abandoned(delivery, row.relay_node, policies.get(row.route)), now))
        note(transaction, deaths(abandoned), now)
        forget_applied(transaction, ((row.route, row.lane) for row in abandoned))
        settled = settle_lanes(transaction, abandoned, policies, now)
        transaction.only_write()
        transaction.write_back(settled, relay_node)
    return [(row.seq, row.route, row.facts[-1]) for row in abandoned]


def _set_aside(
    database: Database, policies: Policies, relay_node: str, lease: Claimed, error: Exception
) -> list[tuple[int, str, AnyFact]]:
    seq, route, token = lease
    dead = quarantine(database, policies, relay_node, (seq, route), cause="unprocessable", error=error, token=token)
    return [] if dead is None else [(seq, route, dead)]


def _is_expired(sql: Sql) -> str:
    at = sql.time(":at")
    is_over = f"(o.lease_until < {at} OR o.lease_until > {sql.plus_seconds(at, str(TOO_LONG_SECONDS))})"
    return f"o.state = 'in_flight' AND {is_over} AND {_not_trusted(sql)}"


@cache
def _expired(sql: Sql) -> TextClause:
    return text(f"""
SELECT {ROW}, o.relay_node
FROM {sql.deliveries("keys")}
WHERE {_is_expired(sql)}
ORDER BY o.seq, o.route
{sql.skip_locked and "FOR UPDATE OF o SKIP LOCKED"}
""")


@cache
def _expired_leases(sql: Sql) -> TextClause:
    """Pass over locked ones here, too: they would fill a batch, and hide the others."""
    resting, known = sql.rows("resting", route="text"), sql.rows("known", route="text")
    return text(f"""
SELECT o.seq, o.route, o.lease_token FROM open_delivery o
WHERE {_is_expired(sql)} AND o.route NOT IN (SELECT route FROM {resting})
  AND (o.route IN (SELECT route FROM {known}) OR o.lease_until < {sql.plus_seconds(sql.time(":at"), ":since")})
ORDER BY o.seq, o.route
LIMIT :batch
{sql.skip_locked and "FOR UPDATE OF o SKIP LOCKED"}
""")


def _not_trusted(sql: Sql) -> str:
    """A condition on the delivery `o`: it is not leased under one of the tokens that this process trusts."""
    return f"""NOT EXISTS (
    SELECT 1 FROM {sql.rows("trusted", seq="bigint", route="text", token="bigint")}
    WHERE trusted.seq = o.seq AND trusted.route = o.route AND trusted.token = o.lease_token)"""
