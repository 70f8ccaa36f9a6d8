"""Rules for failed attempts: a table by error class, with a destination's exceptions. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta
from enum import StrEnum

from relay.delivery.gates import Health
from relay.delivery.outcome import ErrorClass


class Rule(StrEnum):
    """The consequence of a failed attempt."""

    RETRY = "retry"
    """Another attempt by the route's schedule, or after `Retry-After`."""
    CONFIRM = "confirm"
    """A second attempt by the schedule; the same failure again is final."""
    AGAIN = "again"
    """Immediate attempts from the fetch on, at most three in a row and not counted; then by the schedule."""
    REFETCH = "refetch"
    """Attempts from the fetch on after 1, 5 and 30 seconds, not counted; then the entity is applied as it is."""
    DEAD = "dead"
    """Dead at once: the configuration or the data has to change first."""
    STOP = "stop"
    """The endpoint's breaker opens: it refuses every call. No attempt is used."""
    RETIRE = "retire"
    """The destination is gone: nothing is sent there until an operator resumes it. No attempt is used."""
    NOT_COUNTED = "not_counted"
    """The failure says nothing about this event: due at once, and no attempt is used."""


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
    "handler_retry": Rule.RETRY,
    "handler_abort": Rule.DEAD,
}

AGAIN_AT_MOST = 3
"""A conflict that three fresh fetches did not solve needs time, or an operator."""

REFETCH_AFTER = tuple(timedelta(seconds=seconds) for seconds in (1, 5, 30))
"""A lagging replica has mostly caught up after a second."""

CONFIRMED_AFTER = 2
"""Number of equal rejections in a row that are final."""

HEALTH: dict[ErrorClass, Health] = {
    "not_sent": "unwell",
    "unknown": "unwell",
    "throttled": "unwell",
    "server_error": "unwell",
    "refused": "unwell",
}
"""Health of the endpoint called last, by error class; any other answer proves that it works."""


def rule_for(error_class: ErrorClass, overruled: Mapping[str, str]) -> Rule:
    """Return the rule for an error class; `overruled` is the destination's `outcomes`."""
    given = overruled.get(error_class)
    return RULES[error_class] if given is None else Rule(given)
