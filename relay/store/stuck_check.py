"""Checks that deliveries move, for `relay status --check`: a few index lookups, however much is open."""

from __future__ import annotations

from functools import cache
from typing import Literal

import msgspec
from sqlalchemy import TextClause, text

from inbox.db.dialect import Sql
from inbox.db.parameters import rows_param
from inbox.db.stuck import AFTER_SECONDS, Finding, SqlClock, branches
from inbox.events.states import GONE_SECONDS
from relay.delivery.policy import Policies
from relay.store.database import Database
from relay.store.gates import read_gates
from relay.store.paused_entities import not_paused, paused_param
from relay.store.scan_positions import PAGE

STUCK_AFTER_SECONDS = float(AFTER_SECONDS)


def stuck_routes(database: Database, policies: Policies) -> list[str]:
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
            if gates.admit(policy.gates) == "all"
            and not any(rate_limit.key in limited for rate_limit in policy.rate_limits)
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


class Trouble(msgspec.Struct, frozen=True):
    """A finding: something makes no progress."""

    finding: Finding | Literal["no_database"]
    route: str | None
    why: str


def findings(database: Database, policies: Policies, *, host: str | None = None) -> list[Trouble]:
    """All findings, in the words of the view `stuck`; those of a route or of many lanes are summed up.

    With a `host`, its relay must be alive, and findings that only a person can fix are left out: a restart helps none.
    """
    found = relays_alive(database, host) + relays_in_trouble(database)
    first = unordered(database)
    if first is not None:
        found.append(Trouble("unordered", None, f"event {first} has waited a minute for its place in its lane"))
    found += [
        Trouble("stuck", route, f"route {route}: due for a minute, and nothing moves")
        for route in stuck_routes(database, policies)
    ]
    return found if host is not None else found + waits_for_a_person(database)


def relays_alive(database: Database, host: str | None = None) -> list[Trouble]:
    """A finding when no relay is alive, on any host or on this one."""
    if host is None:
        return _of_view(database, "no_relay")
    with database.read() as transaction:
        alive = transaction.execute(_alive_on(database.sql), host=host, ago=-float(GONE_SECONDS))
    why = f"no relay on {host} has sent a heartbeat for {GONE_SECONDS} s"
    return [] if alive else [Trouble("no_relay", None, why)]


def relays_in_trouble(database: Database) -> list[Trouble]:
    """Relays that run and whose steps fail, and hosts whose relays die soon after they start."""
    return _of_view(database, "failing") + _of_view(database, "crash_loop")


def waits_for_a_person(database: Database) -> list[Trouble]:
    """Lanes that are blocked, commands that no relay takes up, and commands that failed lately."""
    with database.read() as transaction:
        blocked = transaction.execute(_BLOCKED, most=MOST_BLOCKED)
    return [
        *(
            Trouble("blocked", row.route, f"route {row.route}: {_so_many(row.lanes)} blocked: `relay dead` lists why")
            for row in blocked
        ),
        *commands_in_trouble(database),
    ]


def commands_in_trouble(database: Database) -> list[Trouble]:
    """Commands that no relay takes up, and commands that failed lately."""
    return _of_view(database, "command") + _of_view(database, "command_failed")


def _of_view(database: Database, finding: Finding) -> list[Trouble]:
    with database.read() as transaction:
        rows = transaction.execute(_branch(database.sql, finding))
    return [Trouble(finding, row.route, "; ".join(row.why.splitlines())) for row in rows]


def _so_many(lanes: int) -> str:
    more = " or more" if lanes >= MOST_BLOCKED else ""
    return f"{lanes}{more} {'lane is' if lanes == 1 else 'lanes are'}"


MOST_BLOCKED = 1000
"""The largest count: a larger number would say nothing more."""

_BLOCKED = text("""
SELECT b.route, count(*) AS lanes FROM (SELECT route FROM open_delivery WHERE state = 'blocked' LIMIT :most) b
GROUP BY b.route
ORDER BY b.route
""")


@cache
def _branch(sql: Sql, finding: Finding) -> TextClause:
    """The first rows of a branch of the view, by the clock of this check."""
    clock = SqlClock(sql.name, f"(SELECT {sql.now})")
    return text(f"SELECT b.route, b.why FROM ({branches(clock)[finding]}) b ORDER BY b.why LIMIT 10")


@cache
def _alive_on(sql: Sql) -> TextClause:
    return text(f"""
SELECT 1 FROM relay_node n
WHERE n.host = :host AND n.stopped_at IS NULL
  AND n.heartbeat_at >= {sql.plus_seconds(f"(SELECT {sql.now})", ":ago")}
LIMIT 1
""")


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
    """True when something is due and not paused. Looks from both ends: a pause may hold back any number of deliveries."""
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
