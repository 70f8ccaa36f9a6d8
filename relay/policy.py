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
from relay.outcome import Delivered, Delivery, ErrorClass, Failed, Outcome, Skipped

LONGEST_RETRY_AFTER = timedelta(hours=24)
"""A destination that asks for more gets no more: its clock or its mind may be wrong."""

HOPELESS: frozenset[ErrorClass] = frozenset({"mapping", "ambiguous", "no_target", "refused"})
"""No repetition mends these: the configuration or the data has to change first."""


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
        return facts.Delivered(did=outcome.did, calls=outcome.calls, late=delivery.late)
    if isinstance(outcome, Skipped):
        return facts.Skipped(why=outcome.why, calls=outcome.calls)
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


def _clamped(delay: timedelta, outcome: Failed) -> timedelta:
    """What the destination asked for, but not sooner than our own delay and not later than a day."""
    if outcome.retry_after is None:
        return delay
    asked = timedelta(seconds=min(outcome.retry_after, LONGEST_RETRY_AFTER.total_seconds()))
    return max(delay, asked)
