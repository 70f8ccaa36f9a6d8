"""Claim: leases heads, shared by all relays through the database alone. Leases and due times use the database's clock."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from datetime import datetime, timedelta
from functools import cache
from typing import Any, NamedTuple

from sqlalchemy import TextClause, text
from sqlalchemy.exc import DBAPIError

from inbox.db.dialect import Sql, is_turn_timeout, is_wait_timeout
from inbox.db.parameters import rows_param
from inbox.events.states import SUSPECT_CRASHES
from inbox.events.timestamps import as_time, time_text
from relay.delivery.gates import NO_FILTER, BreakerState, ClaimFilter, Entity, GateKey, RateLimit, probe
from relay.delivery.outcome import Delivery
from relay.delivery.policy import Policies
from relay.store.database import Database, read_keys
from relay.store.events import with_events
from relay.store.gates import Locked, lock_all, store, use_rates
from relay.store.leases import LEASE_SECONDS
from relay.store.paused_entities import not_paused, paused_param, see
from relay.store.scan_positions import LATE, START, Cursor, Places
from relay.store.transaction import Key, Transaction
from relay.store.unreadable import claiming_what_can_be_loaded

STEP = "claim"
STEP_OF_SUSPECTS = "claim_suspect"
PROBE_GIVEN_UP_AFTER = timedelta(seconds=60)
"""The longest wait for a relay that has claimed the probe of a breaker and may have died."""

_NOTHING_TO_PASS: Mapping[str, ClaimFilter] = {}
_NO_POLICIES: Policies = {}

Wanted = Sequence[tuple[Sequence[str], int]]
"""For each destination its routes in turn, and the number of deliveries that it has room for."""


def claim(
    database: Database,
    relay_node: str,
    wanted: Wanted,
    claim_filters: Mapping[str, ClaimFilter] = _NOTHING_TO_PASS,
    *,
    places: Places | None = None,
    policies: Policies = _NO_POLICIES,
) -> list[Delivery]:
    """Lease due heads: for each destination, of its routes in turn, as many as there is room for, the longest due first.

    `claim_filters` holds the pauses and rate limits of each route; a route without one has none. `places` keeps scan
    positions between claims; without it each claim scans from the beginning, past some thousands of paused heads at most.

    Any relay may claim any head. Order does not rest on row locks but on there being one head for each lane, which
    makes SKIP LOCKED a mere optimisation. A head that can't be loaded becomes dead, by the `policies` of the routes, and the
    others are claimed. When the gate of a destination stays locked, only that one goes without.
    """
    places = places or Places()

    def claimed_without(without: Collection[str]) -> list[Delivery]:
        rest = _wanted_without(wanted, without)
        return _claim_wanted(database, relay_node, rest, claim_filters, places) if rest else []

    def candidates(without: Collection[str]) -> list[Key]:
        rest = _wanted_without(wanted, without)
        heads = [(route, room, claim_filters.get(route, NO_FILTER).paused) for routes, room in rest for route in routes]
        return _due_keys(database, heads)

    try:
        return claiming_what_can_be_loaded(database, claimed_without, candidates, policies, relay_node, step=STEP)
    except DBAPIError as error:
        if not is_wait_timeout(error) or len(wanted) == 1:
            raise
        claimed: list[Delivery] = []
        for some in wanted:
            with suppress(Exception):  # what is claimed is not to be lost; the next claim meets it again
                claimed += claim(database, relay_node, [some], claim_filters, places=places, policies=policies)
        if not claimed:
            raise
        return claimed


def _wanted_without(wanted: Wanted, without: Collection[str]) -> Wanted:
    if not without:
        return wanted
    rest = [([route for route in routes if route not in without], room) for routes, room in wanted]
    return [(routes, room) for routes, room in rest if routes]


def _claim_wanted(
    database: Database, relay_node: str, wanted: Wanted, claim_filters: Mapping[str, ClaimFilter], places: Places
) -> list[Delivery]:
    with database.write() as transaction:
        transaction.hurry()
        asked = [route for routes, room in wanted if room > 0 for route in routes if route in claim_filters]
        # Two relays that claim at once wait for each other here, and nowhere else.
        gates = lock_all(transaction, {limit.key for route in asked for limit in claim_filters[route].rate_limits})
        rates = _Rates(gates, transaction.now())
        claiming = _Claim(transaction, _lease_of(relay_node), rates, places)
        claimed: list[Any] = []
        for routes, room in wanted:
            left = room
            for route in routes:
                rows = claiming.claim_route(route, left, claim_filters.get(route, NO_FILTER))
                claimed += rows
                left -= len(rows)
        rates.note(transaction)
        return with_events(transaction, claimed)


def claim_probe(
    database: Database,
    relay_node: str,
    route: str,
    breakers: Collection[GateKey],
    claim_filter: ClaimFilter = NO_FILTER,
    *,
    places: Places | None = None,
    policies: Policies = _NO_POLICIES,
) -> list[Delivery]:
    """Lease one due head of a route whose breaker is to be probed, and record that this attempt is the probe.

    If only suspected deliveries are due, it leases one of these: otherwise such a breaker would never close. It leases
    nothing when another relay probes already, or the breaker has opened again; nor when another has the route locked.
    Unloadable heads are handled as by `claim`.
    """

    def claimed(without: Collection[str]) -> list[Delivery]:
        if route in without:
            return []
        with database.write() as transaction:
            now = transaction.lock_order([route])
            rows = _probe(
                transaction,
                now,
                route,
                breakers=breakers,
                claim_filter=claim_filter,
                lease=_lease_of(relay_node),
                places=places or Places(),
            )
            database.back_offs.ended(STEP, [route])
            return with_events(transaction, rows)

    def candidates(_without: Collection[str]) -> list[Key]:
        due = _due_keys(database, [(route, 1, claim_filter.paused)])
        return due or _suspect_keys(database, [route], claim_filter.paused)

    try:
        with database.trying(at_once=True):
            return claiming_what_can_be_loaded(database, claimed, candidates, policies, relay_node, step=STEP)
    except DBAPIError as error:
        if not is_turn_timeout(error) and not is_wait_timeout(error):  # the latter of a gate that a person has locked
            raise
        if route in database.back_offs.of(STEP, even_late=True):
            database.leave(STEP, [route], [route], error)
        else:  # another relay may have it for a moment
            database.back_offs.began(STEP, [route])
        return []


def _probe(
    transaction: Transaction,
    now: datetime,
    route: str,
    *,
    breakers: Collection[GateKey],
    claim_filter: ClaimFilter,
    lease: Mapping[str, object],
    places: Places,
) -> list[Any]:
    gates = lock_all(transaction, {*breakers, *(limit.key for limit in claim_filter.rate_limits)})
    tried = {key: gate.breaker for key, gate in gates.items() if key in breakers}
    known = {key: breaker for key, breaker in tried.items() if breaker.state is not BreakerState.CLOSED}
    if any(breaker.lets_claim(now) != "probe" for breaker in known.values()):
        return []
    rates = _Rates(gates, now)
    rows = _Claim(transaction, lease, rates, places).claim_route(route, 1, claim_filter)
    if not rows and not transaction.execute(_SUSPECT_IN_HAND, node=lease["node"]):
        rows = _lease_suspect(transaction, lease, [route], claim_filter.paused)
    if rows:
        rates.note(transaction)
        store(transaction, {key: probe(breaker, now, PROBE_GIVEN_UP_AFTER) for key, breaker in known.items()})
    return rows


def claim_suspect(
    database: Database,
    relay_node: str,
    routes: Sequence[str],
    paused: Sequence[Entity] = (),
    policies: Policies = _NO_POLICIES,
) -> list[Delivery]:
    """Lease at most one due head whose lease ran out several times in a row: it may have killed the process.

    `claim` leaves these out. A relay that has only one of them in hand finds out which it is: those that were merely
    in hand with it come through alone. Deliveries of entities that are `paused` are passed over. One that can't be loaded is
    dealt with as by `claim`.
    """

    def claimed(without: Collection[str]) -> list[Delivery]:
        if not candidates(without):  # a look without a write
            return []
        with database.write() as transaction:
            rest = [route for route in routes if route not in without]
            rows = _lease_suspect(transaction, _lease_of(relay_node), rest, paused)
            return with_events(transaction, rows)

    def candidates(without: Collection[str]) -> list[Key]:
        return _suspect_keys(database, [route for route in routes if route not in without], paused)

    return claiming_what_can_be_loaded(database, claimed, candidates, policies, relay_node, step=STEP_OF_SUSPECTS)


class _Rates:
    """Rate limits of all routes that a claim asks for; their gates stay locked until the claim ends."""

    def __init__(self, gates: Mapping[GateKey, Locked], now: datetime) -> None:
        self._used_until = {key: gate.rate_used_until for key, gate in gates.items()}
        self.now = now
        self._changed: dict[GateKey, datetime] = {}

    def afford(self, rate_limits: Sequence[RateLimit], most: int) -> int:
        """The number of attempts, up to `most`, that the limits allow; 0 where a gate is missing as it is just resumed."""
        if any(limit.key not in self._used_until for limit in rate_limits):
            return 0
        return min([most, *(limit.affords(self._used_until[limit.key], self.now) for limit in rate_limits)])

    def use(self, rate_limits: Sequence[RateLimit], attempts: int) -> None:
        """Use these rate limits for this many attempts."""
        for limit in rate_limits:
            used_until = limit.used(self._used_until[limit.key], self.now, attempts)
            self._used_until[limit.key] = self._changed[limit.key] = used_until

    def note(self, transaction: Transaction) -> None:
        """Store the used rates."""
        if self._changed:
            use_rates(transaction, self._changed)


def _lease_of(relay_node: str) -> dict[str, object]:
    """The parameters of a new lease."""
    return {"token": secrets.randbits(62), "node": relay_node, "lease": LEASE_SECONDS}


class _Claim(NamedTuple):
    """One claim, of several routes, in one transaction."""

    transaction: Transaction
    lease: Mapping[str, object]
    rates: _Rates
    places: Places

    def claim_route(self, route: str, most: int, claim_filter: ClaimFilter) -> list[Any]:
        """Claim as many as the rate limits allow, and use them."""
        affordable = self.rates.afford(claim_filter.rate_limits, most)
        if affordable <= 0:
            return []
        paused = claim_filter.paused
        claimed = self._not_paused(route, affordable, paused) if paused else self._first(route, affordable)
        if claimed:
            self.rates.use(claim_filter.rate_limits, len(claimed))
        return claimed

    def _first(self, route: str, most: int) -> list[Any]:
        """Claim the first that are due; all before the last of them are then claimed, or locked by others."""
        floor = self.places.due[route]
        with floor.look() as begin:
            claimed = self._execute(_claim, route=route, most=most, begin=time_text(begin or START[0]))
        if self.transaction.sql.keeps_ended_entries:
            late = self.rates.now - LATE
            floor.at = late if len(claimed) < most else max(as_time(row.was_due_at) for row in claimed)
        return claimed

    def _not_paused(self, route: str, most: int, paused: tuple[Entity, ...]) -> list[Any]:
        """Claim the first that are due and not paused, from the place where the last look ended."""
        passing, enough = self.places.passing[route], _OFFERED * most
        self.places.due[route].at = None  # after a resume, old due rows lie before the saved position
        looked: list[Cursor] = []
        free: list[int] = []
        for cursor, pages in passing.begin(paused, self.rates.now):
            if len(free) < enough:
                see(self.transaction, route, paused, cursor, pages=pages, enough=enough)
                looked.append(cursor)
                free += [head.key[1] for head in cursor.seen if not head.paused]
        these = rows_param({"seq": seq} for seq in dict.fromkeys(free[:enough]))
        claimed = self._execute(_claim_these, route=route, most=most, these=these) if free else []
        passing.end(looked, {row.seq for row in claimed}, self.rates.now)
        return claimed

    def _execute(self, statement: Callable[[Sql], TextClause], **parameters: object) -> list[Any]:
        return self.transaction.execute(statement(self.transaction.sql), **self.lease, **parameters)


_OFFERED = 4
"""Candidates for each head that is wanted: other relays may have locked some."""


def _lease_suspect(
    transaction: Transaction, lease: Mapping[str, object], routes: Sequence[str], paused: Sequence[Entity]
) -> list[Any]:
    statement = _lease_of_suspect(transaction.sql, passing_over=bool(paused))
    return transaction.execute(statement, **lease, **_suspect_params(routes, paused))


def _due_keys(database: Database, heads: Sequence[tuple[str, int, Sequence[Entity]]]) -> list[Key]:
    """Keys of the heads that are due first on each route, as many as there is room for."""
    return [
        key
        for route, most, paused in heads
        for key in read_keys(
            database, _due(database.sql, passing_over=bool(paused)), route=route, most=most, **paused_param(paused)
        )
    ]


def _suspect_keys(database: Database, routes: Sequence[str], paused: Sequence[Entity]) -> list[Key]:
    statement = _keys_of_suspects(database.sql, passing_over=bool(paused))
    return read_keys(database, statement, **_suspect_params(routes, paused))


def _suspect_params(routes: Sequence[str], paused: Sequence[Entity]) -> dict[str, str]:
    return {"routes": rows_param({"route": route} for route in routes), **paused_param(paused)}


@cache
def _due(sql: Sql, *, passing_over: bool) -> TextClause:
    return text(f"""
SELECT o.seq, o.route FROM open_delivery o
WHERE o.state = 'ready' AND o.route = :route AND o.crashes < {SUSPECT_CRASHES} AND o.due_at <= (SELECT {sql.now})
{not_paused(sql) if passing_over else ""}
ORDER BY o.due_at, o.seq
LIMIT :most
""")


@cache
def _keys_of_suspects(sql: Sql, *, passing_over: bool = False) -> TextClause:
    return text(f"SELECT o.seq, o.route {_due_suspect(sql, passing_over=passing_over)}")


_SUSPECT_IN_HAND = text(f"""
SELECT 1 FROM open_delivery WHERE state = 'in_flight' AND crashes >= {SUSPECT_CRASHES} AND relay_node = :node LIMIT 1
""")


@cache
def _lease_of_suspect(sql: Sql, *, passing_over: bool = False) -> TextClause:
    return _lease(
        sql,
        f"""
    SELECT o.seq, o.route {_due_suspect(sql, passing_over=passing_over)}
    {sql.for_update and "FOR UPDATE OF o SKIP LOCKED"}""",
    )


def _due_suspect(sql: Sql, *, passing_over: bool) -> str:
    return f"""FROM open_delivery o JOIN {sql.rows("routes", route="text")} ON routes.route = o.route
    WHERE o.state = 'ready' AND o.crashes >= {SUSPECT_CRASHES} AND o.due_at <= (SELECT {sql.now})
    {not_paused(sql) if passing_over else ""}
    ORDER BY o.due_at, o.seq
    LIMIT 1"""


@cache
def _claim(sql: Sql) -> TextClause:
    return _lease(
        sql,
        f"""
    SELECT seq, route, due_at FROM open_delivery o
    WHERE state = 'ready' AND route = :route AND crashes < {SUSPECT_CRASHES}
      AND due_at <= (SELECT {sql.now}) AND due_at >= {sql.time(":begin")}
    ORDER BY due_at, seq
    LIMIT :most
    {sql.skip_locked}""",
        "due.due_at AS was_due_at" if sql.keeps_ended_entries else "NULL AS was_due_at",
    )


@cache
def _claim_these(sql: Sql) -> TextClause:
    of_route = f"o.seq = these.seq AND o.route = :route AND o.state = 'ready' AND o.due_at <= (SELECT {sql.now})"
    return _lease(
        sql,
        f"""
    SELECT o.seq, o.route FROM {sql.rows("these", seq="bigint")} JOIN open_delivery o ON {of_route}
    ORDER BY o.due_at, o.seq
    LIMIT :most
    {sql.skip_locked and "FOR UPDATE OF o SKIP LOCKED"}""",
    )


_LARGEST = 2**31 - 1
"""The column's largest value: one head edited by hand must not keep the statement from claiming others."""


def _lease(sql: Sql, due: str, besides: str = "") -> TextClause:
    """Check the state once more, so that it holds without the row lock, too; written so that no index answers it.

    `state || ''` stops Postgres from scanning the whole index of heads when its statistics are old.
    """
    return text(f"""
WITH due AS MATERIALIZED ({due}
)
UPDATE open_delivery
SET state = 'in_flight', due_at = NULL,
    attempt = CASE WHEN open_delivery.attempt < {_LARGEST} THEN open_delivery.attempt + 1 ELSE open_delivery.attempt END,
    lease_until = {sql.plus_seconds(f"(SELECT {sql.now})", ":lease")}, lease_token = :token, relay_node = :node
FROM due
WHERE open_delivery.seq = due.seq AND open_delivery.route = due.route AND open_delivery.state || '' = 'ready'
RETURNING open_delivery.seq, open_delivery.route, open_delivery.lane, open_delivery.attempt, open_delivery.run,
    open_delivery.lease_token, open_delivery.crashes{besides and f", {besides}"}
""")
