"""`breaker` of an api or a destination: limits of its circuit breaker, with their defaults."""

from __future__ import annotations

from typing import Annotated

import msgspec

from inbox.config.types import Duration, Table


class BreakerLimits(Table, frozen=True):
    """Circuit breaker: the conditions that stop calls, and for how long. All relays share it."""

    calls: Annotated[int, msgspec.Meta(ge=1, le=100_000)] = 10
    """Least number of attempts in `window` before it opens."""
    failed: Annotated[float, msgspec.Meta(ge=0, le=1)] = 0.5
    """Share of failed attempts at which it opens."""
    window: Duration = Duration(60)
    open_for: Duration = Duration(30)
    """Time until one attempt probes the endpoint. It doubles each time the probe fails."""
    longest: Duration = Duration(600)
