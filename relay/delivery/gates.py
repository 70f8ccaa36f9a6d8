"""Gates: pauses, rate limits, rate holds and circuit breakers. Pure.

They are rows of `gate`, shared by all relays. A closed gate stops claims, so it delays deliveries but uses none of their attempts.

The circuit breaker of a destination or api:

| state | event | next state |
| --- | --- | --- |
| closed | half or more of at least 10 calls in a minute failed; or credentials were refused | open |
| open | its time is over, and a relay claims one delivery as a probe | half_open |
| half_open | the probe succeeded | closed |
| half_open | the probe failed | open, twice as long as before, up to 10 min or `open_for` if that is longer |
| any | the endpoint answered 410 | retired, until an operator resumes it |
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
"""The kind and name of a row of `gate`."""

Entity = tuple[str, str, str]
"""source, type and id."""


class BreakerState(StrEnum):
    """`gate.breaker`."""

    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half_open"
    RETIRED = "retired"


STOPPED = frozenset({BreakerState.OPEN, BreakerState.HALF_OPEN, BreakerState.RETIRED})
"""States in which a failed attempt is not the event's fault: the attempt began before the breaker opened, or is the probe."""

Health = Literal["well", "unwell", "refused", "retired"]
"""Health of an endpoint after an attempt: it works, fails, refuses our credentials, or is gone."""


class Report(NamedTuple):
    """The health of one endpoint after an attempt, for its breaker."""

    key: GateKey
    health: Health
    why: str


class Breaker(msgspec.Struct, frozen=True):
    """The breaker columns of a `gate` row. Times are by the database's clock, in UTC."""

    state: BreakerState = BreakerState.CLOSED
    until: datetime | None = None
    """Earliest time of a probe when open; end of the probe when half open."""
    cause: str | None = None
    open_count: int = 0
    """Number of consecutive openings."""
    failures: int = 0
    calls: int = 0
    window_began_at: datetime | None = None

    def lets_claim(self, now: datetime) -> Literal["all", "probe", "none"]:
        """Return which claims the breaker permits: all, one delivery as a probe, or none."""
        if self.state is BreakerState.CLOSED:
            return "all"
        if self.state is BreakerState.RETIRED or self.until is None or now < self.until:
            return "none"
        return "probe"


class BreakerLimits(msgspec.Struct, frozen=True):
    """The conditions under which a breaker opens, and its times in seconds."""

    calls: int = 10
    """Minimum number of attempts in `window` before it opens."""
    failed: float = 0.5
    """Share of failed attempts at which it opens."""
    window: float = 60.0
    open_for: float = 30.0
    """Time until a probe. It doubles with each failed probe, up to `longest`; a value above `longest` stays as it is."""
    longest: float = 600.0


BREAKER = BreakerLimits()
LONGEST_HOLD = timedelta(hours=1)
"""The longest time that the `Retry-After` or rate limit headers of a response hold back further calls."""


def probe(breaker: Breaker, now: datetime, given_up_after: timedelta) -> Breaker:
    """Start a probe: a relay claimed one delivery to test the endpoint."""
    return msgspec.structs.replace(breaker, state=BreakerState.HALF_OPEN, until=now + given_up_after)


def apply_result(breaker: Breaker, health: Health, why: str, limits: BreakerLimits, now: datetime) -> Breaker:
    """Return the breaker after an attempt with this result."""
    if breaker.state is BreakerState.RETIRED:
        return breaker
    if health == "retired":
        return msgspec.structs.replace(breaker, state=BreakerState.RETIRED, until=None, cause=why)
    if breaker.state is BreakerState.OPEN:
        return breaker  # the call began before it opened
    if breaker.state is BreakerState.HALF_OPEN:
        return Breaker() if health == "well" else _open(breaker, why, limits, now)
    return _open(breaker, why, limits, now) if health == "refused" else _count_call(breaker, health, why, limits, now)


def _count_call(breaker: Breaker, health: Health, why: str, limits: BreakerLimits, now: datetime) -> Breaker:
    began = breaker.window_began_at
    if began is None or now - began >= timedelta(seconds=limits.window):
        breaker = Breaker(window_began_at=now)
    calls, failures = breaker.calls + 1, breaker.failures + int(health == "unwell")
    if health == "unwell" and calls >= limits.calls and failures >= limits.failed * calls:
        return _open(breaker, why, limits, now)
    return msgspec.structs.replace(breaker, calls=calls, failures=failures)


def _open(breaker: Breaker, why: str, limits: BreakerLimits, now: datetime) -> Breaker:
    seconds = min(
        limits.open_for * 2.0 ** min(breaker.open_count, _MOST_DOUBLINGS), max(limits.longest, limits.open_for)
    )
    open_count = min(breaker.open_count + 1, _MOST_OPENINGS)
    return Breaker(BreakerState.OPEN, now + timedelta(seconds=seconds), why, open_count)


_MOST_DOUBLINGS = 40
"""Enough doublings of a millisecond to exceed 366 days, the longest setting. A float overflows after 1,023."""
_MOST_OPENINGS = 2**31 - 1
"""The largest value of the column `open_count`."""


LEAST_BURST = 2
"""Minimum number of calls that may go out at once. With one, the time between two claims would be wasted."""


class RateLimit(msgspec.Struct, frozen=True):
    """The rate limit of an endpoint, and the calls that an attempt acquires from it."""

    key: GateKey
    rate: float
    """Calls per second of all relays together."""
    calls: int
    """The most calls that one attempt makes."""

    def affords(self, used_until: datetime | None, now: datetime) -> int:
        """Return the number of attempts that may be claimed now; `used_until` is the time until which the rate is used up."""
        return math.floor((self._burst - self._ahead(used_until, now) * self.rate + _ROUNDING) / self.calls)

    def opens_in(self, used_until: datetime | None, now: datetime) -> float:
        """Return the seconds until the next attempt may be claimed; 0 when one may be claimed now."""
        if self.affords(used_until, now) > 0:
            return 0.0
        return self._ahead(used_until, now) - (self._burst - self.calls) / self.rate

    def use(self, used_until: datetime | None, now: datetime, attempts: int) -> datetime:
        """Return the time until which the rate is used up after `attempts` more attempts."""
        return now + timedelta(seconds=self._ahead(used_until, now) + attempts * self.calls / self.rate)

    def _ahead(self, used_until: datetime | None, now: datetime) -> float:
        """Return the seconds that are used up. Returns 0 if that exceeds a burst, as the clock was then set back."""
        ahead = max((used_until - now).total_seconds(), 0) if used_until else 0.0
        return ahead if ahead <= self._burst / self.rate + 1 else 0.0

    @property
    def _burst(self) -> int:
        return max(LEAST_BURST, self.calls, math.floor(self.rate))


_ROUNDING = 1e-6
"""Tolerance for times stored in microseconds."""


class Gate(OneGate, frozen=True, omit_defaults=True, forbid_unknown_fields=True):
    """A gate named by an operator."""

    @property
    def key(self) -> GateKey:
        """The key of its row in `gate`."""
        if self.source is not None and self.entity_type is not None and self.entity_id is not None:
            return make_entity_key(self.source, self.entity_type, self.entity_id)
        ((kind, name),) = self._list_named()
        return kind, name

    def mistake(self, config: Config | None) -> str | None:
        """Return the reason it is invalid, or None. Without a configuration, any name is valid."""
        named = self._list_named()
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

    def _list_named(self) -> list[GateKey]:
        given = (("route", self.route), ("destination", self.destination), ("api", self.api), ("source", self.source))
        return [(kind, name) for kind, name in given if name is not None]


Admission = Literal["all", "probe", "none"]


class Held(msgspec.Struct, frozen=True):
    """A rate hold: an endpoint asked for no calls until this time of the database's clock."""

    until: datetime
    why: str


class Gates(msgspec.Struct, frozen=True):
    """A snapshot of the gates. A gate without an entry is open.

    Paused entities may be many, so the SQL of each claim skips their deliveries instead.
    """

    at: datetime = datetime.min.replace(tzinfo=UTC)
    paused: frozenset[GateKey] = frozenset()
    breakers: Mapping[GateKey, Breaker] = {}
    held: Mapping[GateKey, Held] = {}
    """Rate holds, including expired ones."""

    def admit(self, through: Iterable[GateKey]) -> Admission:
        """Return which claims are permitted on a route that passes the gates in `through`."""
        keys = list(through)
        if any(key in self.paused or self.holds(key) for key in keys):
            return "none"
        answers = {self.breakers[key].lets_claim(self.at) for key in keys if key in self.breakers}
        return "none" if "none" in answers else "probe" if "probe" in answers else "all"

    def holds(self, key: GateKey) -> bool:
        """Return whether a rate hold on this endpoint is in force."""
        return key in self.held and self.at < self.held[key].until

    def list_recently_failing(self) -> frozenset[GateKey]:
        """Return the endpoints whose breakers also need reports of successes: not closed, or with a failure in the window."""
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


def make_entity_key(source: str, entity_type: str, entity_id: str) -> GateKey:
    """Return the gate of one entity."""
    return ("entity", "|".join(map(escape, (source, entity_type, entity_id))))


def parse_entity_key(name: str) -> Entity | None:
    """Return the entity whose gate has this name; None if it is not an entity's gate."""
    parts = split(name)
    return (parts[0], parts[1], parts[2]) if len(parts) == _ENTITY_PARTS else None


def format_gate(kind: str, name: str) -> str:
    """Return a gate in words, such as `destination crm`, or `trivore USER/u1` for an entity."""
    entity = parse_entity_key(name) if kind == "entity" else None
    return f"{kind} {name}" if entity is None else f"{entity[0]} {entity[1]}/{entity[2]}"


def format_resume_command(kind: str, name: str, act: str = "resume") -> str:
    """Return the command that applies `act` to a gate or its deliveries."""
    entity = parse_entity_key(name) if kind == "entity" else None
    if entity is None:
        return shlex.join(["relay", act, f"--{kind}", name])
    source, entity_type, entity_id = entity
    return shlex.join(["relay", act, "--source", source, "--entity", f"{entity_type}/{entity_id}"])


_ENTITY_PARTS = 3
