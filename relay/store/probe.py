"""Whether deliveries move, at the cost of a few looks into indexes however much is open: for `relay status --check`."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache

from sqlalchemy import TextClause, text

from inbox.db.dialect import Sql, rows_param
from relay.policy import RoutePolicy
from relay.store.database import Database
from relay.store.gates import read_gates
from relay.store.passing import not_paused, paused_param
from relay.store.places import PAGE

STUCK_AFTER_SECONDS = 60.0


def stuck_routes(database: Database, policies: Mapping[str, RoutePolicy]) -> list[str]:
    """The routes on which something has been due for a minute, while nothing was under way and nothing was recorded.

    What a pause, a breaker or a rate holds back is not stuck, nor is a route that is only far behind. While entities are
    paused, some hundreds that are due for longest are looked at, and as many of those that are due for a minute.
    """
    gates = read_gates(database)
    with database.read() as transaction:
        limited = {(row.kind, row.name) for row in transaction.execute(_limited(database.sql))}
        moving = [
            {"route": route}
            for route, policy in policies.items()
            if gates.admit(policy.gates) == "all" and not any(toll.key in limited for toll in policy.tolls)
        ]
        paused = paused_param(gates.paused_entities)
        statement = _stuck(database.sql, passing_over=bool(paused))
        page = {"page": PAGE} if paused else {}
        found = transaction.execute(statement, routes=rows_param(moving), ago=-STUCK_AFTER_SECONDS, **page, **paused)
    return [row.route for row in found]


def unordered(database: Database) -> int | None:
    """The first event that arrived a minute ago and has no place in its lane yet, while nothing at all was recorded.

    A relay that works off a mountain of arrivals may record nothing meanwhile; but then it is another event soon.
    """
    with database.read() as transaction:
        found = transaction.execute(_unordered(database.sql), ago=-STUCK_AFTER_SECONDS)
    return found[0].seq if found else None


@cache
def _limited(sql: Sql) -> TextClause:
    return text(f"SELECT kind, name FROM gate WHERE rate_used_until > (SELECT {sql.now})")


@cache
def _stuck(sql: Sql, *, passing_over: bool) -> TextClause:
    since = sql.plus_seconds(f"(SELECT {sql.now})", ":ago")
    of_route = "SELECT 1 FROM open_delivery o WHERE o.route = routes.route"
    return text(f"""
SELECT routes.route
FROM {sql.rows("routes", route="text")}
WHERE ({_overdue(sql, since) if passing_over else f"EXISTS ({of_route} AND o.state = 'ready' AND o.due_at < {since})"}
       OR EXISTS ({of_route} AND o.state = 'in_flight' AND o.lease_until < {since}))
  AND NOT EXISTS ({of_route} AND o.state = 'in_flight' AND o.lease_until > (SELECT {sql.now}))
  AND NOT EXISTS (SELECT 1 FROM delivery_log l WHERE l.route = routes.route AND l.at > {since})
ORDER BY routes.route
""")


def _overdue(sql: Sql, since: str) -> str:
    """Whether something is due that is not paused, by both ends: a pause may hold back any number of deliveries."""
    ends = [
        f"""EXISTS (
        SELECT 1 FROM (
            SELECT seq FROM open_delivery
            WHERE route = routes.route AND state = 'ready' AND due_at < {since}
            ORDER BY due_at {direction}, seq {direction}
            LIMIT :page) o
        WHERE true {not_paused(sql)})"""
        for direction in ("ASC", "DESC")
    ]
    return " OR ".join(ends)


@cache
def _unordered(sql: Sql) -> TextClause:
    since = sql.plus_seconds(f"(SELECT {sql.now})", ":ago")
    return text(f"""
SELECT o.seq
FROM (SELECT seq FROM open_delivery WHERE state = 'received' ORDER BY seq LIMIT 1) o
JOIN inbox i ON i.seq = o.seq
WHERE i.received_at < {since} AND NOT EXISTS (SELECT 1 FROM delivery_log l WHERE l.at > {since})
""")
