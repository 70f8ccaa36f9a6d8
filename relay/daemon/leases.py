"""Leases as this process trusts them, on its own steady clock.

A lease lasts 15 s by the database's clock from the moment the database grants it. Here it is trusted until 14 s after
the request for it began, however slow the answer was. So a relay that can't renew stops its calls before another may
take over: two relays never make calls for one delivery at the same time.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Iterable

from inbox.clock import steady
from relay.store.deliveries import Claimed
from relay.store.leases import LEASE_SECONDS

SAFETY_SECONDS = 1
TRUSTED_SECONDS = LEASE_SECONDS - SAFETY_SECONDS
RENEW_EVERY_SECONDS = LEASE_SECONDS / 3


class Leases:
    """The leases this process holds; safe to share between threads."""

    def __init__(self, clock: Callable[[], float] = steady) -> None:
        self._clock = clock
        self._trusted_until: dict[Claimed, float] = {}
        self._revoked = False
        self._lock = threading.Lock()

    def began_asking(self) -> float:
        """Return the present instant. Call it before claiming or renewing; pass the result to `granted` or `renewed`."""
        return self._clock()

    def granted(self, claimed: Iterable[Claimed], began_asking: float) -> None:
        """Trust leases that were claimed by a statement sent after `began_asking`."""
        with self._lock:
            self._trusted_until |= dict.fromkeys(claimed, began_asking + TRUSTED_SECONDS)

    def renewed(self, claimed: Collection[Claimed], began_asking: float) -> None:
        """Extend, as `granted` does, the leases that are still held: one that was recorded meanwhile stays forgotten."""
        with self._lock:
            held = self._trusted_until.keys() & claimed
            self._trusted_until |= dict.fromkeys(held, began_asking + TRUSTED_SECONDS)

    def forget(self, claimed: Iterable[Claimed]) -> None:
        """Drop leases of deliveries that are recorded or released."""
        with self._lock:
            for key in claimed:
                self._trusted_until.pop(key, None)

    def revoke(self) -> None:
        """Trust no lease any more, present or future: running calls are cut."""
        self._revoked = True

    def trusted_until(self, key: Claimed) -> float:
        """Return the instant of the steady clock after which the lease permits nothing; a renewal moves it."""
        return 0.0 if self._revoked else self._trusted_until.get(key, 0.0)

    def trusted(self) -> list[Claimed]:
        """List the leases trusted now. This process never rescues them, whatever the database's clock says."""
        now = self._clock()
        with self._lock:
            return [] if self._revoked else [key for key, until in self._trusted_until.items() if now < until]

    def held(self) -> list[Claimed]:
        """List all leases to renew, trusted or not; none once they are revoked: other relays rescue what is unrecorded."""
        with self._lock:
            return [] if self._revoked else list(self._trusted_until)
