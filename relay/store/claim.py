"""Claim: leases heads. Relays share the work through the database alone; leases and due times use the database's clock.

An attempt counts once its lease is committed, and its event is loaded afterwards. So a body that kills the process, or
loads too slowly, is handled like any other crash: it is not loaded again until the lease has expired.
"""

from __future__ import annotations

import secrets
import time
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any, NamedTuple

from sqlalchemy import text
from sqlalchemy.exc import DBAPIError

from inbox.db.dialect import blames_items, error_text, is_wait_timeout, takes_too_long
from inbox.db.order_lock import LOCKED_ROW_SECONDS
from inbox.errors import PayloadGone
from inbox.events.states import SUSPECT_CRASHES
from inbox.events.timestamps import as_time
from relay.delivery.gates import BreakerState, GateKey, RateLimit, probe
from relay.delivery.outcome import Delivery
from relay.delivery.policy import UNKNOWN_ROUTE
from relay.store.database import COMMIT_LAG, Database, ScanStarts
from relay.store.deliveries import format_key
from relay.store.events import load_events
from relay.store.gates import ENTITY_NOT_PAUSED, GateRow, lock_all, store_breakers, use_rates
from relay.store.leases import LEASE_SECONDS, give_back
from relay.store.sequence import Cause, quarantine
from relay.store.statement import Statement, sql
from relay.store.transaction import FailedAlone, Transaction
from relay.store.work import Work

STEP = "claim"
STEP_OF_SUSPECTS = "claim_suspect"
PROBE_GIVEN_UP_AFTER = timedelta(seconds=60)
"""The longest wait for the result of a breaker's probe, as the relay that makes it may have died."""
MOST_BYTES = 32 * 1024 * 1024
"""Bytes of bodies that a relay holds, divided among its destinations; a larger body is held alone."""
LOADED_AT_ONCE = 4 * 1024 * 1024
"""Bytes of bodies that are read together; a larger body is read alone. Loading from Postgres takes three times the memory."""
MANY_ROUTES = 16
"""Number of routes above which a separate statement first finds the routes with due deliveries."""
LONGEST_SECONDS = LOCKED_ROW_SECONDS / 2
"""Time after which a claim starts no further route, as others wait for its rows. Callers rotate the order of routes."""

_BEGINNING = datetime(1, 1, 1, tzinfo=UTC)


class FreeCapacity(NamedTuple):
    """The free capacity of a destination, in deliveries and bytes. The last delivery may exceed the bytes."""

    routes: Sequence[str]
    """Routes to the destination, in the order in which they are claimed."""
    number: int
    most_bytes: int = MOST_BYTES


def claim(work: Work, wanted: Sequence[FreeCapacity], scans: ScanStarts | None = None) -> list[Delivery]:
    """Lease due heads up to each destination's free capacity, route by route, the longest due first.

    `scans` keeps scan positions between claims; without it each claim scans from the beginning.

    Any relay may claim any head. SKIP LOCKED only avoids waits: each lane has one head, so a second one can't be
    claimed. A head that can't be loaded becomes dead, and the others are claimed.
    """
    return _load(work, _lease_wanted(work, wanted, scans or ScanStarts()), step=STEP)


def _limits(work: Work, route: str) -> Sequence[RateLimit]:
    return work.policies.get(route, UNKNOWN_ROUTE).rate_limits


def _lease_wanted(work: Work, wanted: Sequence[FreeCapacity], scans: ScanStarts) -> list[Any]:
    asked = [route for room in wanted if room.number > 0 for route in room.routes]
    due = set(asked if len(asked) <= MANY_ROUTES else find_due_routes(work.database, asked))
    if not due:
        return []
    with work.write() as transaction:
        claiming = _Claim(work, transaction, _lock_rate_limits(work, transaction, due), scans)
        until = (
            time.monotonic() + LONGEST_SECONDS
        )  # after the wait for SQLite's write lock, so that it claims something
        claimed: list[Any] = []
        for room in wanted:
            left, left_bytes = room.number, room.most_bytes
            for route in room.routes:
                if route not in due or left <= 0 or left_bytes <= 0 or time.monotonic() > until:
                    continue
                rows = claiming.claim_route(route, left, left_bytes)
                claimed += rows
                left -= len(rows)
                left_bytes -= sum(row.body_bytes for row in rows)
        claiming.note_rates()
    return claimed


def _lock_rate_limits(work: Work, transaction: Transaction, routes: Iterable[str]) -> dict[GateKey, GateRow]:
    """Lock the gates of these routes' rate limits. Locked ones are skipped, so that they delay no other route."""
    keys = {limit.key for route in routes for limit in _limits(work, route)}
    return lock_all(transaction, keys, skips_locked=True)


def _load(work: Work, leased: Sequence[Any], *, step: str) -> list[Delivery]:
    """Load the events of leased deliveries. A delivery that can't be loaded becomes dead.

    A delivery that is too slow to load is skipped until its lease expires. After a second slow one, or if the database
    can't load any delivery (such as without a table), the rest are given back.
    """
    loaded: list[Delivery] = []
    too_slow = 0
    todo = deque(_split_by_size(sorted(leased, key=lambda row: (row.seq, row.route))))
    try:
        while todo:
            some = todo[0]
            try:
                with work.database.read() as transaction:
                    some_loaded = load_events(transaction, some)
            except Exception as error:
                if not blames_items(error) and not takes_too_long(error):
                    raise
                too_slow += len(some) == 1 and takes_too_long(error)
                if too_slow > 1:  # the database itself is slow, and the leases of the others would expire meanwhile
                    raise
                if len(some) > 1:
                    todo.extend([row] for row in some)
                else:
                    _set_aside_unloadable(work, some[0], error, step=step)
            else:  # only after the read succeeds, as an error gives these rows back
                loaded += some_loaded
            todo.popleft()
    except Exception as error:
        with suppress(Exception):
            give_back(work, [(row.seq, row.route, row.lease_token) for part in todo for row in part])
        if not loaded:
            raise
        work.observer.on_database_trouble(step, error)
    return loaded


def _set_aside_unloadable(work: Work, row: ClaimedRow, error: Exception, *, step: str) -> None:
    """Quarantine a delivery that can't be loaded. If that fails too, its lease expires."""
    key = (row.seq, row.route)
    work.observer.on_failed_alone(FailedAlone(step, format_key(key), error_text(error)))
    if blames_items(error):
        cause: Cause = "payload_gone" if isinstance(error, PayloadGone) else "unprocessable"
        with suppress(DBAPIError):
            quarantine(work, key, cause=cause, error=error, token=row.lease_token)


def _split_by_size(leased: Sequence[Any]) -> list[list[Any]]:
    """Split rows into parts whose bodies fit in `LOADED_AT_ONCE`."""
    parts: list[list[Any]] = []
    size = LOADED_AT_ONCE
    for row in leased:
        size += row.body_bytes
        if not parts or size > LOADED_AT_ONCE:
            parts.append([])
            size = row.body_bytes
        parts[-1].append(row)
    return parts


def claim_probe(work: Work, route: str, scans: ScanStarts | None = None) -> list[Delivery]:
    """Lease one due head of a route whose breaker may be probed, and set the breaker half open.

    If only a suspect can be claimed, it leases the suspect: otherwise the breaker would never close. It leases nothing
    if another relay is probing or has locked the route, or if the breaker has opened again. Unloadable heads are handled as
    in `claim`.
    """
    try:
        with work.write() as transaction:
            rows = _probe(work, transaction, transaction.take_order_lock([route]), route, scans or ScanStarts())
    except DBAPIError as error:
        if not is_wait_timeout(error):
            raise
        work.rest_routes(STEP, {route}, error)
        return []
    return _load(work, rows, step=STEP)


def _probe(work: Work, transaction: Transaction, now: datetime, route: str, scans: ScanStarts) -> list[Any]:
    policy = work.policies.get(route, UNKNOWN_ROUTE)
    breakers = policy.breakers
    gates = lock_all(transaction, {*breakers, *(limit.key for limit in policy.rate_limits)})
    tried = {key: gate.breaker for key, gate in gates.items() if key in breakers}
    known = {key: breaker for key, breaker in tried.items() if breaker.state is not BreakerState.CLOSED}
    if any(breaker.lets_claim(now) != "probe" for breaker in known.values()):
        return []
    claiming = _Claim(work, transaction, gates, scans)
    rows = claiming.claim_route(route, 1, MOST_BYTES)
    if not rows and not transaction.execute(_SUSPECT_IN_HAND, node=work.node):
        rows = claiming.claim_suspect([route])
    if rows:
        claiming.note_rates()
        store_breakers(transaction, {key: probe(breaker, now, PROBE_GIVEN_UP_AFTER) for key, breaker in known.items()})
    return rows


def claim_suspect(work: Work, routes: Sequence[str]) -> list[Delivery]:
    """Lease at most one suspect: a due head whose lease expired several times in a row, so it may have killed the process.

    `claim` skips suspects. With one suspect in hand at a time, a crash identifies its cause, and innocent suspects are
    delivered. Unloadable heads are handled as in `claim`.
    """
    with work.database.read() as reading:  # usually no suspect exists: avoid a write transaction
        if not reading.execute(_ANY_SUSPECT):
            return []
    with work.write() as transaction:
        claiming = _Claim(work, transaction, _lock_rate_limits(work, transaction, routes), ScanStarts())
        rows = claiming.claim_suspect(routes)
        claiming.note_rates()
    return _load(work, rows, step=STEP_OF_SUSPECTS)


def find_due_routes(database: Database, routes: Sequence[str]) -> list[str]:
    """Return the routes with due deliveries."""
    with database.read() as transaction:
        return [row.route for row in transaction.execute(_DUE_ROUTES, routes=routes)]


class ClaimedRow(NamedTuple):
    """A leased delivery whose event is not loaded yet."""

    seq: int
    route: str
    lane: str
    attempt: int
    run: int
    lease_token: int
    crashes: int
    body_bytes: int


class _Claim:
    """A claim on several routes in one transaction, which keeps the gates with a rate limit locked."""

    def __init__(
        self, work: Work, transaction: Transaction, gates: Mapping[GateKey, GateRow], scans: ScanStarts
    ) -> None:
        self.transaction = transaction
        self._limits = partial(_limits, work)
        self._lease = {"token": secrets.randbits(62), "node": work.node, "lease": LEASE_SECONDS}
        self._scans = scans
        self._now = transaction.now() if gates else _BEGINNING  # without rates, saves a round trip
        self._used_until = {key: gate.rate_used_until for key, gate in gates.items()}
        self._changed: dict[GateKey, datetime] = {}

    def _afford(self, route: str, most: int) -> int:
        """Return the number of attempts, up to `most`, that the rate limits allow; 0 while a gate is locked or being removed."""
        limits = self._limits(route)
        if any(limit.key not in self._used_until for limit in limits):
            return 0
        return min([most, *(limit.affords(self._used_until[limit.key], self._now) for limit in limits)])

    def _use(self, route: str, attempts: int) -> None:
        for limit in self._limits(route):
            used_until = limit.use(self._used_until[limit.key], self._now, attempts)
            self._used_until[limit.key] = self._changed[limit.key] = used_until

    def claim_route(self, route: str, most: int, most_bytes: int) -> list[ClaimedRow]:
        """Claim the first due deliveries, as many as the rate limits allow, and use the limits.

        No claimable delivery is then due before the last claimed one, so the next scan may begin there.
        """
        affordable = self._afford(route, most)
        if affordable <= 0:
            return []
        start = self._scans.due[route]
        with start.scan() as begin:
            due = self.transaction.execute(_DUE, route=route, most=affordable, begin=begin or _BEGINNING)
        fitting = list(_take_within(due, most_bytes))
        is_full = len(fitting) == affordable or len(fitting) < len(due)
        if due:
            start.at = max(as_time(row.due_at) for row in fitting) if is_full else as_time(due[0].now) - COMMIT_LAG
        if fitting:
            self._use(route, len(fitting))
        return self._lease_rows(fitting)

    def claim_suspect(self, routes: Sequence[str]) -> list[ClaimedRow]:
        """Claim at most one delivery that may have killed a process, on a route whose rate limits allow an attempt."""
        affordable = [route for route in routes if self._afford(route, 1) > 0]
        due = self.transaction.execute(_SUSPECT, routes=affordable) if affordable else []
        for row in due:
            self._use(row.route, 1)
        return self._lease_rows(due)

    def _lease_rows(self, due: Sequence[Any]) -> list[ClaimedRow]:
        """Lease the rows just found."""
        if not due:
            return []
        sizes = {row.seq: row.body_bytes for row in due}
        rows = self.transaction.execute(_LEASE, due=[(row.seq, row.route) for row in due], **self._lease)
        return [ClaimedRow._make((*row, sizes[row.seq])) for row in rows]

    def note_rates(self) -> None:
        """Store the used rates."""
        if self._changed:
            use_rates(self.transaction, self._changed)


def _take_within(due: Sequence[Any], most_bytes: int) -> Iterator[Any]:
    """Yield rows until their bodies have used up the bytes."""
    for row in due:
        if most_bytes <= 0:
            return
        yield row
        most_bytes -= row.body_bytes


# Reads one index entry per route: without ORDER BY, Postgres may read the whole table.
_DUE_ROUTES = Statement(f"""
SELECT routes.route FROM {sql.rows("routes", route="text")}
WHERE (SELECT 1 FROM open_delivery o
       WHERE o.state = 'ready' AND o.route = routes.route AND o.due_at <= (SELECT {sql.now})
       ORDER BY o.due_at LIMIT 1) IS NOT NULL
""")


_ANY_SUSPECT = Statement(f"""
SELECT 1 FROM open_delivery WHERE state = 'ready' AND crashes >= {SUSPECT_CRASHES} AND due_at <= (SELECT {sql.now}) LIMIT 1
""")

_SUSPECT_IN_HAND = text(f"""
SELECT 1 FROM open_delivery WHERE state = 'in_flight' AND crashes >= {SUSPECT_CRASHES} AND relay_node = :node LIMIT 1
""")


_BODY_BYTES = "coalesce((SELECT i.body_bytes FROM inbox i WHERE i.seq = o.seq), 0) AS body_bytes"
_SUSPECT = Statement(f"""
SELECT o.seq, o.route, {_BODY_BYTES} FROM open_delivery o JOIN {sql.rows("routes", route="text")} ON routes.route = o.route
WHERE o.state = 'ready' AND o.crashes >= {SUSPECT_CRASHES} AND o.due_at <= (SELECT {sql.now}) AND {ENTITY_NOT_PAUSED}
ORDER BY o.due_at, o.seq
LIMIT 1
{sql.lock("o", skip=True)}
""")


_DUE = Statement(f"""
SELECT o.seq, o.route, o.due_at, {_BODY_BYTES}, (SELECT {sql.now}) AS now FROM open_delivery o
WHERE o.state = 'ready' AND o.route = :route AND o.crashes < {SUSPECT_CRASHES}
  AND o.due_at <= (SELECT {sql.now}) AND o.due_at >= {sql.time(":begin")} AND {ENTITY_NOT_PAUSED}
ORDER BY o.due_at, o.seq
LIMIT :most
{sql.lock("o", skip=True)}
""")


_LARGEST = 2**31 - 1
"""The column's largest value: a row edited by hand must not make the statement fail for all others."""


# Checks the state again, as SQLite has no row locks; `|| ''` keeps the planner from using an index for it.
_LEASE = Statement(f"""
UPDATE open_delivery
SET state = 'in_flight', due_at = NULL,
    attempt = CASE WHEN open_delivery.attempt < {_LARGEST} THEN open_delivery.attempt + 1 ELSE open_delivery.attempt END,
    lease_until = {sql.plus_seconds(f"(SELECT {sql.now})", ":lease")}, lease_token = :token, relay_node = :node
FROM {sql.keys("due")}
WHERE {sql.has_key("open_delivery", "due")} AND open_delivery.state || '' = 'ready'
RETURNING open_delivery.seq, open_delivery.route, open_delivery.lane, open_delivery.attempt, open_delivery.run,
    open_delivery.lease_token, open_delivery.crashes
""")
