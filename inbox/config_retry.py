"""When a failed attempt is repeated."""

from __future__ import annotations

from typing import Annotated

import msgspec

from inbox.config_values import Duration, Table


class Exponential(Table, frozen=True, kw_only=True):
    """Delays that grow, in place of a schedule."""

    first: Duration
    """After the first attempt."""
    factor: Annotated[float, msgspec.Meta(ge=1, le=10)] = 2.0
    """By which each delay is longer than the one before."""
    longest: Duration = Duration(6 * 3600)
    """No delay is longer."""
    attempts: Annotated[int, msgspec.Meta(ge=1, le=100)] = 20
    """All of them together; after the last, the delivery dies."""


class Retry(Table, frozen=True):
    """When a failed attempt is repeated: after the first delay, then the second; after the last, the delivery dies."""

    schedule: tuple[Duration, ...] = tuple(
        Duration(seconds) for seconds in (5, 30, 300, 1800, 7200, 18000, 36000, 36000, 50400, 72000)
    )
    exponential: Exponential | None = None
    """Delays that grow, in place of `schedule`."""
    window: Duration | None = None
    """When the next attempt would be later than this after the first one of the run, the delivery dies instead."""
    jitter: Annotated[float, msgspec.Meta(ge=0, le=1)] = 0.2
    """The largest part of a delay that chance adds to it."""
