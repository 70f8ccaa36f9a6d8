"""Gates: pauses, rate limits, rate holds and circuit breakers. Pure.

They are rows of `gate`, shared by all relays. A closed gate stops claiming and uses no attempt: it only delays deliveries.

The circuit breaker of a destination or api:

| state | what happens | then |
| --- | --- | --- |
| closed | of at least 10 calls in a minute, half or more failed; or credentials were refused | open |
| open | its time is over, and a relay claims one delivery | half_open |
| half_open | the probe succeeded | closed |
| half_open | the probe failed: twice as long as before, up to 10 min, or `open_for` if that is longer | open |
| any | it answered 410, which is final | retired, until an operator resumes it |
"""

from __future__ import annotations

import math
import shlex
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import Literal, NamedTuple

import msgspec

from inbox.config.mistakes import nearest
from inbox.config.model import Config
from inbox.events.event import escape, split
from relay.operations.asks import OneGate

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
"""In these states a failed attempt says nothing about its event: it began before the breaker opened, or was the probe."""

Health = Literal["well", "unwell", "refused", "retired"]
"""Health of an endpoint after an attempt: it works, it fails, it refuses our credentials, or it is gone."""


class Report(NamedTuple):
    """One attempt's report on one endpoint, to its breaker."""

    key: GateKey
    health: Health
    why: str


class Breaker(msgspec.Struct, frozen=True):
    """The breaker's part of a `gate` row. Times are the database's clock, UTC."""

    state: BreakerState = BreakerState.CLOSED
    until: datetime | None = None
    """Open: earliest time of a probe. Half open: end of the probe."""
    cause: str | None = None
    open_count: int = 0
    """Number of times it opened in a row."""
    failures: int = 0
    calls: int = 0
    window_began_at: datetime | None = None

    def lets_claim(self, now: datetime) -> Literal["all", "probe", "none"]:
        """Return the limit for claims: everything, one delivery as a probe, or nothing."""
        if self.state is BreakerState.CLOSED:
            return "all"
        if self.state is BreakerState.RETIRED or self.until is None or now < self.until:
            return "none"
        return "probe"


class BreakerLimits(msgspec.Struct, frozen=True):
    """The conditions on which a breaker opens, and for how many seconds."""

    calls: int = 10
    """Least number of attempts in `window` before it opens."""
    failed: float = 0.5
    """Share of failed attempts at which it opens."""
    window: float = 60.0
    open_for: float = 30.0
    """Time until a probe. It doubles each time the probe fails, up to `longest`, unless it is longer itself."""
    longest: float = 600.0


BREAKER = BreakerLimits()
LONGEST_HOLD = timedelta(hours=1)
"""Longest time for which an answer's `Retry-After` or rate limit headers hold back further calls."""


def probe(breaker: Breaker, now: datetime, given_up_after: timedelta) -> Breaker:
    """Start a probe: a relay claimed one delivery to test the endpoint."""
    return msgspec.structs.replace(breaker, state=BreakerState.HALF_OPEN, until=now + given_up_after)


def after_result(breaker: Breaker, health: Health, why: str, limits: BreakerLimits, now: datetime) -> Breaker:
    """Return the breaker after an attempt with this result."""
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
    seconds = min(
        limits.open_for * 2.0 ** min(breaker.open_count, _MOST_DOUBLINGS), max(limits.longest, limits.open_for)
    )
    open_count = min(breaker.open_count + 1, _MOST_OPENINGS)
    return Breaker(BreakerState.OPEN, now + timedelta(seconds=seconds), why, open_count)


_MOST_DOUBLINGS = 40
"""Enough to get from a millisecond beyond 366 days, the longest setting; a float takes 1,023."""
_MOST_OPENINGS = 2**31 - 1
"""The largest value of the column `open_count`."""


LEAST_BURST = 2
"""At any rate two calls may go out at once: otherwise the time between two claims would be lost."""


class RateLimit(msgspec.Struct, frozen=True):
    """The rate limit of an endpoint, and the calls that an attempt acquires from it."""

    key: GateKey
    rate: float
    """Calls per second, all relays together."""
    calls: int
    """Most calls of one attempt."""

    def affords(self, used_until: datetime | None, now: datetime) -> int:
        """Return the number of attempts that may be claimed now; `used_until` is the end of the rate already acquired."""
        return math.floor((self._burst - self._ahead(used_until, now) * self.rate + _ROUNDING) / self.calls)

    def opens_in(self, used_until: datetime | None, now: datetime) -> float:
        """Return the seconds until the next attempt may be claimed; 0 when one may be claimed now."""
        if self.affords(used_until, now) > 0:
            return 0.0
        return self._ahead(used_until, now) - (self._burst - self.calls) / self.rate

    def used(self, used_until: datetime | None, now: datetime, attempts: int) -> datetime:
        """Return the end of the acquired rate after so many more attempts."""
        return now + timedelta(seconds=self._ahead(used_until, now) + attempts * self.calls / self.rate)

    def _ahead(self, used_until: datetime | None, now: datetime) -> float:
        """Return the seconds that are used up. More than a burst lasts is of a clock that was set back: then nothing is."""
        ahead = max((used_until - now).total_seconds(), 0) if used_until else 0.0
        return ahead if ahead <= self._burst / self.rate + 1 else 0.0

    @property
    def _burst(self) -> int:
        return max(LEAST_BURST, self.calls, math.floor(self.rate))


_ROUNDING = 1e-6
"""Tolerance for times stored in microseconds."""


class Gate(OneGate, frozen=True, omit_defaults=True, forbid_unknown_fields=True):
    """The gate that an operator names."""

    @property
    def key(self) -> GateKey:
        """Key of its row in `gate`."""
        if self.source is not None and self.entity_type is not None and self.entity_id is not None:
            return entity_key(self.source, self.entity_type, self.entity_id)
        ((kind, name),) = self._named()
        return kind, name

    def mistake(self, config: Config | None) -> str | None:
        """Return the reason why it names no gate; None when it names one: of this configuration, or of any."""
        named = self._named()
        if len(named) != 1:
            return "name one of route, destination, api and source; for an entity its source, and its type and id"
        if (self.entity_type is None) != (self.entity_id is None) or (self.entity_id is not None and not self.source):
            return "an entity is named by its source, its type and its id"
        if config is None:
            return None
        kind, name = named[0]
        known: dict[str, Mapping[str, object]] = {
            "route": config.routes,
            "destination": config.destinations,
            "api": config.apis,
            "source": config.sources,
        }
        if name not in known[kind]:
            return f"there is no {kind} {name!r}; {nearest(name, known[kind])}"
        return None

    def _named(self) -> list[GateKey]:
        given = (("route", self.route), ("destination", self.destination), ("api", self.api), ("source", self.source))
        return [(kind, name) for kind, name in given if name is not None]


Admission = Literal["all", "probe", "none"]


class Held(msgspec.Struct, frozen=True):
    """A rate hold: an endpoint asked for no further call until this time of the database's clock."""

    until: datetime
    why: str


class Gates(msgspec.Struct, frozen=True):
    """A snapshot of the closed gates, but for those of entities. A gate that is not in it is open."""

    at: datetime = datetime.min.replace(tzinfo=UTC)
    paused: frozenset[GateKey] = frozenset()
    breakers: Mapping[GateKey, Breaker] = {}
    held: Mapping[GateKey, Held] = {}
    """Endpoints that have asked for no further call; a hold may be over."""
    paused_entities: int = 0
    """The number of paused entities: there may be very many, and each claim passes over theirs by itself."""

    def admit(self, through: Iterable[GateKey]) -> Admission:
        """Return the limit for claims of a route with these gates."""
        keys = list(through)
        if any(key in self.paused or self.holds(key) for key in keys):
            return "none"
        answers = {self.breakers[key].lets_claim(self.at) for key in keys if key in self.breakers}
        return "none" if "none" in answers else "probe" if "probe" in answers else "all"

    def holds(self, key: GateKey) -> bool:
        """Return True while an endpoint's rate limit holds its calls back."""
        return key in self.held and self.at < self.held[key].until

    def recently_failing(self) -> frozenset[GateKey]:
        """Return the endpoints whose breakers need reports of successes, too: not closed, or with a failure in this window."""
        window = timedelta(seconds=BREAKER.window)
        return frozenset(
            key
            for key, breaker in self.breakers.items()
            if breaker.state is not BreakerState.CLOSED
            or (
                breaker.failures > 0
                and breaker.window_began_at is not None
                and self.at - breaker.window_began_at < window
            )
        )


def entity_key(source: str, entity_type: str, entity_id: str) -> GateKey:
    """Return the gate of one entity."""
    return ("entity", "|".join(map(escape, (source, entity_type, entity_id))))


def entity_of(name: str) -> Entity | None:
    """Return the entity whose gate has this name; None when it is no entity's."""
    parts = split(name)
    return (parts[0], parts[1], parts[2]) if len(parts) == _ENTITY_PARTS else None


def resume_command(kind: str, name: str, act: str = "resume") -> str:
    """Return the command that opens a gate, or acts otherwise on what passes it."""
    entity = entity_of(name) if kind == "entity" else None
    if entity is None:
        return shlex.join(["relay", act, f"--{kind}", name])
    source, entity_type, entity_id = entity
    return shlex.join(["relay", act, "--source", source, "--entity", f"{entity_type}/{entity_id}"])


_ENTITY_PARTS = 3
