"""The circuit breaker of a destination or api: when it opens, when a probe may go out, when it closes. Pure.

A breaker that is open stops claiming and uses no attempt; what waits, waits. Its state is a row of `gate`, shared by all
relays.

| state | what happens | then |
| --- | --- | --- |
| closed | of at least `calls` calls in `window`, `failed` or more of them failed; or credentials were refused | open |
| open | `until` has come, and a relay claims one delivery | half_open |
| half_open | the probe went well | closed |
| half_open | the probe failed: twice as long as before, up to `longest` | open |
| any | it answered 410: it is gone for good | retired, until a person resumes it |
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Literal

import msgspec

from inbox.config import BreakerLimits


class BreakerState(StrEnum):
    """`gate.breaker`."""

    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half_open"
    RETIRED = "retired"


STOPPED = frozenset({BreakerState.OPEN, BreakerState.RETIRED})
"""What fails then began before, and says nothing of its event."""

Health = Literal["well", "unwell", "refused", "retired"]
"""What a finished attempt says of the destination: it works, it does not, it refuses our credentials, it is gone for good."""


class Breaker(msgspec.Struct, frozen=True):
    """The breaker's part of a `gate` row. Times are the database's clock, UTC."""

    state: BreakerState = BreakerState.CLOSED
    until: datetime | None = None
    """When open: a probe may go out after. When half open: the probe is given up after."""
    cause: str | None = None
    open_count: int = 0
    """How often it opened in a row."""
    failures: int = 0
    calls: int = 0
    window_began_at: datetime | None = None

    def lets_claim(self, now: datetime) -> Literal["all", "probe", "none"]:
        """How much may be claimed: everything, one delivery to see whether it works again, or nothing."""
        if self.state is BreakerState.CLOSED:
            return "all"
        if self.state is BreakerState.RETIRED or self.until is None or now < self.until:
            return "none"
        return "probe"


def probe(breaker: Breaker, now: datetime, given_up_after: timedelta) -> Breaker:
    """A relay has claimed one delivery to see whether it works again."""
    return msgspec.structs.replace(breaker, state=BreakerState.HALF_OPEN, until=now + given_up_after)


def heard(breaker: Breaker, health: Health, why: str, limits: BreakerLimits, now: datetime) -> Breaker:
    """An attempt has ended."""
    if breaker.state is BreakerState.RETIRED:
        return breaker
    if health == "retired":
        return msgspec.structs.replace(breaker, state=BreakerState.RETIRED, until=None, cause=why)
    if breaker.state is BreakerState.OPEN:
        return breaker  # of a call that began before it opened
    if breaker.state is BreakerState.HALF_OPEN:
        return Breaker() if health == "well" else _opened(breaker, why, limits, now)
    return _opened(breaker, why, limits, now) if health == "refused" else _counted(breaker, health, why, limits, now)


def _counted(breaker: Breaker, health: Health, why: str, limits: BreakerLimits, now: datetime) -> Breaker:
    began = breaker.window_began_at
    if began is None or now - began >= timedelta(seconds=limits.window):
        breaker = Breaker(window_began_at=now)
    calls, failures = breaker.calls + 1, breaker.failures + int(health == "unwell")
    if health == "unwell" and calls >= limits.calls and failures >= limits.failed * calls:
        return _opened(breaker, why, limits, now)
    return msgspec.structs.replace(breaker, calls=calls, failures=failures)


def _opened(breaker: Breaker, why: str, limits: BreakerLimits, now: datetime) -> Breaker:
    seconds = min(limits.open_for * 2**breaker.open_count, limits.longest)
    return Breaker(BreakerState.OPEN, now + timedelta(seconds=seconds), why, breaker.open_count + 1)


GateKey = tuple[str, str]
"""kind and name of a row of `gate`."""

Admission = Literal["all", "probe", "none"]


class Gates(msgspec.Struct, frozen=True):
    """What holds deliveries back, as the database has it at one moment. A gate that is not here is open."""

    at: datetime
    paused: frozenset[GateKey] = frozenset()
    breakers: Mapping[GateKey, Breaker] = {}

    def admit(self, through: Iterable[GateKey]) -> Admission:
        """How much may be claimed of a route that goes through these gates."""
        keys = list(through)
        if any(key in self.paused for key in keys):
            return "none"
        answers = {self.breakers[key].lets_claim(self.at) for key in keys if key in self.breakers}
        return "none" if "none" in answers else "probe" if "probe" in answers else "all"

    def paused_lanes(self, source: str) -> list[str]:
        """The lanes of this source's entities that are paused."""
        return [
            name.partition("|")[2] for kind, name in self.paused if kind == "entity" and name.startswith(f"{source}|")
        ]
