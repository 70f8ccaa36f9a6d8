"""Limits of attempts to sign in, by name and by address. Pure: `now` is passed in, in seconds of a steady clock."""

from __future__ import annotations

import ipaddress
from collections import OrderedDict

import msgspec

MOST_REMEMBERED = 10_000
_NETWORK_BITS = 64
"""An IPv6 customer has at least a /64 of addresses."""


class AttemptLimit(msgspec.Struct, frozen=True):
    """A token bucket: so many attempts at once, and one more after each pause."""

    burst: int
    pause_seconds: float


BY_NAME = AttemptLimit(burst=10, pause_seconds=30)
"""About 2,900 guesses a day."""
BY_ADDRESS = AttemptLimit(burst=30, pause_seconds=5)
"""A proxy or an office is one address for many people."""


class Attempts:
    """Attempts of many names or addresses. It remembers those of the last `MOST_REMEMBERED`."""

    def __init__(self, limit: AttemptLimit, most: int = MOST_REMEMBERED) -> None:
        self._limit, self._most = limit, most
        self._used: OrderedDict[str, tuple[float, float]] = OrderedDict()
        """The attempts that count, and when they were counted; the one that was used last stands last."""

    def wait_seconds(self, key: str, now: float) -> float:
        """Return the time until one more attempt is allowed; 0: now."""
        return max(0.0, (self._counted(key, now) + 1 - self._limit.burst) * self._limit.pause_seconds)

    def add(self, key: str, now: float) -> None:
        """Count an attempt."""
        self._used[key] = (self._counted(key, now) + 1, now)
        self._used.move_to_end(key)
        while len(self._used) > self._most:
            self._used.popitem(last=False)

    def take_back(self, key: str, now: float) -> None:
        """Count an attempt no longer: it was none of a stranger."""
        self._used[key] = (max(0.0, self._counted(key, now) - 1), now)

    def _counted(self, key: str, now: float) -> float:
        used, at = self._used.get(key, (0.0, now))
        return max(0.0, used - max(0.0, now - at) / self._limit.pause_seconds)


class SignInLimits:
    """The limits of both together. An attempt that one of them denies counts for neither.

    Where a person has signed in from an address before, the attempts with this name from there are counted apart: strangers
    elsewhere who guess at a password keep nobody out of the usual place. It remembers the last `MOST_REMEMBERED` places.
    """

    def __init__(self) -> None:
        self._by_name, self._by_address = Attempts(BY_NAME), Attempts(BY_ADDRESS)
        self._at_known_places = Attempts(BY_NAME)
        self._known: OrderedDict[tuple[str, str], None] = OrderedDict()

    def begin(self, name: str, address: str, now: float) -> float:
        """Count an attempt, and return 0; or count nothing, and return the seconds until one is allowed."""
        place = network_of(address)
        of_name, key = self._of_name(name, place)
        wait = max(of_name.wait_seconds(key, now), self._by_address.wait_seconds(place, now))
        if not wait:
            of_name.add(key, now)
            self._by_address.add(place, now)
        return wait

    def succeeded(self, name: str, address: str, now: float) -> None:
        """Count an attempt no longer, as the password was right, and remember the place."""
        place = network_of(address)
        of_name, key = self._of_name(name, place)
        of_name.take_back(key, now)
        self._by_address.take_back(place, now)
        self._known[name, place] = None
        self._known.move_to_end((name, place))
        while len(self._known) > MOST_REMEMBERED:
            self._known.popitem(last=False)

    def _of_name(self, name: str, place: str) -> tuple[Attempts, str]:
        """Return the attempts among which those of a name from a place count, and their key: a place has no line end."""
        return (self._at_known_places, f"{place}\n{name}") if (name, place) in self._known else (self._by_name, name)


def network_of(address: str) -> str:
    """Return the network that one person may have: an IPv4 address alone, or the /64 of an IPv6 address."""
    try:
        given = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return address
    if isinstance(given, ipaddress.IPv4Address):
        return str(given)
    return str(given.ipv4_mapped or ipaddress.ip_network((given, _NETWORK_BITS), strict=False))
