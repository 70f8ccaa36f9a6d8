"""Leases on deliveries in flight: renews them, gives back unstarted ones, and rescues expired ones."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Sequence
from datetime import datetime, timedelta
from typing import Any

from inbox.clock import steady
from inbox.events import states
from inbox.events.timestamps import as_time
from relay.delivery.alerts import list_deaths
from relay.delivery.facts import AnyFact
from relay.delivery.lifecycle import apply_fact
from relay.delivery.policy import LEFT_TO_OTHERS, decide_abandoned
from relay.store.alerts import store_alerts
from relay.store.database import Database
from relay.store.deliveries import LeaseKey, as_open_delivery, format_key, read_rows, select_leased, write_back
from relay.store.sequence import forget_applied, quarantine, settle_lanes
from relay.store.statement import Statement, sql
from relay.store.transaction import Transaction
from relay.store.work import Work, process_in_parts

LEASE_SECONDS = states.LEASE_SECONDS


def renew(database: Database, held: Collection[LeaseKey]) -> set[LeaseKey]:
    """Extend these leases. Returns the extended leases. A missing one is lost, or its row is locked now.

    Only leases that this process knows are renewed: a claim whose commit was never confirmed has to expire.
    """
    with database.write() as transaction:
        renewed = transaction.execute(_RENEW, held=held, lease=LEASE_SECONDS)
        return {(row.seq, row.route, row.lease_token) for row in renewed}


_RENEW = Statement(f"""
WITH mine AS MATERIALIZED (
    SELECT o.seq, o.route, o.lease_token
    FROM {sql.deliveries("held", token="bigint")}
    WHERE o.state || '' = 'in_flight' AND o.lease_token = held.token
    ORDER BY o.seq, o.route
    {sql.lock("o", skip=True)}
)
UPDATE open_delivery
SET lease_until = {sql.plus_seconds(f"(SELECT {sql.now})", ":lease")}
FROM mine
WHERE {sql.has_key("open_delivery", "mine", found=True)} AND open_delivery.lease_token = mine.lease_token
RETURNING open_delivery.seq, open_delivery.route, open_delivery.lease_token
""")


def give_back(work: Work, claimed: Sequence[LeaseKey]) -> tuple[set[LeaseKey], int]:
    """Give back leases whose attempt never began: the attempt is not used, and the delivery is due at once.

    Their lanes are settled again, as an older event that arrived meanwhile goes first. Leases expire in lanes that can't
    be settled; leases of resting routes are skipped.

    Returns:
        The processed leases, and how many of them were still held.
    """
    done, number = set[LeaseKey](), 0
    for some, returned in process_in_parts(
        work,
        "give_back",
        claimed,
        process=lambda some: ({*some}, _give_back_in_order(work, some)),
        quarantine_one=lambda one, _error: ({one}, 0),
        name=lambda one: format_key(one[:2]),
        routes_of=lambda one: one[1:2],
        least_items=len(claimed),
    ):
        done, number = done | some, number + returned
    return done, number


def _give_back_in_order(work: Work, claimed: Sequence[LeaseKey]) -> int:
    with work.write() as transaction:
        transaction.take_order_lock(route for _, route, _ in claimed)
        returned = transaction.execute(_GIVE_BACK, returned=claimed)
        # After the UPDATE: with an earlier time the head would look attempted, as due later, and stay ahead of an older event.
        now = transaction.now()
        lanes = [(row.route, row.lane) for row in returned]
        write_back(transaction, settle_lanes(transaction, (), work.policies, now, lanes))
    return len(returned)


_GIVE_BACK = Statement(f"""
UPDATE open_delivery
SET state = 'ready', attempt = open_delivery.attempt - 1, due_at = (SELECT {sql.now}), lease_until = NULL, lease_token = NULL,
    relay_node = NULL
FROM {sql.rows("returned", seq="bigint", route="text", token="bigint")}
WHERE {sql.has_key("open_delivery", "returned")} AND open_delivery.state || '' = 'in_flight'
  AND open_delivery.lease_token = returned.token
RETURNING open_delivery.route, open_delivery.lane
""")


MOST_UNNOTICED_SECONDS = 1.0
"""The largest clock step to ignore. Relays stop trusting a lease a second before it expires, so a small step is harmless."""
_QUICK_SECONDS = 0.2
_TRIES = 3


class DatabaseClock:
    """Detects steps of the database's clock by comparing it with the local steady clock. Don't share it between threads."""

    def __init__(self, own: Callable[[], float] = steady, on_step: Callable[[float], None] = lambda _: None) -> None:
        """Prepare the comparison. `on_step` is called with each step in seconds, negative if the clock went back."""
        self._own = own
        self._on_step = on_step
        self._ahead: float | None = None
        """The minimum lead of the database's clock over ours, in seconds."""
        self._settled_at = -math.inf

    def read(self, transaction: Transaction) -> datetime:
        """Read the database's time and compare. Call it often: drift between two readings counts as a step."""
        for _ in range(_TRIES):
            before = self._own()
            now = transaction.now()
            after = self._own()
            if after - before < _QUICK_SECONDS:  # a slow response gives only a rough difference
                break
        self._compare(now.timestamp() - after, now.timestamp() - before)
        return now

    def is_steady(self) -> bool:
        """True when every living relay has renewed its leases since the last step."""
        return self._own() >= self._settled_at

    def _compare(self, least: float, most: float) -> None:
        before, self._ahead = self._ahead, least
        if before is None:
            return
        if abs(most - before) > MOST_UNNOTICED_SECONDS:
            self._settled_at = self._own() + LEASE_SECONDS
            self._on_step(most - before)


STEP = "rescue"
BATCH = 200
"""Leases in one transaction: some 70 ms. Each may be in a separate lane, and its waiting deliveries are folded too."""
TOO_LONG_SECONDS = LEASE_SECONDS + 5
"""Remaining time in seconds that a lease never has by a correct clock."""
OWN_TRANSACTION = 8
"""Leases of one route that justify a separate transaction, which locks only that route."""


def rescue_expired(
    work: Work, trusted: Iterable[LeaseKey] = (), clock: DatabaseClock | None = None
) -> list[tuple[int, str, AnyFact]]:
    """Rescue deliveries from expired leases, so that another attempt can be made. The effect of the last one is unknown.

    A lease that ends over `TOO_LONG_SECONDS` from now also counts as expired: the database's clock was set back.

    Leases that this process still trusts are skipped. For a while after a step of the `clock`, all leases are skipped, as
    their relays may be alive. A lease on an unknown route is left to relays whose configuration has the route. If none
    takes it within `LEFT_TO_OTHERS`, the delivery becomes ready, but never dead.

    Returns:
        seq, route and fact of each rescued delivery.
    """
    clock = clock or DatabaseClock()
    with work.database.read() as transaction:
        now = clock.read(transaction)
        if not clock.is_steady():
            return []
        expired = transaction.execute(
            _EXPIRED,
            batch=BATCH,
            at=now,
            trusted=list(trusted),
            resting=sorted(work.locked_routes.list_resting()),
            known=sorted(work.policies),
            since=-LEFT_TO_OTHERS.total_seconds(),
        )
    parts = process_in_parts(
        work,
        STEP,
        [(row.seq, row.route, row.lease_token) for row in expired],
        process=lambda leases: _rescue(work, clock, leases),
        quarantine_one=lambda lease, error: _quarantine(work, lease, error),
        name=lambda lease: format_key(lease[:2]),
        routes_of=lambda lease: lease[1:2],
        least_items=OWN_TRANSACTION,
    )
    return [fact for part in parts for fact in part]


def _rescue(work: Work, clock: DatabaseClock, leases: Sequence[LeaseKey]) -> list[tuple[int, str, AnyFact]]:
    with work.write() as transaction:
        transaction.take_order_lock(route for _, route, _ in leases)
        now = clock.read(transaction)
        if not clock.is_steady():
            return []
        rows = read_rows(transaction, [(seq, route) for seq, route, _ in leases], "skip")
        abandoned = []
        for row in select_leased(rows, leases).values():
            if not _is_over(row, now):
                continue
            delivery = as_open_delivery(row)
            abandoned.append(
                apply_fact(delivery, decide_abandoned(delivery, row.relay_node, work.policies.get(row.route)), now)
            )
        store_alerts(transaction, list_deaths(abandoned), now)
        forget_applied(transaction, ((row.route, row.lane) for row in abandoned))
        settled = settle_lanes(transaction, abandoned, work.policies, now)
        transaction.queue_writes()
        write_back(transaction, settled)
    return [(row.seq, row.route, row.facts[-1]) for row in abandoned]


def _quarantine(work: Work, lease: LeaseKey, error: Exception) -> list[tuple[int, str, AnyFact]]:
    seq, route, token = lease
    dead = quarantine(work, (seq, route), cause="unprocessable", error=error, token=token)
    return [] if dead is None else [(seq, route, dead)]


def _is_over(row: Any, now: datetime) -> bool:  # noqa: ANN401  # a result row
    until = as_time(row.lease_until)
    return until < now or until > now + timedelta(seconds=TOO_LONG_SECONDS)


_AT = sql.time(":at")
_TRUSTED = sql.rows("trusted", seq="bigint", route="text", token="bigint")
# Skips locked rows, which could otherwise fill a batch and hide the others.
_EXPIRED = Statement(f"""
SELECT o.seq, o.route, o.lease_token FROM open_delivery o
WHERE o.state = 'in_flight' AND (o.lease_until < {_AT} OR o.lease_until > {sql.plus_seconds(_AT, str(TOO_LONG_SECONDS))})
  AND NOT EXISTS (
    SELECT 1 FROM {_TRUSTED} WHERE trusted.seq = o.seq AND trusted.route = o.route AND trusted.token = o.lease_token)
  AND o.route NOT IN (SELECT route FROM {sql.rows("resting", route="text")})
  AND (o.route IN (SELECT route FROM {sql.rows("known", route="text")}) OR o.lease_until < {sql.plus_seconds(_AT, ":since")})
ORDER BY o.seq, o.route
LIMIT :batch
{sql.lock("o", skip=True)}
""")
