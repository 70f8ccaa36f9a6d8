"""Tracks on this process's steady clock how long each lease may be trusted.

A lease lasts 15 s by the database's clock, from the moment of its grant. This process trusts it for 14 s after sending
the request, however slow the response. So a relay that can't renew stops its calls before another takes over: two relays
never make calls for one delivery at the same time.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Iterable

from inbox.clock import steady
from relay.store.deliveries import LeaseKey
from relay.store.leases import LEASE_SECONDS

SAFETY_SECONDS = 1
TRUSTED_SECONDS = LEASE_SECONDS - SAFETY_SECONDS
RENEW_EVERY_SECONDS = LEASE_SECONDS / 3


class Leases:
    """The leases this process holds; safe to share between threads."""

    def __init__(self, clock: Callable[[], float] = steady) -> None:
        self._clock = clock
        self._trusted_until: dict[LeaseKey, float] = {}
        self._revoked = False
        self._lock = threading.Lock()

    def now(self) -> float:
        """Return the present instant. Call it before claiming or renewing, and pass the result to `trust` or `extend`."""
        return self._clock()

    def trust(self, claimed: Iterable[LeaseKey], asked_at: float) -> None:
        """Trust leases granted by a statement that was sent after `asked_at`."""
        with self._lock:
            self._trusted_until |= dict.fromkeys(claimed, asked_at + TRUSTED_SECONDS)

    def extend(self, claimed: Collection[LeaseKey], asked_at: float) -> None:
        """Extend renewed leases. Leases forgotten meanwhile stay forgotten."""
        with self._lock:
            held = self._trusted_until.keys() & claimed
            self._trusted_until |= dict.fromkeys(held, asked_at + TRUSTED_SECONDS)

    def forget(self, claimed: Iterable[LeaseKey]) -> None:
        """Drop the leases of recorded or released deliveries."""
        with self._lock:
            for key in claimed:
                self._trusted_until.pop(key, None)

    def revoke(self) -> None:
        """Stop trusting any lease, present or future, and so cut running calls."""
        self._revoked = True

    def trusts_until(self, key: LeaseKey) -> float:
        """Return the time of the steady clock at which trust in the lease ends; renewals extend it."""
        return 0.0 if self._revoked else self._trusted_until.get(key, 0.0)

    def list_trusted(self) -> list[LeaseKey]:
        """List the leases trusted now. This process never rescues them, whatever the database's clock shows."""
        now = self._clock()
        with self._lock:
            return [] if self._revoked else [key for key, until in self._trusted_until.items() if now < until]

    def held(self) -> list[LeaseKey]:
        """List all leases to renew, trusted or not; none once revoked, so that other relays can rescue the deliveries."""
        with self._lock:
            return [] if self._revoked else list(self._trusted_until)
