"""Record: stores an attempt's outcome, the state that follows and the lane's next head, in one transaction."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from datetime import datetime, timedelta
from functools import cache

import msgspec
from sqlalchemy import TextClause, text

from inbox.config.routing import OWN_LANE
from inbox.db.dialect import Sql, blames_items, error_text, rows_param
from inbox.db.pipeline import Statement
from inbox.events.timestamps import as_time
from relay.delivery import facts
from relay.delivery.alerts import deaths
from relay.delivery.facts import AnyFact
from relay.delivery.gates import STOPPED, GateKey, Report
from relay.delivery.lifecycle import OpenDelivery, append
from relay.delivery.outcome import Delivered, Delivery, Failed, Outcome, Unchanged
from relay.delivery.policy import (
    NO_HISTORY,
    UNKNOWN_ROUTE,
    History,
    HoldRequest,
    Policies,
    breaker_reports,
    decide,
    endpoint_of,
    hold_requests,
    needs_history,
)
from relay.store.alerts import note
from relay.store.coverage import heal
from relay.store.gates import listen
from relay.store.lanes import first_waiting, forget_applied, lanes_in_doubt, quarantine, settle_lanes
from relay.store.transaction import ROW, FailedAlone, Transaction, as_open_delivery, key_text, of_run
from relay.store.work import Work, in_parts

STEP = "record"
OWN_TRANSACTION = 8
"""Outcomes of a route that are worth a transaction of their own, under the lock of that route alone."""


class Recorded(msgspec.Struct, frozen=True):
    """One recorded outcome: the fact it became, or None when its lease was no longer the present one."""

    delivery: Delivery
    fact: AnyFact | None


def record(
    work: Work, outcomes: Sequence[tuple[Delivery, Outcome]], recently_failing: Collection[GateKey] = ()
) -> list[Recorded]:
    """Record the outcomes of attempts whose lease is still the present one; others are discarded.

    All are recorded when this returns but those of routes that rest; when it raises, none of those that `record_each` has not
    yielded.
    """
    return [recorded for part in record_each(work, outcomes, recently_failing) for recorded in part]


def record_each(
    work: Work,
    outcomes: Sequence[tuple[Delivery, Outcome]],
    recently_failing: Collection[GateKey] = (),
    *,
    host_now: Callable[[], datetime] | None = None,
) -> Iterator[list[Recorded]]:
    """Record the outcomes of attempts: all in one transaction, or in parts when one of them can't be recorded.

    That one becomes dead with the cause `unrecordable`. Where even that fails, its lease runs out, and `reap` deals with it.
    Outcomes of routes that rest are not recorded: hand them in again.

    Args:
        work: who has made the attempts.
        outcomes: of attempts.
        recently_failing: endpoints whose breakers have heard of trouble lately, so that they hear of successes, too.
        host_now: the clock by which fetches were timed; None: the database's own.

    Yields:
        What is recorded, after each commit.
    """

    def part(some: Sequence[tuple[Delivery, Outcome]]) -> list[Recorded]:
        return _record(work, some, recently_failing=recently_failing, host_now=host_now)

    def alone(one: tuple[Delivery, Outcome], error: Exception) -> list[Recorded]:
        return [_set_aside(work, one[0], error)]

    yield from in_parts(
        work,
        STEP,
        outcomes,
        part=part,
        alone=alone,
        name=_name,
        routes_of=lambda one: (one[0].route,),
        enough=OWN_TRANSACTION,
    )


def _name(one: tuple[Delivery, Outcome]) -> str:
    return key_text((one[0].seq, one[0].route))


def _set_aside(work: Work, delivery: Delivery, error: Exception) -> Recorded:
    """Let a delivery become dead whose outcome can't be recorded."""
    key = (delivery.seq, delivery.route)
    try:
        fact = quarantine(work, key, cause="unrecordable", error=error, token=delivery.lease_token)
    except Exception as second:
        if not blames_items(second):
            raise
        work.observer.failed_alone(FailedAlone(STEP, key_text(key), error_text(second)))
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
        deliveries = [delivery for delivery, _ in handed_in]
        now, (rows, first) = transaction.lock_order_and_read(
            {delivery.route for delivery in deliveries},
            _leases_of(transaction.sql, deliveries),
            first_waiting(transaction.sql, {(d.route, d.lane) for d in deliveries}),
        )
        leased = {(row.seq, row.route, row.token): as_open_delivery(row) for row in rows}
        ahead = timedelta(0) if host_now is None else max(host_now() - now, timedelta(0))
        outcomes = [(delivery, _by_database_clock(outcome, ahead)) for delivery, outcome in handed_in]
        histories = _histories(transaction, outcomes, policies)
        reports = _reports(outcomes, leased, policies, recently_failing)
        breakers = listen(transaction, reports, policies, now, [*_asked(outcomes, policies)])
        changed: list[OpenDelivery] = []
        recorded: list[Recorded] = []
        for delivery, outcome in outcomes:
            row = leased.get((delivery.seq, delivery.route, delivery.lease_token))
            if row is None:
                recorded.append(Recorded(delivery, None))
                continue
            history = histories.get((delivery.seq, delivery.route), NO_HISTORY)
            policy = policies.get(delivery.route, UNKNOWN_ROUTE)
            endpoint = endpoint_of(outcome, policy)
            is_stopped = endpoint in breakers and breakers[endpoint].state in STOPPED
            fact = decide(delivery, outcome, policy, now, history, is_stopped=is_stopped)
            changed.append(append(row, fact, now))
            recorded.append(Recorded(delivery, fact))
        note(transaction, deaths(changed), now)
        delivered = [row for row in changed if isinstance(row.facts[-1], facts.DeliveredFact | Unchanged)]
        healed = heal(transaction, delivered, policies, now)
        # What was in flight was the head of its lane, so there is no other.
        settled = settle_lanes(transaction, [*changed, *healed], policies, now, first=first)
        transaction.only_write()
        transaction.write_back(settled)
        remember_delivered(
            transaction,
            [
                success_row(delivery.route, delivery.lane, (delivery.occurred_at, delivery.seq), outcome)
                for delivery, outcome in outcomes
                if isinstance(outcome, Delivered) and (delivery.seq, delivery.route, delivery.lease_token) in leased
            ],
        )
        forget_applied(transaction, lanes_in_doubt(leased_outcomes(outcomes, leased)))
    return recorded


def leased_outcomes(
    outcomes: Iterable[tuple[Delivery, Outcome]], leased: Collection[tuple[int, str, int]]
) -> Iterator[tuple[Delivery, Outcome]]:
    """Yield the outcomes of attempts that still hold their lease."""
    return ((d, outcome) for d, outcome in outcomes if (d.seq, d.route, d.lease_token) in leased)


def _by_database_clock(outcome: Outcome, ahead: timedelta) -> Outcome:
    """The outcome with times not ahead of the database: a fetch in the future would cover changes that are still to come."""
    if not isinstance(outcome, Delivered) or outcome.fetch_began_at is None or not ahead:
        return outcome
    return msgspec.structs.replace(outcome, fetch_began_at=outcome.fetch_began_at - ahead)


def _leases_of(sql: Sql, deliveries: Iterable[Delivery]) -> Statement:
    """The fence: select the rows that this claim still holds.

    An older claim's outcome may be handed in together with the present one's, so the token is part of what is looked up.
    """
    rows = ({"seq": d.seq, "route": d.route, "token": d.lease_token} for d in deliveries)
    return _leased(sql), {"done": rows_param(rows)}


@cache
def _leased(sql: Sql) -> TextClause:
    """`state || ''` stops Postgres from reading an index of states from end to end, where its statistics say it is empty."""
    return text(f"""
SELECT {ROW}, done.token
FROM {sql.deliveries("done", token="bigint")}
WHERE o.state || '' = 'in_flight' AND o.lease_token = done.token
ORDER BY o.seq, o.route
{sql.for_update and "FOR UPDATE OF o"}
""")


def _reports(
    outcomes: Iterable[tuple[Delivery, Outcome]],
    leased: Collection[tuple[int, str, int]],
    policies: Policies,
    recently_failing: Collection[GateKey],
) -> Iterator[Report]:
    """The reports for the breakers: every failure, and successes where there were failures lately."""
    for delivery, outcome in outcomes:
        policy = policies.get(delivery.route, UNKNOWN_ROUTE)
        if (delivery.seq, delivery.route, delivery.lease_token) not in leased:
            continue
        for report in breaker_reports(outcome, policy):
            if report.health != "well" or report.key in recently_failing:
                yield report


def _asked(outcomes: Iterable[tuple[Delivery, Outcome]], policies: Policies) -> Iterator[HoldRequest]:
    """The rate holds that endpoints ask for: also by the calls of an attempt that holds its lease no longer."""
    for delivery, outcome in outcomes:
        yield from hold_requests(outcome, policies.get(delivery.route, UNKNOWN_ROUTE))


def _histories(
    transaction: Transaction, outcomes: Sequence[tuple[Delivery, Outcome]], policies: Policies
) -> dict[tuple[int, str], History]:
    """The results of earlier attempts, for the outcomes that depend on them."""
    failed = [
        {"seq": delivery.seq, "route": delivery.route, "run": delivery.run, "error_class": outcome.error_class}
        for delivery, outcome in outcomes
        if isinstance(outcome, Failed) and needs_history(outcome, policies.get(delivery.route, UNKNOWN_ROUTE))
    ]
    found = transaction.execute(_attempts(transaction.sql), failed=rows_param(failed)) if failed else []
    return {(row.seq, row.route): History(row.same_in_a_row, as_time(row.began_at)) for row in found}


@cache
def _attempts(sql: Sql) -> TextClause:
    """Count the attempts of the run, of which the last ones failed in the same way."""
    failed = sql.rows("failed", seq="bigint", route="text", run="int", error_class="text")
    return text(f"""
SELECT seq, route, min(at) AS began_at, count(CASE WHEN id > coalesce(last_other, 0) THEN 1 END) AS same_in_a_row
FROM (
    SELECT l.seq, l.route, l.id, l.at, max(
        CASE WHEN coalesce(l.detail ->> 'error_class', '') <> failed.error_class THEN l.id END
    ) OVER (PARTITION BY l.seq, l.route) AS last_other
    FROM {sql.looked_up(failed, "delivery_log l", of_run("l", "failed"))}
    WHERE l.kind || '' IN ('attempt_failed', 'abandoned')) tried
GROUP BY seq, route
""")


def success_row(route: str, lane: str, key: tuple[datetime, int], success: Delivered) -> dict[str, object]:
    """The row of `lane` that remembers a success."""
    return {
        "route": route,
        "lane": lane,
        "occurred_at": key[0],
        "seq": key[1],
        **{name: getattr(success, name) for name in ("fetch_began_at", "last_modified", "applied_hash")},
    }


def remember_delivered(transaction: Transaction, rows: Iterable[Mapping[str, object]]) -> None:
    """Store in `lane` what was delivered last. An event that is its own lane has no later one to compare with."""
    shared = [row for row in rows if not str(row["lane"]).startswith(OWN_LANE)]
    if shared:
        shared.sort(key=lambda row: (str(row["route"]), str(row["lane"])))
        transaction.execute(_remember(transaction.sql), succeeded=rows_param(shared))


@cache
def _remember(sql: Sql) -> TextClause:
    rows = sql.rows(
        "succeeded",
        route="text",
        lane="text",
        occurred_at="time",
        seq="bigint",
        fetch_began_at="time",
        last_modified="time",
        applied_hash="bytes",
    )
    newer = "(excluded.occurred_at, excluded.seq) > (lane.occurred_at, lane.seq)"
    # A late one that fetched nothing says nothing of events newer than itself: what was fetched before stays.
    late = "(excluded.occurred_at, excluded.seq) < (lane.occurred_at, lane.seq)"
    says = f"(excluded.fetch_began_at IS NOT NULL OR NOT {late})"
    return text(f"""
INSERT INTO lane (route, lane, occurred_at, seq, fetch_began_at, last_modified, applied_hash)
SELECT route, lane, occurred_at, seq, fetch_began_at, last_modified, {sql.hex_bytes("applied_hash")}
FROM {rows}
WHERE true
ON CONFLICT (route, lane) DO UPDATE SET
    occurred_at = CASE WHEN {newer} THEN excluded.occurred_at ELSE lane.occurred_at END,
    seq = CASE WHEN {newer} THEN excluded.seq ELSE lane.seq END,
    fetch_began_at = CASE WHEN {says} THEN excluded.fetch_began_at ELSE lane.fetch_began_at END,
    last_modified = CASE WHEN {says} THEN excluded.last_modified ELSE lane.last_modified END,
    applied_hash = excluded.applied_hash
""")
