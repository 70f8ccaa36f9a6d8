"""Rules of `[retention]`: floors below which a guarantee would break, and ages that would say nothing beside others."""

from __future__ import annotations

from collections.abc import Iterator

from inbox.config.mistakes import Mistake
from inbox.config.retention import Retention, RetentionKind
from inbox.events.states import RETENTION_FLOOR_DAYS

_DAY = 86400

FLOORS: dict[RetentionKind, tuple[int, str]] = {
    "payloads": (1, "a failed delivery has to be seen before its payload is gone"),
    "events": (RETENTION_FLOOR_DAYS, "the keys recognise late duplicates"),
    "attempts": (RETENTION_FLOOR_DAYS, "`relay verify` takes a gap in younger attempts for a loss"),
    "rejected": (1, "a mistake has to be seen before its traces are gone"),
    "duplicates": (1, "a mistake has to be seen before its traces are gone"),
    "relay_nodes": (1, "a crash loop has to be seen before its traces are gone"),
    "alerts": (1, "an alert is posted for as long as a day"),
    "commands": (1, "an answer has to be seen before it is gone"),
    "reveals": (30, "an audit asks weeks later who has seen a payload"),
    "throughput": (1, "the views of sources and destinations show the last day"),
}
"""The least age of each kind in days, and the reason."""

_WITH_THEIR_EVENTS: tuple[RetentionKind, ...] = ("payloads", "attempts", "duplicates")


def retention_mistakes(retention: Retention) -> Iterator[Mistake]:
    """Yield each age below its floor, and each above that of the events, with which the rows go."""
    for kind, (days, reason) in FLOORS.items():
        if retention.age_of(kind) < days * _DAY:
            yield Mistake(("retention", kind), f"must be at least {days}d: {reason}")
    for kind in _WITH_THEIR_EVENTS:
        if retention.age_of(kind) > retention.events:
            yield Mistake(
                ("retention", kind),
                f"is longer than events, {retention.events.shown}, with which they go; give at most that age",
            )
