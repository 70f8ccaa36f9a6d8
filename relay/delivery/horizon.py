"""The furthest ahead that a stored time may lie, by the rule that has set it. Pure: `now` is passed in.

Each of these times was set as the present and a span that a rule allows. One that lies further ahead was set while the
database's clock ran ahead, or by hand. Nothing would be done until the clock comes there once more.
"""

from __future__ import annotations

from datetime import datetime, timedelta

import msgspec

from inbox.config.model import BreakerLimits
from relay.delivery import facts
from relay.delivery.facts import AnyFact
from relay.delivery.gates import Breaker, BreakerState
from relay.delivery.policy import LONGEST_RETRY_AFTER, RoutePolicy

SLACK = timedelta(seconds=5)
"""What lies too far ahead by less is left alone: it comes right by itself."""


class LastFact(msgspec.Struct, frozen=True):
    """The last fact of a delivery, as far as it says when the next attempt may be."""

    at: datetime
    """When it was recorded, by the database's clock of then."""
    due_at: datetime | None = None


def last_fact(fact: AnyFact, at: datetime) -> LastFact:
    """The part of a fact that counts here."""
    if isinstance(fact, facts.AttemptFailed | facts.TookOver | facts.Rescheduled):
        return LastFact(at, fact.due_at)
    return LastFact(at)


def furthest_due(last: LastFact | None, policy: RoutePolicy, now: datetime) -> datetime:
    """The latest time at which a delivery that is ready may be due.

    A fact that sets a due time asks for a delay from the moment at which it was recorded. Clocks aside, that moment is
    past. Without such a fact the delivery was due at once when it became the head of its lane.
    """
    if last is None or last.due_at is None:
        return now
    asked = max(last.due_at - last.at, timedelta(0))
    return now + min(asked, max(policy.schedule.longest_delay, LONGEST_RETRY_AFTER))


def breaker_within(breaker: Breaker, limits: BreakerLimits, probe_lasts: timedelta, now: datetime) -> Breaker:
    """The breaker with none of its times further ahead than its limits allow."""
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
"""Beyond any `longest`."""


def within(moment: datetime | None, furthest: datetime) -> datetime | None:
    """The moment, or the furthest one instead when it lies beyond."""
    return furthest if moment is not None and is_beyond(moment, furthest) else moment


def is_beyond(moment: datetime, furthest: datetime) -> bool:
    """Whether it lies too far ahead, by more than the slack."""
    return moment > furthest + SLACK
