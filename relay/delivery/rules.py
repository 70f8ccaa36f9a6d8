"""What each class of failure leads to: one table, and what a destination overrules of it. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta
from enum import StrEnum

from relay.delivery.gates import Health
from relay.delivery.outcome import ErrorClass


class Rule(StrEnum):
    """What follows a failed attempt."""

    RETRY = "retry"
    """Another attempt by the route's schedule, or when the other side asked for it."""
    CONFIRM = "confirm"
    """One more attempt by the schedule; when that comes to the same, it is dead."""
    AGAIN = "again"
    """At once, from the fetch on, three times in a row at most, and not counted; then by the schedule."""
    REFETCH = "refetch"
    """From the fetch on, after a second, then five, then thirty, and not counted; then it is applied as it is."""
    DEAD = "dead"
    """No repetition mends it: the configuration or the data has to change first."""
    STOP = "stop"
    """The endpoint's breaker opens: it refuses us, whatever we send. No attempt is used."""
    RETIRE = "retire"
    """The destination is gone for good: nothing is sent there until a person resumes it. No attempt is used."""
    NOT_COUNTED = "not_counted"
    """It says nothing of this event: due at once, and no attempt is used."""


RULES: dict[ErrorClass, Rule] = {
    "not_sent": Rule.RETRY,
    "unknown": Rule.RETRY,
    "throttled": Rule.RETRY,
    "server_error": Rule.RETRY,
    "rejected": Rule.CONFIRM,
    "auth": Rule.STOP,
    "not_found": Rule.RETRY,
    "gone": Rule.RETIRE,
    "conflict": Rule.AGAIN,
    "stale": Rule.REFETCH,
    "redirect": Rule.RETRY,
    "bad_answer": Rule.RETRY,
    "mapping": Rule.DEAD,
    "ambiguous": Rule.DEAD,
    "no_target": Rule.DEAD,
    "refused": Rule.RETRY,  # a name may lead to a wrong address for a while, by its server or a captive network
    "lease_lost": Rule.NOT_COUNTED,
    "crashed": Rule.RETRY,
    "put_off": Rule.RETRY,
    "given_up": Rule.DEAD,
}

AGAIN_AT_MOST = 3
"""A conflict that three fresh looks at both sides did not solve needs time, or a person."""

REFETCH_AFTER = tuple(timedelta(seconds=seconds) for seconds in (1, 5, 30))
"""A replica that is behind has caught up after a second, mostly."""

CONFIRMED_AFTER = 2
"""So many times in a row the other side has refused it: it means it."""

HEALTH: dict[ErrorClass, Health] = {
    "not_sent": "unwell",
    "unknown": "unwell",
    "throttled": "unwell",
    "server_error": "unwell",
    "refused": "unwell",
}
"""What a failure says of the endpoint that was called last; the other answers are those of one that works."""


def rule_for(error_class: ErrorClass, overruled: Mapping[str, str]) -> Rule:
    """The rule of a destination that overrules some; `overruled` is its `outcomes`."""
    given = overruled.get(error_class)
    return RULES[error_class] if given is None else Rule(given)
