"""The database's clock as one relay process sees it, compared with the monotonic clock to detect steps.

Right after a step every lease looks as if it had run out, or as if it lasted too long. Relays that live renew theirs within
5 s, so nothing is taken back for as long as a lease lasts: after that, what is not renewed was held by one that died.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from datetime import datetime

from inbox.clock import steady
from relay.store.leases import LEASE_SECONDS
from relay.store.transaction import Transaction

MOST_UNNOTICED_SECONDS = 1.0
"""A relay trusts a lease for one second less than the database does: a smaller step takes no trusted lease away."""
_QUICK_SECONDS = 0.2
_LOOKS = 3


class DatabaseClock:
    """Remembers the difference between both clocks at its last reading. Don't share it between threads."""

    def __init__(self, own: Callable[[], float] = steady, told: Callable[[float], None] = lambda _: None) -> None:
        """`told` is called with each step in seconds; below zero when the clock went back."""
        self._own = own
        self._told = told
        self._ahead: float | None = None
        """The least number of seconds that the database's clock is ahead of ours."""
        self._settled_at = -math.inf

    def look(self, transaction: Transaction) -> datetime:
        """Read the database's time and compare. Read often: drift between two readings counts as a step."""
        for _ in range(_LOOKS):
            before = self._own()
            now = transaction.now()
            after = self._own()
            if after - before < _QUICK_SECONDS:  # a slow answer tells the difference only roughly
                break
        self._compare(now.timestamp() - after, now.timestamp() - before)
        return now

    def is_settled(self) -> bool:
        """True when every living relay has renewed its leases since the last step."""
        return self._own() >= self._settled_at

    def _compare(self, least: float, most: float) -> None:
        before, self._ahead = self._ahead, least
        if before is None:
            return
        if abs(most - before) > MOST_UNNOTICED_SECONDS:
            self._settled_at = self._own() + LEASE_SECONDS
            self._told(most - before)
