"""Until when this process may trust each of its leases, on its own steady clock.

A lease lasts 15 s by the database's clock from the moment the database grants it. Here it is trusted until 14 s after
the moment we began to ask for it, however slow the answer was; so a relay that can't renew stops before another may
take over (DESIGN §5).
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable

from inbox.clock import steady
from relay.delivery.outcome import Delivery
from relay.store.claim import LEASE_SECONDS, Claimed

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
        """Call before claiming or renewing; hand the result to `granted`."""
        return self._clock()

    def granted(self, claimed: Iterable[Claimed], began_asking: float) -> None:
        """These were claimed or renewed by a statement sent after `began_asking`."""
        until = began_asking + TRUSTED_SECONDS
        with self._lock:
            for key in claimed:
                self._trusted_until[key] = until

    def renewed(self, claimed: Iterable[Claimed], began_asking: float) -> None:
        """As `granted`, for those that are still held: one that was recorded meanwhile stays forgotten."""
        until = began_asking + TRUSTED_SECONDS
        with self._lock:
            for key in claimed:
                if key in self._trusted_until:
                    self._trusted_until[key] = until

    def forget(self, claimed: Iterable[Claimed]) -> None:
        """These are recorded or given back."""
        with self._lock:
            for key in claimed:
                self._trusted_until.pop(key, None)

    def revoke(self) -> None:
        """Trust none of them any more, whatever is claimed or renewed from now on: running calls are cut."""
        self._revoked = True

    def trusted_until(self, key: Claimed) -> float:
        """The instant of the steady clock after which nothing may be done under this lease; it moves when the lease is renewed."""
        return 0.0 if self._revoked else self._trusted_until.get(key, 0.0)

    def trusted(self) -> list[Claimed]:
        """Those that are trusted now; nobody in this process may take them for lost, whatever the database's clock says."""
        now = self._clock()
        with self._lock:
            return [] if self._revoked else [key for key, until in self._trusted_until.items() if now < until]

    def held(self) -> list[Claimed]:
        """All that are to be renewed, trusted or not; none once they are revoked: what can't be recorded now, others take."""
        with self._lock:
            return [] if self._revoked else list(self._trusted_until)


def claim_of(delivery: Delivery) -> Claimed:
    """What identifies the claim of a delivery."""
    return (delivery.seq, delivery.route, delivery.lease_token)
