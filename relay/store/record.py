"""Record: stores the outcome of an attempt, the resulting state and the lane's next head in one transaction."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from datetime import datetime, timedelta

import msgspec

from inbox.config.routing import OWN_LANE
from inbox.db.dialect import blames_items, error_text
from inbox.events.timestamps import as_time
from relay.delivery import facts
from relay.delivery.alerts import list_deaths
from relay.delivery.facts import AnyFact
from relay.delivery.gates import STOPPED, GateKey, Report
from relay.delivery.lifecycle import OpenDelivery, apply_fact
from relay.delivery.outcome import Delivered, Delivery, Failed, Outcome, Unchanged
from relay.delivery.policy import (
    NO_HISTORY,
    UNKNOWN_ROUTE,
    History,
    HoldRequest,
    Policies,
    RoutePolicy,
    decide,
    find_endpoint,
    find_failed_endpoint,
    list_breaker_reports,
    list_hold_requests,
    needs_history,
)
from relay.store.alerts import store_alerts
from relay.store.deliveries import (
    LeaseKey,
    as_open_delivery,
    format_key,
    lease_key_of,
    limit_to_run,
    select_leased,
    select_rows,
    write_back,
)
from relay.store.gates import report_to_breakers
from relay.store.sequence import (
    find_lanes_in_doubt,
    forget_applied,
    quarantine,
    select_first_waiting,
    settle_lanes,
    supersede_older_dead,
)
from relay.store.statement import Statement, sql
from relay.store.transaction import FailedAlone, Transaction
from relay.store.work import Work, process_in_parts

STEP = "record"
OWN_TRANSACTION = 8
"""Outcomes of one route that justify a separate transaction, which locks only that route."""


class Recorded(msgspec.Struct, frozen=True):
    """A recorded outcome. It has a fact unless the lease was lost, or nothing could be stored."""

    delivery: Delivery
    fact: AnyFact | None


def record(
    work: Work,
    outcomes: Sequence[tuple[Delivery, Outcome]],
    recently_failing: Collection[GateKey] = (),
    *,
    host_now: Callable[[], datetime] | None = None,
) -> Iterator[list[Recorded]]:
    """Record outcomes of attempts in few transactions, by route. If one can't be recorded, use smaller transactions.

    A delivery that can't be recorded even alone becomes dead with the cause `unrecordable`. If that fails too, its lease
    expires, and it is rescued. Outcomes of resting routes are skipped: pass them again.

    Args:
        work: the context of the relay that made the attempts.
        outcomes: the attempts and their outcomes.
        recently_failing: endpoints with recent failures, whose breakers also need reports of successes.
        host_now: the clock that timed the fetches; None for the database's own.

    Yields:
        The recorded outcomes of each transaction, after its commit.
    """

    def process(some: Sequence[tuple[Delivery, Outcome]]) -> list[Recorded]:
        return _record(work, some, recently_failing=recently_failing, host_now=host_now)

    def quarantine_one(one: tuple[Delivery, Outcome], error: Exception) -> list[Recorded]:
        return [_quarantine_unrecordable(work, one[0], error)]

    yield from process_in_parts(
        work,
        STEP,
        outcomes,
        process=process,
        quarantine_one=quarantine_one,
        name=_name,
        routes_of=lambda one: (one[0].route,),
        least_items=OWN_TRANSACTION,
    )


def _name(one: tuple[Delivery, Outcome]) -> str:
    return format_key((one[0].seq, one[0].route))


def _quarantine_unrecordable(work: Work, delivery: Delivery, error: Exception) -> Recorded:
    """Quarantine a delivery whose outcome can't be recorded."""
    key = (delivery.seq, delivery.route)
    try:
        fact = quarantine(work, key, cause="unrecordable", error=error, token=delivery.lease_token)
    except Exception as second:
        if not blames_items(second):
            raise
        work.observer.on_failed_alone(FailedAlone(STEP, format_key(key), error_text(second)))
        return Recorded(delivery, None)
    return Recorded(delivery, fact)


def _record(
    work: Work,
    handed_in: Sequence[tuple[Delivery, Outcome]],
    *,
    recently_failing: Collection[GateKey],
    host_now: Callable[[], datetime] | None,
) -> list[Recorded]:
    policies = work.policies
    with work.write() as transaction:
        claims = {lease_key_of(delivery) for delivery, _ in handed_in}
        now, (rows, first_waiting) = transaction.take_order_lock_and_read(
            {route for _, route, _ in claims},
            select_rows([claim[:2] for claim in claims], "wait"),
            select_first_waiting({(delivery.route, delivery.lane) for delivery, _ in handed_in}),
        )
        leased = {claim: as_open_delivery(row) for claim, row in select_leased(rows, claims).items()}
        ahead = timedelta(0) if host_now is None else max(host_now() - now, timedelta(0))
        outcomes = [(delivery, _shift_to_database_clock(outcome, ahead)) for delivery, outcome in handed_in]
        held = [(delivery, outcome) for delivery, outcome in outcomes if lease_key_of(delivery) in leased]
        histories = _read_histories(transaction, held, policies)
        breakers = report_to_breakers(
            transaction,
            _list_reports(held, policies, recently_failing),
            policies,
            now,
            [*_list_hold_requests(outcomes, policies)],
        )
        made: dict[LeaseKey, AnyFact] = {}
        changed: list[OpenDelivery] = []
        for delivery, outcome in held:
            history = histories.get((delivery.seq, delivery.route), NO_HISTORY)
            policy = policies.get(delivery.route, UNKNOWN_ROUTE)
            endpoint = find_endpoint(outcome, policy)
            is_stopped = endpoint in breakers and breakers[endpoint].state in STOPPED
            claimed = lease_key_of(delivery)
            made[claimed] = fact = decide(delivery, outcome, policy, now, history, is_stopped=is_stopped)
            changed.append(apply_fact(leased[claimed], fact, now))
        store_alerts(transaction, list_deaths(changed), now)
        delivered = [row for row in changed if isinstance(row.facts[-1], facts.DeliveredFact | Unchanged)]
        healed = supersede_older_dead(transaction, delivered, policies, now)
        # Only heads are in flight, so `changed` has the head of each lane.
        settled = settle_lanes(
            transaction, [*changed, *healed], policies, now, first_waiting=first_waiting, heads_are_known=True
        )
        transaction.queue_writes()
        write_back(transaction, settled)
        successes = (_as_success(*one, policies.get(one[0].route, UNKNOWN_ROUTE)) for one in held)
        remember_delivered(transaction, (each for each in successes if each is not None))
        forget_applied(transaction, find_lanes_in_doubt(held))
        _count_failures(transaction, held, policies)
    return [Recorded(delivery, made.get(lease_key_of(delivery))) for delivery, _ in handed_in]


def _shift_to_database_clock(outcome: Outcome, ahead: timedelta) -> Outcome:
    """Move the fetch time back if this host's clock is ahead: otherwise the fetch would seem to include later changes."""
    if not isinstance(outcome, Delivered) or outcome.fetch_began_at is None or not ahead:
        return outcome
    return msgspec.structs.replace(outcome, fetch_began_at=outcome.fetch_began_at - ahead)


def _list_reports(
    outcomes: Iterable[tuple[Delivery, Outcome]], policies: Policies, recently_failing: Collection[GateKey]
) -> Iterator[Report]:
    """Yield the reports for the breakers: every failure, and successes after recent failures."""
    for delivery, outcome in outcomes:
        for report in list_breaker_reports(outcome, policies.get(delivery.route, UNKNOWN_ROUTE)):
            if report.health != "well" or report.key in recently_failing:
                yield report


def _count_failures(transaction: Transaction, outcomes: Iterable[tuple[Delivery, Outcome]], policies: Policies) -> None:
    """Count the failures of each route since its last success. A success deletes the count.

    An attempt without a call counts as neither. An attempt that sent nothing to its destination only shows that its api
    works.
    """
    worked = set[tuple[str, str]]()
    failed: dict[str, tuple[GateKey, int, int]] = {}
    for delivery, outcome in outcomes:
        route = delivery.route
        if endpoint := find_failed_endpoint(outcome, policies.get(route, UNKNOWN_ROUTE)):
            failed[route] = (endpoint, failed[route][1] + 1 if route in failed else 1, delivery.seq)
        elif not isinstance(outcome, Failed):
            kinds = ("api", "destination") if isinstance(outcome, Delivered) else ("api",) if outcome.calls else ()
            worked |= {(route, kind) for kind in kinds}
            if route in failed and failed[route][0][0] in kinds:
                del failed[route]
    if worked:
        transaction.execute(_WORKED, worked=sorted(worked))
    if failed:
        rows = [(route, *endpoint, number, seq) for route, (endpoint, number, seq) in sorted(failed.items())]
        transaction.execute(_FAILED_AGAIN, unwell=rows)


_WORKED = Statement(f"""
DELETE FROM route_failure
WHERE (route, kind) IN (SELECT worked.route, worked.kind FROM {sql.rows("worked", route="text", kind="text")})
""")
_UNWELL = {"route": "text", "kind": "text", "name": "text", "failures": "bigint", "seq": "bigint"}
_FAILED_AGAIN = Statement(f"""
INSERT INTO route_failure (route, kind, name, began_at, failures, seq)
SELECT route, kind, name, {sql.now}, failures, seq FROM {sql.rows("unwell", **_UNWELL)}
WHERE true
ON CONFLICT (route) DO UPDATE SET
    kind = excluded.kind, name = excluded.name, failures = route_failure.failures + excluded.failures, seq = excluded.seq
""")


def _list_hold_requests(outcomes: Iterable[tuple[Delivery, Outcome]], policies: Policies) -> Iterator[HoldRequest]:
    """Yield the rate holds that endpoints ask for, including those of attempts that have lost their lease."""
    for delivery, outcome in outcomes:
        yield from list_hold_requests(outcome, policies.get(delivery.route, UNKNOWN_ROUTE))


def _read_histories(
    transaction: Transaction, outcomes: Sequence[tuple[Delivery, Outcome]], policies: Policies
) -> dict[tuple[int, str], History]:
    """Read the results of earlier attempts for the outcomes that depend on them."""
    failed = [
        (delivery.seq, delivery.route, delivery.run, outcome.error_class)
        for delivery, outcome in outcomes
        if isinstance(outcome, Failed) and needs_history(outcome, policies.get(delivery.route, UNKNOWN_ROUTE))
    ]
    found = transaction.execute(_ATTEMPTS, failed=failed) if failed else []
    return {(row.seq, row.route): History(row.same_in_a_row, as_time(row.began_at)) for row in found}


_FAILED = sql.rows("failed", seq="bigint", route="text", run="int", error_class="text")
# Counts the last attempts of the run that failed with the same error class.
_ATTEMPTS = Statement(f"""
SELECT seq, route, min(at) AS began_at, count(CASE WHEN id > coalesce(last_other, 0) THEN 1 END) AS same_in_a_row
FROM (
    SELECT l.seq, l.route, l.id, l.at, max(
        CASE WHEN coalesce(l.detail ->> 'error_class', '') <> failed.error_class THEN l.id END
    ) OVER (PARTITION BY l.seq, l.route) AS last_other
    FROM {sql.look_up(_FAILED, "delivery_log l", limit_to_run("l", "failed"))}
    WHERE l.kind || '' IN ('attempt_failed', 'abandoned')) tried
GROUP BY seq, route
""")


LaneRow = tuple[str, str, datetime, int, datetime | None, datetime | None, bytes | None]
"""A row of `lane`, in the order of `_SUCCESS`."""


def _as_success(delivery: Delivery, outcome: Outcome, policy: RoutePolicy) -> LaneRow | None:
    """Return the row of an attempt that succeeded. Without fetch, an unchanged body counts like a sent one."""
    place = (delivery.route, delivery.lane, delivery.occurred_at, delivery.seq)
    match outcome:
        case Delivered():
            return (*place, outcome.fetch_began_at, outcome.last_modified, outcome.applied_hash)
        case Unchanged() if not policy.fetches:
            return (*place, None, None, delivery.applied_hash)
    return None


def remember_delivered(transaction: Transaction, rows: Iterable[LaneRow]) -> None:
    """Store the last success of each lane. Lanes of a single event are skipped, as no later event is compared with them."""
    if shared := sorted((row for row in rows if not row[1].startswith(OWN_LANE)), key=lambda row: row[:2]):
        transaction.execute(_REMEMBER, succeeded=shared)


_SUCCESS = {
    "route": "text", "lane": "text", "occurred_at": "time", "seq": "bigint", "fetch_began_at": "time",
    "last_modified": "time", "applied_hash": "bytes",
}  # fmt: skip
_NEWER = "(excluded.occurred_at, excluded.seq) > (lane.occurred_at, lane.seq)"
# A late success without a fetch does not cover newer events: the earlier fetch stays.
_REPLACES_FETCH = (
    "(excluded.fetch_began_at IS NOT NULL OR NOT (excluded.occurred_at, excluded.seq) < (lane.occurred_at, lane.seq))"
)
_REMEMBER = Statement(f"""
INSERT INTO lane (route, lane, occurred_at, seq, fetch_began_at, last_modified, applied_hash)
SELECT route, lane, occurred_at, seq, fetch_began_at, last_modified, {sql.hex_bytes("applied_hash")}
FROM {sql.rows("succeeded", **_SUCCESS)}
WHERE true
ON CONFLICT (route, lane) DO UPDATE SET
    occurred_at = CASE WHEN {_NEWER} THEN excluded.occurred_at ELSE lane.occurred_at END,
    seq = CASE WHEN {_NEWER} THEN excluded.seq ELSE lane.seq END,
    fetch_began_at = CASE WHEN {_REPLACES_FETCH} THEN excluded.fetch_began_at ELSE lane.fetch_began_at END,
    last_modified = CASE WHEN {_REPLACES_FETCH} THEN excluded.last_modified ELSE lane.last_modified END,
    applied_hash = excluded.applied_hash
""")
