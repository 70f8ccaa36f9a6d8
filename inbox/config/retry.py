"""`[routes.NAME.retry]`: delays between the attempts of a delivery, with their defaults."""

from __future__ import annotations

from typing import Annotated

import msgspec

from inbox.config.types import Duration, Table


class Exponential(Table, frozen=True, kw_only=True):
    """Delays that grow, in place of a schedule."""

    first: Duration
    """Delay after the first attempt."""
    factor: Annotated[float, msgspec.Meta(ge=1, le=10)] = 2.0
    """Each delay is longer than the one before by this factor."""
    longest: Duration = Duration(6 * 3600)
    """Longest delay."""
    attempts: Annotated[int, msgspec.Meta(ge=1, le=100)] = 20
    """Attempts in all; after the last, the delivery dies."""


class Retry(Table, frozen=True):
    """Delays between the attempts of a delivery. It dies when the attempt after the last delay fails."""

    schedule: tuple[Duration, ...] = tuple(
        Duration(seconds) for seconds in (5, 30, 300, 1800, 7200, 18000, 36000, 36000, 50400, 72000)
    )
    exponential: Exponential | None = None
    """Delays that grow, in place of `schedule`."""
    window: Duration | None = None
    """Time from the first attempt of a run in which further ones may begin. The delivery dies when the next one would be later."""
    jitter: Annotated[float, msgspec.Meta(ge=0, le=1)] = 0.2
    """Largest part of a delay that is added at random."""
