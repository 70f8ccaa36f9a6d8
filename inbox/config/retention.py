"""`[retention]`: ages at which relays delete what has ended."""

from __future__ import annotations

from typing import Literal

from inbox.config.types import Age, Table

RetentionKind = Literal[
    "payloads",
    "events",
    "attempts",
    "rejected",
    "duplicates",
    "relay_nodes",
    "alerts",
    "commands",
    "reveals",
    "throughput",
]
"""Each kind of rows that expires; `inbox.db.retention` has the step of each."""

_DAY = 86400


class Retention(Table, frozen=True):
    """Ages after which relays delete what has ended: a duration such as `"30d"`, or `"forever"`.

    They never delete anything that is open, blocked, dead or not judged yet. A dead delivery keeps its event and its
    payload until it is delivered or cancelled.
    """

    payloads: Age = Age(30 * _DAY)
    """Headers and bodies of events. The events stay, without them; such an event can't be replayed."""
    events: Age = Age(400 * _DAY)
    """Events with their keys, facts and duplicates; one with a younger fact stays. A request that comes later counts as new."""
    attempts: Age = Age(30 * _DAY)
    """Failed and abandoned attempts of deliveries that have ended. The fact that ended a delivery stays with its event."""
    rejected: Age = Age(14 * _DAY)
    """Rejected requests."""
    duplicates: Age = Age(14 * _DAY)
    """Duplicate requests that a relay has judged."""
    relay_nodes: Age = Age(90 * _DAY)
    """Runs of relay processes that have ended."""
    alerts: Age = Age(90 * _DAY)
    """Alerts. The last one of each kind and subject stays."""
    commands: Age = Age(90 * _DAY)
    """Commands of operators that have ended."""
    reveals: Age = Age(400 * _DAY)
    """Rows of `payload_reveal`: who saw the headers and body of which event on the operator's page, and why."""
    throughput: Age = Age(30 * _DAY)
    """Figures of each minute in `throughput_minute`."""

    def age_of(self, kind: RetentionKind) -> Age:
        """Return the age of a kind."""
        age: Age = getattr(self, kind)
        return age
