"""Upper bounds of stored times, by the rule that set each. Pure: `now` is passed in.

Each of these times was set as the present plus a span that a rule allows. A time further ahead was set by hand, or while
the database's clock ran ahead. Without a bound nothing would happen until the clock gets there again.
"""

from __future__ import annotations

from datetime import datetime, timedelta

import msgspec

from inbox.config.retry import BreakerLimits
from relay.delivery import facts
from relay.delivery.facts import AnyFact
from relay.delivery.gates import Breaker, BreakerState
from relay.delivery.policy import LONGEST_RETRY_AFTER, RoutePolicy

SLACK = timedelta(seconds=5)
"""Tolerance: a smaller excess passes by itself."""


class LastFact(msgspec.Struct, frozen=True):
    """The last fact of a delivery, reduced to its times."""

    at: datetime
    """Time of the record, by the database's clock at that time."""
    due_at: datetime | None = None


def last_fact(fact: AnyFact, at: datetime) -> LastFact:
    """Reduce a fact to its times."""
    if isinstance(fact, facts.AttemptFailed | facts.TookOver | facts.Rescheduled):
        return LastFact(at, fact.due_at)
    return LastFact(at)


def furthest_due(last: LastFact | None, policy: RoutePolicy, now: datetime) -> datetime:
    """Return the latest time at which a ready delivery may be due.

    A fact that sets a due time asks for a delay from the time of its record, which is past unless a clock was wrong.
    Without such a fact the delivery was due at once when it became the head of its lane.
    """
    if last is None or last.due_at is None:
        return now
    asked = max(last.due_at - last.at, timedelta(0))
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
