"""Checks that deliveries move, for `relay status --check`: a few index lookups, however much is open."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Literal

import msgspec
from sqlalchemy import TextClause, text

from inbox.db.dialect import Sql
from inbox.db.parameters import rows_param
from inbox.db.stuck import AFTER_SECONDS, NEWEST_FACTS, Finding, SqlClock, branches
from inbox.events.states import GONE_SECONDS
from relay.delivery.gates import Gates
from relay.delivery.policy import Policies
from relay.store.database import Database
from relay.store.gates import NOT_PAUSED, read_gates
from relay.store.transaction import Transaction

LOOKED_AT = 500
"""Deliveries of each end of a route's due ones, among which it looks for one that is not paused."""
STUCK_AFTER_SECONDS = float(AFTER_SECONDS)


def stuck_routes(database: Database, policies: Policies) -> list[str]:
    """The routes on which something has been due for a minute, while nothing was under way and nothing was recorded.

    What a pause, a breaker or a rate holds back is not stuck, nor is a route that is only far behind. While entities are
    paused, some hundreds that are due for longest are looked at, and as many of those that are due for a minute.
    """
    gates = read_gates(database)
    with database.read() as transaction:
        return _stuck_routes(transaction, policies, gates)


def _stuck_routes(transaction: Transaction, policies: Policies, gates: Gates) -> list[str]:
    limited = {(row.kind, row.name) for row in transaction.execute(_limited(transaction.sql))}
    moving = [
        {"route": route}
        for route, policy in policies.items()
        if gates.admit(policy.gates) == "all"
        and not any(rate_limit.key in limited for rate_limit in policy.rate_limits)
    ]
    found = transaction.execute(
        _stuck(transaction.sql), routes=rows_param(moving), ago=-STUCK_AFTER_SECONDS, page=LOOKED_AT
    )
    return [row.route for row in found]


def unordered(database: Database) -> int | None:
    """The first event that arrived a minute ago and has no place in its lane yet, while nothing at all was recorded.

    A relay that works off a mountain of arrivals may record nothing meanwhile; but then it is another event soon.
    """
    with database.read() as transaction:
        return _first_unordered(transaction)


def _first_unordered(transaction: Transaction) -> int | None:
    found = transaction.execute(_unordered(transaction.sql), ago=-STUCK_AFTER_SECONDS)
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
    gates = read_gates(database)
    with database.read() as transaction:
        of_view = _of_view(transaction, *_OF_RELAYS, *(() if host is not None else _FOR_PEOPLE))
        found = _alive(transaction, host) if host is not None else of_view["no_relay"]
        found += of_view["step_failed"] + of_view["crash_loop"]
        first = _first_unordered(transaction)
        if first is not None:
            found.append(Trouble("unordered", None, f"event {first} has waited a minute for its place in its lane"))
        found += [
            Trouble("stuck", route, f"route {route}: due for a minute, and nothing moves")
            for route in _stuck_routes(transaction, policies, gates)
        ]
        if host is None:
            found += of_view["config_differs"] + of_view["failing"]
            found += _blocked(transaction) + of_view["command"] + of_view["command_failed"]
    return found


def relays_alive(database: Database, host: str | None = None) -> list[Trouble]:
    """A finding when no relay is alive, on any host or on this one."""
    with database.read() as transaction:
        return _of_view(transaction, "no_relay")["no_relay"] if host is None else _alive(transaction, host)


def _alive(transaction: Transaction, host: str) -> list[Trouble]:
    alive = transaction.execute(_alive_on(transaction.sql), host=host, ago=-float(GONE_SECONDS))
    why = f"no relay on {host} has sent a heartbeat for {GONE_SECONDS} s"
    return [] if alive else [Trouble("no_relay", None, why)]


def relays_in_trouble(database: Database) -> list[Trouble]:
    """Relays that run and whose steps fail, and hosts whose relays die soon after they start."""
    with database.read() as transaction:
        found = _of_view(transaction, "step_failed", "crash_loop", "config_differs")
    return found["config_differs"] + found["step_failed"] + found["crash_loop"]


def waits_for_a_person(database: Database) -> list[Trouble]:
    """Lanes that are blocked, commands that no relay takes up, and commands that failed lately."""
    with database.read() as transaction:
        return _blocked(transaction) + _commands(transaction)


def routes_in_trouble(database: Database) -> list[Trouble]:
    """Routes of which every attempt since the last success failed."""
    with database.read() as transaction:
        return _of_view(transaction, "failing")["failing"]


def commands_in_trouble(database: Database) -> list[Trouble]:
    """Commands that no relay takes up, and commands that failed lately."""
    with database.read() as transaction:
        return _commands(transaction)


def _commands(transaction: Transaction) -> list[Trouble]:
    found = _of_view(transaction, *_OF_COMMANDS)
    return found["command"] + found["command_failed"]


_OF_RELAYS: tuple[Finding, ...] = ("no_relay", "step_failed", "crash_loop")
_OF_COMMANDS: tuple[Finding, ...] = ("command", "command_failed")
_FOR_PEOPLE: tuple[Finding, ...] = ("config_differs", "failing", *_OF_COMMANDS)


def _blocked(transaction: Transaction) -> list[Trouble]:
    return [
        Trouble("blocked", row.route, f"route {row.route}: {_so_many(row.lanes)} blocked: `relay dead` lists why")
        for row in transaction.execute(_BLOCKED, most=MOST_BLOCKED)
    ]


def _of_view(transaction: Transaction, *wanted: Finding) -> Mapping[Finding, list[Trouble]]:
    """Read some branches of the view in one statement."""
    found: dict[Finding, list[Trouble]] = {finding: [] for finding in wanted}
    for row in transaction.execute(_branches(transaction.sql, wanted)):
        finding: Finding = row.finding
        why = "; ".join(row.why.splitlines())
        found[finding].append(Trouble(finding, row.route, why if row.route is None else f"route {row.route}: {why}"))
    return found


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
def _branches(sql: Sql, wanted: tuple[Finding, ...]) -> TextClause:
    """The first rows of some branches of the view, by the clock of this check."""
    every = branches(SqlClock(sql.name, f"(SELECT {sql.now})"))
    return text(
        "\nUNION ALL\n".join(
            f"SELECT * FROM (SELECT b.finding, b.route, b.why FROM ({every[each]}) b ORDER BY b.why LIMIT 10) of_{each}"
            for each in wanted
        )
    )


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
def _stuck(sql: Sql) -> TextClause:
    since = sql.plus_seconds(f"(SELECT {sql.now})", ":ago")
    of_route = "SELECT 1 FROM open_delivery o WHERE o.route = routes.route"
    return text(f"""
WITH lately AS MATERIALIZED (SELECT DISTINCT f.route FROM ({NEWEST_FACTS}) f WHERE f.at > {since})
SELECT routes.route
FROM {sql.rows("routes", route="text")}
WHERE ({_overdue(since)}
       OR EXISTS ({of_route} AND o.state = 'in_flight' AND o.lease_until < {since}))
  AND NOT EXISTS ({of_route} AND o.state = 'in_flight' AND o.lease_until > (SELECT {sql.now}))
  AND NOT EXISTS (SELECT 1 FROM lately l WHERE l.route = routes.route)
ORDER BY routes.route
""")


def _overdue(since: str) -> str:
    """True when something is due and not paused. Looks from both ends: a pause may hold back any number of deliveries."""
    ends = [
        f"""EXISTS (
        SELECT 1 FROM (
            SELECT seq FROM open_delivery
            WHERE route = routes.route AND state = 'ready' AND due_at < {since}
            ORDER BY due_at {direction}, seq {direction}
            LIMIT :page) o
        WHERE {NOT_PAUSED})"""
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
WHERE i.received_at < {since} AND NOT EXISTS (SELECT 1 FROM ({NEWEST_FACTS}) f WHERE f.at > {since})
""")
