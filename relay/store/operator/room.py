"""Room on the routes for what a large replay or retry takes up, so that new events need not wait behind it."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

from sqlalchemy import TextClause, text

from inbox.db.dialect import Sql
from relay.delivery.gates import Gates
from relay.delivery.policy import Policies
from relay.store import gates
from relay.store.database import Database
from relay.store.transaction import Key

MOST_OPEN = 1000
"""The most open replayed deliveries of a route: new events must not wait behind a large backlog of them. Likewise a retry
goes beyond its first so many only where fewer are due on the route.
"""

SAMPLED_OPEN = 5 * MOST_OPEN
"""Open replayed deliveries of a route among which those that can move are counted: each batch reads no more."""


def that_fit(database: Database, policies: Policies, keys: Sequence[Key]) -> tuple[Sequence[Key], str | None]:
    """The first of these for which their routes have room; where there is none, the route that is full.

    Only what can move takes room. Deliveries behind a closed gate or a blocked head may stay for good, and those whose next
    attempt is due later, with those behind them, for days: a replay would wait with them, and every other route with it.
    """
    closed = gates.read_gates(database)
    room, full = len(keys), None
    for route in _moving(policies, closed, keys):
        with database.read() as transaction:
            (found,) = transaction.execute(
                _replayed_open(transaction.sql), route=route, most=MOST_OPEN, sampled=SAMPLED_OPEN
            )
        of_route = [place for place, key in enumerate(keys) if key[1] == route]
        fitting = max(MOST_OPEN - int(found.count), 0)
        if fitting < len(of_route) and of_route[fitting] < room:
            room, full = of_route[fitting], route
    if room == len(keys):
        return keys, None
    whole = [key for key in keys[:room] if key[0] != keys[room][0]]  # an event's deliveries stay together
    return whole, None if whole else full


def _moving(policies: Policies, closed: Gates, keys: Sequence[Key]) -> list[str]:
    """The routes of these deliveries that no gate holds back: on the others nothing moves."""
    routes = sorted({route for _, route in keys})
    return [route for route in routes if route in policies and closed.admit(policies[route].gates) == "all"]


@cache
def _replayed_open(sql: Sql) -> TextClause:
    later = f"state = 'ready' AND {{}}.due_at > (SELECT {sql.now})"
    stands = f"""SELECT 1 FROM open_delivery b WHERE b.route = replayed.route AND b.lane = replayed.lane
        AND (b.state = 'blocked' OR b.{later.format("b")})"""
    return text(f"""
SELECT count(*) AS count FROM (
    SELECT 1 FROM (
        SELECT o.route, o.lane, o.state, o.due_at FROM open_delivery o
        WHERE o.run > 0 AND o.state IN ('received', 'waiting', 'ready', 'in_flight') AND o.route = :route
          AND {gates.NOT_PAUSED}
        LIMIT :sampled) replayed
    WHERE NOT (replayed.{later.format("replayed")}) AND (replayed.state <> 'waiting' OR NOT EXISTS ({stands}))
    LIMIT :most) moving
""")


def full_route(database: Database, policies: Policies, keys: Sequence[Key]) -> str | None:
    """The first route of these deliveries on which as many are due as may be.

    Not one that a gate holds back: nothing moves there, so that the command would wait for good, and other routes with it.
    """
    for route in _moving(policies, gates.read_gates(database), keys):
        with database.read() as transaction:
            (due,) = transaction.execute(_due(transaction.sql), route=route, most=MOST_OPEN)
        if due.count >= MOST_OPEN:
            return route
    return None


@cache
def _due(sql: Sql) -> TextClause:
    return text(f"""
SELECT count(*) AS count FROM (
    SELECT 1 FROM open_delivery o WHERE o.state = 'ready' AND o.route = :route AND o.due_at <= (SELECT {sql.now})
    LIMIT :most) due
""")
