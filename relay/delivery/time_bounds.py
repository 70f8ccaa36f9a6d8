"""Upper bounds of stored times, by the rule that set each. Pure: `now` is passed in.

Each of these times was set as the present plus a span that a rule allows. A time further ahead was set by hand, or while
the database's clock ran ahead. Without a bound nothing would happen until the clock gets there again.
"""

from __future__ import annotations

from datetime import datetime, timedelta

import msgspec

from relay.delivery import facts
from relay.delivery.facts import AnyFact
from relay.delivery.gates import Breaker, BreakerLimits, BreakerState
from relay.delivery.policy import LONGEST_RETRY_AFTER, RoutePolicy

SLACK = timedelta(seconds=5)
"""Tolerance: a smaller excess passes by itself."""


def asked_delay(fact: AnyFact, at: datetime) -> timedelta:
    """Return the delay that a delivery's last fact asked for when it was recorded `at`, which is past unless a clock was wrong.

    After any other fact the delivery was due at once when it became the head of its lane.
    """
    if isinstance(fact, facts.AttemptFailed | facts.TookOver | facts.Rescheduled):
        return max(fact.due_at - at, timedelta(0))
    return timedelta(0)


def furthest_due(asked: timedelta, policy: RoutePolicy, now: datetime) -> datetime:
    """Return the latest time at which a ready delivery may be due, whose last fact asked for this delay."""
    return now + min(asked, max(policy.schedule.longest_delay, LONGEST_RETRY_AFTER))


def breaker_within(breaker: Breaker, limits: BreakerLimits, probe_lasts: timedelta, now: datetime) -> Breaker:
    """Return the breaker with its times cut to what its limits allow."""
    if breaker.state is BreakerState.HALF_OPEN:
        lasts = probe_lasts
    else:
        doubled = min(max(breaker.open_count - 1, 0), _MOST_DOUBLINGS)
        lasts = timedelta(seconds=min(limits.open_for * 2**doubled, limits.longest))
    return msgspec.structs.replace(
        breaker,
        until=within(breaker.until, now + lasts),
        window_began_at=within(breaker.window_began_at, now),
    )


_MOST_DOUBLINGS = 30
"""Enough to exceed any `longest`."""


def within(moment: datetime | None, furthest: datetime) -> datetime | None:
    """Return the moment, or `furthest` when it lies beyond that."""
    return furthest if moment is not None and is_beyond(moment, furthest) else moment


def is_beyond(moment: datetime, furthest: datetime) -> bool:
    """True when it lies too far ahead, by more than the slack."""
    return moment > furthest + SLACK
