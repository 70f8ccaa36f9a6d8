"""What an outcome means: a fact. Pure: (delivery, outcome, policy, now) → fact.

tenacity's strategies compute the schedule; it is written into the fact, so it survives any crash.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

import msgspec
from tenacity import RetryCallState, stop_after_attempt, wait_chain, wait_fixed, wait_random
from tenacity.stop import stop_base
from tenacity.wait import wait_base

from inbox.config import Config, Ordering, Retry, Route
from relay import facts
from relay.facts import AnyFact
from relay.lifecycle import OpenDelivery
from relay.outcome import Delivered, Delivery, ErrorClass, Failed, Outcome, Skipped, Step

LONGEST_RETRY_AFTER = timedelta(hours=24)
"""A destination that asks for more gets no more: its clock or its mind may be wrong."""

HOPELESS: frozenset[ErrorClass] = frozenset({"mapping", "ambiguous", "no_target", "refused"})
"""No repetition mends these: the configuration or the data has to change first."""

CUT_BY_US: frozenset[ErrorClass] = frozenset({"lease_lost"})
"""These say nothing of the event: the attempt does not count, and the next is due at once."""

_READS: frozenset[Step] = frozenset({"fetch", "find"})

CRASHES_ALLOWED = 3
"""A delivery during which the relay's process died so many times in a row is set aside: it may well be what kills it."""


class Schedule:
    """When a failed attempt is repeated, and when it is not."""

    def __init__(self, retry: Retry) -> None:
        waits = [wait_fixed(delay) + wait_random(0, delay * retry.jitter) for delay in retry.schedule]
        self._wait: wait_base = wait_chain(*waits) if waits else wait_fixed(0)
        self._stop: stop_base = stop_after_attempt(len(waits) + 1)
        self.first_delay = timedelta(seconds=retry.schedule[0]) if retry.schedule else timedelta(0)

    def delay_after(self, attempt: int) -> timedelta | None:
        """How long to wait after the failed attempt of this number (1 for the first); None: it was the last."""
        state = RetryCallState(retry_object=_NO_RETRYING, fn=None, args=(), kwargs={})
        state.attempt_number = attempt
        return None if self._stop(state) else timedelta(seconds=self._wait(state))


_NO_RETRYING: Any = None
"""tenacity's strategies look at the attempt's number alone; there is no call for them to repeat."""


class RoutePolicy(msgspec.Struct, frozen=True):
    """What the store and the policy need to know of a route."""

    ordering: Ordering
    blocks_on_death: bool
    schedule: Schedule


UNKNOWN_ROUTE = RoutePolicy("strict", blocks_on_death=False, schedule=Schedule(Retry()))
"""For deliveries of a route that the configuration has no longer: kept in order, dropped never, claimed never."""


def policies(config: Config) -> dict[str, RoutePolicy]:
    """The policy of every route."""
    return {name: _policy(config, route) for name, route in config.routes.items()}


def _policy(config: Config, route: Route) -> RoutePolicy:
    return RoutePolicy(config.ordering_of(route), route.on_dead == "block", Schedule(route.retry))


def decide(delivery: Delivery, outcome: Outcome, policy: RoutePolicy, now: datetime) -> AnyFact:
    """What happened to the delivery, now that its attempt has this outcome. `now` is UTC."""
    if isinstance(outcome, Delivered):
        return facts.Delivered(
            did=outcome.did,
            calls=outcome.calls,
            late=delivery.late,
            fetch_began_at=outcome.fetch_began_at,
            last_modified=outcome.last_modified,
            applied_hash=None if outcome.applied_hash is None else outcome.applied_hash.hex(),
        )
    if isinstance(outcome, Skipped):
        return facts.Skipped(why=outcome.why, calls=outcome.calls)
    if outcome.error_class in CUT_BY_US:
        return facts.AttemptFailed(
            error_class=outcome.error_class, error=outcome.error, due_at=now, calls=outcome.calls, counted=False
        )
    delay = policy.schedule.delay_after(delivery.attempt)
    if outcome.error_class in HOPELESS or delay is None:
        return facts.Dead(
            cause=outcome.error_class if outcome.error_class in HOPELESS else "exhausted",
            error=outcome.error,
            calls=outcome.calls,
            blocks_lane=policy.blocks_on_death,
        )
    return facts.AttemptFailed(
        error_class=outcome.error_class,
        error=outcome.error,
        due_at=now + _clamped(delay, outcome),
        calls=outcome.calls,
    )


def can_be_given_back(outcome: Outcome) -> bool:
    """Whether an attempt was cut before anything of it can have had an effect: then it is as if it had never begun.

    What may have arrived at the other side is a fact instead, so that the log explains the repeated call.
    """
    return (
        isinstance(outcome, Failed)
        and outcome.error_class in CUT_BY_US
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
