"""Leases on deliveries in flight: renewing them, giving back those whose attempt never began, reaping those that expired."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Sequence
from datetime import datetime, timedelta
from typing import Any

from inbox.clock import steady
from inbox.events import states
from inbox.events.timestamps import as_time
from relay.delivery.alerts import deaths
from relay.delivery.facts import AnyFact
from relay.delivery.lifecycle import append
from relay.delivery.policy import LEFT_TO_OTHERS, decide_abandoned
from relay.store.alerts import note
from relay.store.database import Database
from relay.store.deliveries import Claimed, as_open_delivery, key_text, rows_of, still_leased, write_back
from relay.store.sequence import forget_applied, quarantine, settle_lanes
from relay.store.statement import Statement, sql
from relay.store.transaction import Transaction
from relay.store.work import Work, in_parts

LEASE_SECONDS = states.LEASE_SECONDS


def renew(database: Database, held: Collection[Claimed]) -> set[Claimed]:
    """Extend these leases. Returns the extended ones: one that is missing is lost, or locked at this moment.

    Only what is held is renewed: a claim whose commit was never confirmed to us has to run out.
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


def give_back(work: Work, claimed: Sequence[Claimed]) -> tuple[set[Claimed], int]:
    """Return leases whose attempt never began: the attempt is not used, and the delivery is due at once.

    Their lanes are settled again: an older event that came meanwhile goes first. Leases of lanes that can't be settled
    run out; those of routes that rest stay as they are.

    Returns:
        The leases that are dealt with, and how many of them were still held.
    """
    done, number = set[Claimed](), 0
    for some, returned in in_parts(
        work,
        "give_back",
        claimed,
        part=lambda some: ({*some}, _give_back_in_order(work, some)),
        alone=lambda one, _error: ({one}, 0),
        name=lambda one: key_text(one[:2]),
        routes_of=lambda one: one[1:2],
        enough=len(claimed),
    ):
        done, number = done | some, number + returned
    return done, number


def _give_back_in_order(work: Work, claimed: Sequence[Claimed]) -> int:
    with work.write() as transaction:
        transaction.take_order_lock(route for _, route, _ in claimed)
        returned = transaction.execute(_GIVE_BACK, returned=claimed)
        # Not before they are due: a head that is due later keeps its place before an older event.
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
"""A relay trusts a lease for one second less than the database does: a smaller step takes no trusted lease away."""
_QUICK_SECONDS = 0.2
_LOOKS = 3


class DatabaseClock:
    """Remembers the difference between both clocks at its last reading. Don't share it between threads."""

    def __init__(self, own: Callable[[], float] = steady, told: Callable[[float], None] = lambda _: None) -> None:
        """`told` is called with each step in seconds; below zero when the clock went back."""
        self._own = own
        self._told = told
        self._ahead: float | None = None
        """The least number of seconds that the database's clock is ahead of ours."""
        self._settled_at = -math.inf

    def look(self, transaction: Transaction) -> datetime:
        """Read the database's time and compare. Read often: drift between two readings counts as a step."""
        for _ in range(_LOOKS):
            before = self._own()
            now = transaction.now()
            after = self._own()
            if after - before < _QUICK_SECONDS:  # a slow answer tells the difference only roughly
                break
        self._compare(now.timestamp() - after, now.timestamp() - before)
        return now

    def is_settled(self) -> bool:
        """True when every living relay has renewed its leases since the last step."""
        return self._own() >= self._settled_at

    def _compare(self, least: float, most: float) -> None:
        before, self._ahead = self._ahead, least
        if before is None:
            return
        if abs(most - before) > MOST_UNNOTICED_SECONDS:
            self._settled_at = self._own() + LEASE_SECONDS
            self._told(most - before)


STEP = "reap"
BATCH = 200
"""Leases in one transaction. Each is a lane of its own, of which two that wait are folded, too: some 70 ms."""
TOO_LONG_SECONDS = LEASE_SECONDS + 5
"""No lease lasts for so long by a clock that is right."""
OWN_TRANSACTION = 8
"""Leases of a route that are worth a transaction of their own, under the lock of that route alone."""


def reap(
    work: Work, trusted: Iterable[Claimed] = (), clock: DatabaseClock | None = None
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
    with work.database.read() as transaction:
        now = clock.look(transaction)
        if not clock.is_settled():
            return []
        expired = transaction.execute(
            _EXPIRED,
            batch=BATCH,
            at=now,
            trusted=list(trusted),
            resting=sorted(work.rests.now()),
            known=sorted(work.policies),
            since=-LEFT_TO_OTHERS.total_seconds(),
        )
    parts = in_parts(
        work,
        STEP,
        [(row.seq, row.route, row.lease_token) for row in expired],
        part=lambda leases: _reap(work, clock, leases),
        alone=lambda lease, error: _set_aside(work, lease, error),
        name=lambda lease: key_text(lease[:2]),
        routes_of=lambda lease: lease[1:2],
        enough=OWN_TRANSACTION,
    )
    return [fact for part in parts for fact in part]


def _reap(work: Work, clock: DatabaseClock, leases: Sequence[Claimed]) -> list[tuple[int, str, AnyFact]]:
    with work.write() as transaction:
        transaction.take_order_lock(route for _, route, _ in leases)
        now = clock.look(transaction)
        if not clock.is_settled():
            return []
        rows = rows_of(transaction, [(seq, route) for seq, route, _ in leases], "skip")
        abandoned = []
        for row in still_leased(rows, leases).values():
            if not _is_over(row, now):
                continue
            delivery = as_open_delivery(row)
            abandoned.append(
                append(delivery, decide_abandoned(delivery, row.relay_node, work.policies.get(row.route)), now)
            )
        note(transaction, deaths(abandoned), now)
        forget_applied(transaction, ((row.route, row.lane) for row in abandoned))
        settled = settle_lanes(transaction, abandoned, work.policies, now)
        transaction.only_write()
        write_back(transaction, settled)
    return [(row.seq, row.route, row.facts[-1]) for row in abandoned]


def _set_aside(work: Work, lease: Claimed, error: Exception) -> list[tuple[int, str, AnyFact]]:
    seq, route, token = lease
    dead = quarantine(work, (seq, route), cause="unprocessable", error=error, token=token)
    return [] if dead is None else [(seq, route, dead)]


def _is_over(row: Any, now: datetime) -> bool:  # noqa: ANN401  # a result row
    until = as_time(row.lease_until)
    return until < now or until > now + timedelta(seconds=TOO_LONG_SECONDS)


_AT = sql.time(":at")
_TRUSTED = sql.rows("trusted", seq="bigint", route="text", token="bigint")
# Pass over locked ones: they would fill a batch, and hide the others.
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
