"""What an outcome means: a fact. Pure: (delivery, outcome, policy, now) → fact.

tenacity's strategies compute the schedule; it is written into the fact, so it survives any crash.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import datetime, timedelta
from typing import Any

import msgspec
from tenacity import (
    RetryCallState,
    stop_after_attempt,
    stop_before_delay,
    wait_chain,
    wait_exponential,
    wait_fixed,
    wait_random,
)
from tenacity.stop import stop_base
from tenacity.wait import wait_base

from inbox.config.model import BreakerLimits, Config, Endpoint, Ordering, Retry, Route
from inbox.config.routing import kind_of_lane
from relay.delivery import facts
from relay.delivery.facts import AnyFact
from relay.delivery.gates import GateKey, RateLimit
from relay.delivery.lifecycle import OpenDelivery
from relay.delivery.outcome import Delivered, Delivery, ErrorClass, Failed, Outcome, Skipped, Step, Unchanged
from relay.delivery.rules import AGAIN_AT_MOST, CONFIRMED_AFTER, REFETCH_AFTER, RULES, Rule, rule_for

LONGEST_RETRY_AFTER = timedelta(hours=24)
"""A destination that asks for more gets no more: its clock or its mind may be wrong."""

_READS: frozenset[Step] = frozenset({"fetch", "find"})

CRASHES_ALLOWED = 3
"""A delivery during which the relay's process died so many times in a row is set aside: it may well be what kills it."""


class Schedule:
    """When a failed attempt is repeated, and when it is not."""

    def __init__(self, retry: Retry) -> None:
        waits = [wait_fixed(delay) + wait_random(0, delay * retry.jitter) for delay in _delays(retry)]
        self._wait: wait_base = wait_chain(*waits) if waits else wait_fixed(0)
        self._stop: stop_base = stop_after_attempt(len(waits) + 1)
        if retry.window is not None:
            self._stop |= stop_before_delay(retry.window)
        self.first_delay = timedelta(seconds=next(iter(_delays(retry)), 0))
        self.longest_delay = timedelta(seconds=max(_delays(retry), default=0) * (1 + retry.jitter))
        self.has_window = retry.window is not None

    def delay_after(self, attempt: int, elapsed: timedelta = timedelta(0)) -> timedelta | None:
        """How long to wait after the failed attempt of this number (1 for the first); None: it was the last.

        `elapsed` is how long ago the first attempt of the run was.
        """
        state = RetryCallState(retry_object=_NO_RETRYING, fn=None, args=(), kwargs={})
        state.attempt_number = attempt
        state.upcoming_sleep = self._wait(state)
        state.start_time, state.outcome_timestamp = 0.0, elapsed.total_seconds()
        return None if self._stop(state) else timedelta(seconds=state.upcoming_sleep)


def _delays(retry: Retry) -> tuple[float, ...]:
    """The delays themselves, without jitter: the schedule, or so many that grow."""
    if retry.exponential is None:
        return retry.schedule
    growing = retry.exponential
    exact = wait_exponential(multiplier=growing.first, exp_base=growing.factor, max=growing.longest)
    state = RetryCallState(retry_object=_NO_RETRYING, fn=None, args=(), kwargs={})
    delays = []
    for state.attempt_number in range(1, growing.attempts):
        delays.append(exact(state))
    return tuple(delays)


_NO_RETRYING: Any = None
"""tenacity's strategies look at the attempt's number alone; there is no call for them to repeat."""


class RoutePolicy(msgspec.Struct, frozen=True):
    """What the store and the policy need to know of a route."""

    ordering: Ordering
    blocks_on_death: bool
    schedule: Schedule
    outcomes: Mapping[str, str] = {}
    """What its destination overrules of `relay.delivery.rules.RULES`."""
    skew: timedelta = timedelta(seconds=5)
    """By how much the source's clock and ours may differ."""
    gates: tuple[GateKey, ...] = ()
    """What it goes through: its source, itself, its destination, its api."""
    breakers: Mapping[GateKey, BreakerLimits] = {}
    """Those of them that a breaker can close, and when."""
    rate_limits: tuple[RateLimit, ...] = ()
    """What an attempt uses of their rate limits."""


class History(msgspec.Struct, frozen=True):
    """What the attempts of this run before came to."""

    same_in_a_row: int = 0
    """The last so many failed in the class of this one."""
    began_at: datetime | None = None
    """When the first of them was recorded."""


NO_HISTORY = History()


Policies = Mapping[str, RoutePolicy]
"""The policy of each configured route, by its name."""

UNKNOWN_ROUTE = RoutePolicy("strict", blocks_on_death=False, schedule=Schedule(Retry()))
"""For deliveries of a route that the configuration has no longer: kept in order, dropped never, claimed never."""


def policies(config: Config) -> dict[str, RoutePolicy]:
    """The policy of every route."""
    return {name: _policy(config, route) for name, route in config.routes.items()}


def _policy(config: Config, route: Route) -> RoutePolicy:
    endpoints: dict[GateKey, Endpoint] = {("destination", route.destination): config.destinations[route.destination]}
    calls = {"destination": 1}
    if route.sync is not None:
        endpoints["api", route.sync.fetch.api] = config.apis[route.sync.fetch.api]
        calls = {"destination": 1 + (0 if route.sync.find is None else route.sync.find.most_calls), "api": 1}
    return RoutePolicy(
        ordering=config.ordering_of(route),
        blocks_on_death=route.on_dead == "block",
        schedule=Schedule(route.retry),
        outcomes={str(name): str(rule) for name, rule in config.destinations[route.destination].outcomes.items()},
        skew=timedelta(seconds=config.sources[route.source].clock_skew),
        gates=(("source", route.source), ("route", route.name), *endpoints),
        breakers={key: endpoint.breaker for key, endpoint in endpoints.items()},
        rate_limits=tuple(
            RateLimit(key, endpoint.rate, calls[key[0]])
            for key, endpoint in endpoints.items()
            if endpoint.rate is not None
        ),
    )


def needs_history(outcome: Outcome, policy: RoutePolicy) -> bool:
    """Whether `decide` has to know what the attempts before came to."""
    if not isinstance(outcome, Failed):
        return False
    return policy.schedule.has_window or rule_for(outcome.error_class, policy.outcomes) in {
        Rule.CONFIRM,
        Rule.AGAIN,
        Rule.REFETCH,
    }


def history_of(before: Iterable[tuple[str, str | None, datetime]], error_class: ErrorClass) -> History:
    """What the facts of a delivery (kind, error class, when), in the order of their ids, mean for a failure of this class."""
    history = NO_HISTORY
    for kind, failed_with, at in before:
        if kind in NEW_RUN:
            history = NO_HISTORY
        elif kind in _ATTEMPTS:
            same = history.same_in_a_row + 1 if failed_with == error_class else 0
            history = History(same, history.began_at or at)
    return history


NEW_RUN = frozenset({"replayed", "rearmed", "corrected"})
"""Facts before which nothing counts for the attempts that follow."""
_ATTEMPTS = frozenset({"attempt_failed", "abandoned"})


def decide(
    delivery: Delivery,
    outcome: Outcome,
    policy: RoutePolicy,
    now: datetime,
    history: History = NO_HISTORY,
    *,
    is_stopped: bool = False,
) -> AnyFact:
    """What happened to the delivery, now that its attempt has this outcome.

    Args:
        delivery: as it was claimed.
        outcome: of its attempt.
        policy: the route's.
        now: UTC.
        history: what the attempts before came to; only asked for when `needs_history`.
        is_stopped: the breaker of what was called was open already, so the failure says nothing of this event.
    """
    if isinstance(outcome, Delivered):
        return facts.Delivered(
            did=outcome.did,
            calls=outcome.calls,
            late=delivery.late,
            lane=kind_of_lane(delivery.lane),
            fetch_began_at=outcome.fetch_began_at,
            last_modified=outcome.last_modified,
            applied_hash=None if outcome.applied_hash is None else outcome.applied_hash.hex(),
            stale_suspected=outcome.stale_suspected,
        )
    if isinstance(outcome, Unchanged):
        return facts.Unchanged(calls=outcome.calls)
    if isinstance(outcome, Skipped):
        return facts.Skipped(why=outcome.why, calls=outcome.calls)
    return _decide_failed(delivery, outcome, policy, now, history, is_stopped=is_stopped)


def _decide_failed(
    delivery: Delivery, outcome: Failed, policy: RoutePolicy, now: datetime, history: History, *, is_stopped: bool
) -> AnyFact:
    rule = rule_for(outcome.error_class, policy.outcomes)
    elapsed = now - (history.began_at or now)
    delay = policy.schedule.delay_after(delivery.attempt, elapsed)
    if rule is Rule.REFETCH:
        delay = REFETCH_AFTER[min(history.same_in_a_row, len(REFETCH_AFTER) - 1)]
    confirmed = rule is Rule.CONFIRM and history.same_in_a_row + 1 >= CONFIRMED_AFTER
    at_once = rule is Rule.NOT_COUNTED or (rule is Rule.AGAIN and history.same_in_a_row < AGAIN_AT_MOST)
    # A breaker says when the next call may go out; the schedule is for attempts that count.
    is_held_back = is_stopped or rule in {Rule.STOP, Rule.RETIRE}
    spared = at_once or is_held_back or rule is Rule.REFETCH
    if rule is Rule.DEAD or confirmed or (delay is None and not spared):
        return facts.Dead(
            cause=outcome.error_class if rule is Rule.DEAD or confirmed else "exhausted",
            error=outcome.error,
            calls=outcome.calls,
            blocks_lane=policy.blocks_on_death,
        )
    return facts.AttemptFailed(
        error_class=outcome.error_class,
        error=outcome.error,
        due_at=now if at_once else now + _clamped(timedelta(0) if is_held_back else delay or timedelta(0), outcome),
        calls=outcome.calls,
        counted=not spared,
    )


def can_be_given_back(outcome: Outcome) -> bool:
    """Whether an attempt was cut before anything of it can have had an effect: then it is as if it had never begun.

    What may have arrived at the other side is a fact instead, so that the log explains the repeated call.
    """
    return (
        isinstance(outcome, Failed)
        and RULES[outcome.error_class] is Rule.NOT_COUNTED
        and all(call.sent == "not_sent" or call.step in _READS for call in outcome.calls)
    )


def decide_abandoned(delivery: OpenDelivery, relay_node: str, policy: RoutePolicy, *, died_each_time: bool) -> AnyFact:
    """What happened to a delivery whose lease ran out: another attempt, or it is set aside.

    Args:
        delivery: as it was claimed.
        relay_node: who held the lease.
        policy: the route's.
        died_each_time: whether of each abandoned attempt in a row, this one too, the relay's process is gone for good.
    """
    crashes = delivery.crashes + 1
    if crashes < CRASHES_ALLOWED or not died_each_time:
        return facts.Abandoned(relay_node=relay_node)
    return facts.Dead(
        cause="crash_loop",
        error=f"the relay's process died {CRASHES_ALLOWED} times in a row while it worked on this, last {relay_node}",
        blocks_lane=policy.blocks_on_death,
    )


def _clamped(delay: timedelta, outcome: Failed) -> timedelta:
    """What the destination asked for, but not sooner than our own delay and not later than a day."""
    if outcome.retry_after is None:
        return delay
    asked = timedelta(seconds=min(outcome.retry_after, LONGEST_RETRY_AFTER.total_seconds()))
    return max(delay, asked)
