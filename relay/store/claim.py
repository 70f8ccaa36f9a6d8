"""Claim: leases on heads, shared by all relays through the database alone. Leases and due times use the database's clock."""

from __future__ import annotations

import secrets
from collections.abc import Collection, Mapping, Sequence
from datetime import timedelta
from functools import cache
from typing import Any

from sqlalchemy import TextClause, text

from inbox.db.dialect import Sql, rows_param
from inbox.db.schema import SUSPECT_CRASHES
from relay.breaker import BreakerState, GateKey, probe
from relay.facts import AnyFact
from relay.lifecycle import append
from relay.outcome import Delivery
from relay.policy import CRASHES_ALLOWED, UNKNOWN_ROUTE, RoutePolicy, decide_abandoned
from relay.store.database import ROW, Database, Transaction, as_open_delivery
from relay.store.events import with_events
from relay.store.gates import locked, store
from relay.store.lanes import settle_lanes

LEASE_SECONDS = 15
PROBE_GIVEN_UP_AFTER = timedelta(seconds=60)
"""A relay that died over the attempt that tries a breaker is not waited for longer."""
REAP_BATCH = 500

Claimed = tuple[int, str, int]
"""seq, route and the lease's token."""


def claim(
    database: Database,
    relay_node: str,
    wanted: Sequence[tuple[Sequence[str], int]],
    paused: Mapping[str, Sequence[str]] = {},
) -> list[Delivery]:
    """Lease due heads: for each destination, of its routes in turn, as many as there is room for, the longest due first.

    `paused` are lanes of a route that are passed over.

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
                    rows = _claim_some(transaction, relay_node, route, left, token, paused.get(route, ()))
                    claimed += rows
                    left -= len(rows)
        return with_events(transaction, claimed) if claimed else []


def claim_probe(
    database: Database, relay_node: str, route: str, breakers: Collection[GateKey], paused: Sequence[str] = ()
) -> list[Delivery]:
    """Lease one due head of a route whose breaker is to be tried, and note that this is the attempt that tries it.

    Nothing, when another relay does so already or it has opened again.
    """
    with database.write() as transaction:
        transaction.lock_order()
        now = transaction.now()
        known = {key: b for key, b in locked(transaction, breakers).items() if b.state is not BreakerState.CLOSED}
        if any(breaker.lets_claim(now) != "probe" for breaker in known.values()):
            return []
        claimed = _claim_some(transaction, relay_node, route, 1, secrets.randbits(62), paused)
        if not claimed:
            return []
        store(transaction, {key: probe(breaker, now, PROBE_GIVEN_UP_AFTER) for key, breaker in known.items()})
        return with_events(transaction, claimed)


def _claim_some(
    transaction: Transaction, relay_node: str, route: str, most: int, token: int, paused: Sequence[str]
) -> list[Any]:
    given = {"paused": rows_param({"lane": lane} for lane in paused)} if paused else {}
    statement = _claim(transaction.sql, passing_over=bool(paused))
    return transaction.execute(
        statement, route=route, most=most, token=token, node=relay_node, lease=LEASE_SECONDS, **given
    )


def claim_suspect(database: Database, relay_node: str, routes: Sequence[str]) -> list[Delivery]:
    """Lease one due head whose lease ran out several times in a row, or none: it may be what killed the process.

    `claim` leaves these out. A relay that has only one of them in hand finds out which it is: those that were merely
    in hand with it come through alone.
    """
    names = rows_param({"route": route} for route in routes)
    with database.read() as transaction:
        if not transaction.execute(_any_suspect(database.sql), routes=names):
            return []
    with database.write() as transaction:
        claimed = transaction.execute(
            _claim_suspect(database.sql),
            routes=names,
            token=secrets.randbits(62),
            node=relay_node,
            lease=LEASE_SECONDS,
        )
        return with_events(transaction, claimed) if claimed else []


@cache
def _any_suspect(sql: Sql) -> TextClause:
    return text(
        f"SELECT 1 FROM open_delivery o JOIN {sql.rows('routes', route='text')} {_DUE_SUSPECT.format(now=sql.now)}"
    )


@cache
def _claim_suspect(sql: Sql) -> TextClause:
    return _lease(
        sql,
        f"""
    SELECT o.seq, o.route FROM open_delivery o JOIN {sql.rows("routes", route="text")} {_DUE_SUSPECT.format(now=sql.now)}
    {sql.for_update and "FOR UPDATE OF o SKIP LOCKED"}""",
    )


_DUE_SUSPECT = f"""ON routes.route = o.route
    WHERE o.state = 'ready' AND o.crashes >= {SUSPECT_CRASHES} AND o.due_at <= (SELECT {{now}})
    ORDER BY o.due_at, o.seq
    LIMIT 1"""


@cache
def _claim(sql: Sql, *, passing_over: bool = False) -> TextClause:
    lanes = f"AND lane NOT IN (SELECT paused.lane FROM {sql.rows('paused', lane='text')})" if passing_over else ""
    return _lease(
        sql,
        f"""
    SELECT seq, route FROM open_delivery
    WHERE state = 'ready' AND route = :route AND due_at <= (SELECT {sql.now}) AND crashes < {SUSPECT_CRASHES} {lanes}
    ORDER BY due_at, seq
    LIMIT :most
    {sql.skip_locked}""",
    )


def _lease(sql: Sql, due: str) -> TextClause:
    return text(f"""
WITH due AS MATERIALIZED ({due}
)
UPDATE open_delivery
SET state = 'in_flight', attempt = open_delivery.attempt + 1, due_at = NULL,
    lease_until = {sql.plus_seconds(f"(SELECT {sql.now})", ":lease")}, lease_token = :token, relay_node = :node
FROM due
WHERE open_delivery.seq = due.seq AND open_delivery.route = due.route AND open_delivery.state = 'ready'
RETURNING open_delivery.seq, open_delivery.route, open_delivery.lane, open_delivery.attempt, open_delivery.run,
    open_delivery.lease_token, open_delivery.crashes
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
    """Locked in the order in which everybody locks open rows: else it and who settles the same lanes wait for each other."""
    return text(f"""
WITH mine AS MATERIALIZED (
    SELECT o.seq, o.route, o.lease_token
    FROM {sql.rows("returned", seq="bigint", route="text", token="bigint")}
    JOIN open_delivery o ON o.seq = returned.seq AND o.route = returned.route
    WHERE o.state = 'in_flight' AND o.lease_token = returned.token
    ORDER BY o.seq, o.route
    {sql.for_update and "FOR UPDATE OF o"}
)
UPDATE open_delivery
SET state = 'ready', attempt = open_delivery.attempt - 1, due_at = (SELECT {sql.now}), lease_until = NULL, lease_token = NULL,
    relay_node = NULL
FROM mine
WHERE open_delivery.seq = mine.seq AND open_delivery.route = mine.route AND open_delivery.lease_token = mine.lease_token
RETURNING open_delivery.seq
""")


def reap(database: Database, policies: Mapping[str, RoutePolicy], relay_node: str) -> list[tuple[int, str, AnyFact]]:
    """Take back leases that ran out, so that another attempt can be made; how far the last one came is unknown.

    Returns:
        seq, route and what was recorded of each.
    """
    with database.read() as transaction:
        if not transaction.execute(_any_expired(database.sql)):
            return []
    with database.write() as transaction:
        now = transaction.lock_order()
        rows = transaction.execute(_expired(database.sql), batch=REAP_BATCH)
        looping = _died_each_time(transaction, [row for row in rows if row.crashes + 1 >= CRASHES_ALLOWED])
        abandoned = [
            append(
                as_open_delivery(row),
                decide_abandoned(
                    as_open_delivery(row),
                    row.relay_node,
                    policies.get(row.route, UNKNOWN_ROUTE),
                    died_each_time=(row.seq, row.route) in looping,
                ),
                now,
            )
            for row in rows
        ]
        transaction.write_back(settle_lanes(transaction, abandoned, policies, now), relay_node)
    return [(row.seq, row.route, row.facts[-1]) for row in abandoned]


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


def _died_each_time(transaction: Transaction, rows: Sequence[Any]) -> set[tuple[int, str]]:
    """Those of which the last relay processes that abandoned them, and the one that does so now, are gone for good.

    A process that was only frozen, or without a database, said later that it lives; one that died never does: a new
    process has a new id. What took over another one's retry has its own attempts alone as evidence.
    """
    if not rows:
        return set()
    holders = rows_param({"seq": row.seq, "route": row.route, "node": row.relay_node} for row in rows)
    gone = transaction.execute(_gone(transaction.sql), held=holders, since=-LEASE_SECONDS)
    returned: dict[tuple[int, str], list[bool]] = {(row.seq, row.route): [] for row in rows}
    for row in transaction.execute(_abandoned_before(transaction.sql), held=holders):
        returned[row.seq, row.route].append(bool(row.came_back))
    last = {key: came_back[: CRASHES_ALLOWED - 1] for key, came_back in returned.items()}
    return {
        (row.seq, row.route)
        for row in gone
        if len(last[row.seq, row.route]) == CRASHES_ALLOWED - 1 and not any(last[row.seq, row.route])
    }


_HELD = {"seq": "bigint", "route": "text", "node": "text"}


@cache
def _gone(sql: Sql) -> TextClause:
    """Of these, those whose holder has been silent for as long as a lease, and did not stop in order."""
    return text(f"""
SELECT held.seq, held.route
FROM {sql.rows("held", **_HELD)} LEFT JOIN relay_node n ON n.id = held.node
WHERE n.id IS NULL OR (n.stopped_at IS NULL AND n.heartbeat_at < {sql.plus_seconds(f"(SELECT {sql.now})", ":since")})
""")


@cache
def _abandoned_before(sql: Sql) -> TextClause:
    """The times they were abandoned, the last one first, and whether the holder of then was heard of afterwards."""
    return text(f"""
SELECT l.seq, l.route, n.heartbeat_at > l.at OR n.stopped_at IS NOT NULL AS came_back
FROM {sql.rows("held", **_HELD)}
JOIN delivery_log l ON l.seq = held.seq AND l.route = held.route AND l.kind = 'abandoned'
LEFT JOIN relay_node n ON n.id = l.detail ->> 'relay_node'
ORDER BY l.id DESC
""")
