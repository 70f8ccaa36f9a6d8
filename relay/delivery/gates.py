"""What holds deliveries back besides their order: pauses, rate limits and circuit breakers. Pure.

All of it is kept in rows of `gate`, shared by all relays. It stops claiming and uses no attempt; what waits, waits.

The circuit breaker of a destination or api:

| state | what happens | then |
| --- | --- | --- |
| closed | of at least `calls` calls in `window`, `failed` or more of them failed; or credentials were refused | open |
| open | `until` has come, and a relay claims one delivery | half_open |
| half_open | the probe went well | closed |
| half_open | the probe failed: twice as long as before, up to `longest` | open |
| any | it answered 410: it is gone for good | retired, until a person resumes it |
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import Literal

import msgspec

from inbox.config.model import BreakerLimits, Config
from inbox.events.event import escape, split

GateKey = tuple[str, str]
"""kind and name of a row of `gate`."""

Entity = tuple[str, str, str]
"""source, type and id."""


class BreakerState(StrEnum):
    """`gate.breaker`."""

    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half_open"
    RETIRED = "retired"


STOPPED = frozenset({BreakerState.OPEN, BreakerState.HALF_OPEN, BreakerState.RETIRED})
"""What fails then says nothing of its event: it began before, or was to see whether the endpoint is well again."""

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
    seconds = min(limits.open_for * 2.0 ** min(breaker.open_count, _MOST_DOUBLINGS), limits.longest)
    open_count = min(breaker.open_count + 1, _MOST_OPENINGS)
    return Breaker(BreakerState.OPEN, now + timedelta(seconds=seconds), why, open_count)


_MOST_DOUBLINGS = 40
"""From a millisecond they lead beyond 366 days, the longest that can be configured; a float takes 1,023."""
_MOST_OPENINGS = 2**31 - 1
"""As many as the column `open_count` holds."""


LEAST_BURST = 2
"""Two calls may go out at once at any rate: else the time between two claims would be lost to it."""


class RateLimit(msgspec.Struct, frozen=True):
    """What an attempt uses of an endpoint's rate limit."""

    key: GateKey
    rate: float
    """Calls per second, all relays together."""
    calls: int
    """As many as one attempt may make."""

    def affords(self, used_until: datetime | None, now: datetime) -> int:
        """How many attempts may be claimed now, where earlier ones have used the rate up until `used_until`."""
        return math.floor((self._burst - _ahead(used_until, now) * self.rate + _ROUNDING) / self.calls)

    def opens_in(self, used_until: datetime | None, now: datetime) -> float:
        """In how many seconds the next attempt may be claimed; 0 when one may be now."""
        if self.affords(used_until, now) > 0:
            return 0.0
        return _ahead(used_until, now) - (self._burst - self.calls) / self.rate

    def used(self, used_until: datetime | None, now: datetime, attempts: int) -> datetime:
        """Until when the rate is used up after so many more attempts."""
        return max(used_until or now, now) + timedelta(seconds=attempts * self.calls / self.rate)

    def furthest(self, now: datetime) -> datetime:
        """Until when the rate can be used up at most: no claim goes beyond a burst."""
        return now + timedelta(seconds=self._burst / self.rate)

    @property
    def _burst(self) -> int:
        return max(LEAST_BURST, self.calls, math.floor(self.rate))


def _ahead(used_until: datetime | None, now: datetime) -> float:
    return max((used_until - now).total_seconds(), 0) if used_until else 0.0


_ROUNDING = 1e-6
"""Times are kept in microseconds."""


class ClaimFilter(msgspec.Struct, frozen=True):
    """What deliveries of a route have to pass before they are claimed."""

    paused: tuple[Entity, ...] = ()
    """Entities whose deliveries are passed over."""
    rate_limits: tuple[RateLimit, ...] = ()


NO_FILTER = ClaimFilter()


class Gate(msgspec.Struct, frozen=True, omit_defaults=True, forbid_unknown_fields=True):
    """Which gate an operator means: one of the first four, or a source's entity. As JSON in `relay_command.selection`."""

    route: str | None = None
    destination: str | None = None
    api: str | None = None
    source: str | None = None
    entity_type: str | None = None
    entity_id: str | None = None

    @property
    def key(self) -> GateKey:
        """Its row of `gate`."""
        if self.source is not None and self.entity_type is not None and self.entity_id is not None:
            return entity_key(self.source, self.entity_type, self.entity_id)
        ((kind, name),) = self._named()
        return kind, name

    def mistake(self, config: Config) -> str | None:
        """Why it names no gate; None when it does."""
        named = self._named()
        if len(named) != 1:
            return "name one of route, destination, api and source; for an entity its source, and its type and id"
        if (self.entity_type is None) != (self.entity_id is None) or (self.entity_id is not None and not self.source):
            return "an entity is named by its source, its type and its id"
        kind, name = named[0]
        known: dict[str, Mapping[str, object]] = {
            "route": config.routes,
            "destination": config.destinations,
            "api": config.apis,
            "source": config.sources,
        }
        if name not in known[kind]:
            return f"no {kind} {name!r} is configured; there are: {', '.join(sorted(known[kind])) or 'none'}"
        return None

    def _named(self) -> list[GateKey]:
        given = (("route", self.route), ("destination", self.destination), ("api", self.api), ("source", self.source))
        return [(kind, name) for kind, name in given if name is not None]


Admission = Literal["all", "probe", "none"]


class Gates(msgspec.Struct, frozen=True):
    """What holds deliveries back, as the database has it at one moment. A gate that is not here is open."""

    at: datetime = datetime.min.replace(tzinfo=UTC)
    paused: frozenset[GateKey] = frozenset()
    breakers: Mapping[GateKey, Breaker] = {}

    def admit(self, through: Iterable[GateKey]) -> Admission:
        """How much may be claimed of a route that goes through these gates."""
        keys = list(through)
        if any(key in self.paused for key in keys):
            return "none"
        answers = {self.breakers[key].lets_claim(self.at) for key in keys if key in self.breakers}
        return "none" if "none" in answers else "probe" if "probe" in answers else "all"

    def troubled(self, limits: Mapping[GateKey, BreakerLimits]) -> frozenset[GateKey]:
        """The endpoints whose breakers have to hear of successes, too: not closed, or with a failure in this window."""
        return frozenset(
            key
            for key, breaker in self.breakers.items()
            if breaker.state is not BreakerState.CLOSED
            or (
                key in limits
                and breaker.failures > 0
                and breaker.window_began_at is not None
                and self.at - breaker.window_began_at < timedelta(seconds=limits[key].window)
            )
        )

    @property
    def paused_entities(self) -> tuple[Entity, ...]:
        """The entities that are paused."""
        entities = [entity_of(name) for kind, name in self.paused if kind == "entity"]
        return tuple(sorted(entity for entity in entities if entity is not None))


def entity_key(source: str, entity_type: str, entity_id: str) -> GateKey:
    """The gate of one entity."""
    return ("entity", "|".join(map(escape, (source, entity_type, entity_id))))


def entity_of(name: str) -> Entity | None:
    """The entity whose gate has this name; None when no entity's has."""
    parts = split(name)
    return (parts[0], parts[1], parts[2]) if len(parts) == _ENTITY_PARTS else None


_ENTITY_PARTS = 3
