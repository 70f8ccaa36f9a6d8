"""Limits of open connections, requests and memory, and the keys shared by server and app."""

from __future__ import annotations

import math

import msgspec

from inbox.errors import Unavailable

CUT_SHORT = "inbox.cut_short"
"""Scope key: the reason why the rest of the body will not arrive."""

BODY_COMPLETE = "inbox.body_complete"
"""Scope key, set if the whole body has arrived: a deadline would cost more than reading it."""

SEND_CONTINUE = "inbox.send_continue"
"""Scope key, set if the request expects `100-continue`: a function that asks the sender for the body."""

WHEN_GONE = "inbox.when_gone"
"""Scope key: a function that registers a callback for when the sender hangs up; it is called at once if it already has."""

CAPACITY = "inbox.capacity"
"""App state key: the `inbox.http.limits.Capacity` of the process."""

METERS = "inbox.meters"
"""App state key: the `inbox.observe.metrics.Meters` of the process."""


# --- limits


LEAST_BURST = 2
"""Minimum burst of requests at any rate, as for outgoing calls."""


class Bucket:
    """A token bucket: it admits `rate` requests a second, and saves unused tokens for at most a second.

    It counts only the requests of its own process.
    """

    __slots__ = ("_at", "_burst", "_rate", "_tokens")

    def __init__(self, rate: float, burst: float | None = None) -> None:
        self._rate = rate
        self._burst = max(float(LEAST_BURST), rate) if burst is None else burst
        self._tokens = self._burst
        self._at = -math.inf

    def take(self, now: float) -> float:
        """Take one token at `now`, in seconds of a monotonic clock.

        Returns:
            0 if there was one, otherwise the seconds until the next one.
        """
        if now > self._at:
            self._tokens = min(self._burst, self._tokens + (now - self._at) * self._rate)
            self._at = now
        if self._tokens >= 1:
            self._tokens -= 1
            return 0.0
        return (1 - self._tokens) / self._rate


SMALL_BODY = 64 * 1024
"""Bytes. Nearly all webhooks are smaller, and the maximum number of open requests of this size fits in memory."""

MEMORY_FOR_BODY = 4
"""Memory of a body in progress, as a multiple of its size: bytes, text, parsed values, the database driver and the
other rows. `tests/process/test_receiver.py` checks it."""


class MemoryBudget:
    """The memory for bodies in one process: bytes beyond `SMALL_BODY` count, each `MEMORY_FOR_BODY` times.

    Small bodies therefore always find room, however many large ones there are.
    """

    __slots__ = ("_held", "_most")

    def __init__(self, most: int) -> None:
        self._most = most
        self._held = 0

    def change(self, before: int, now: int) -> None:
        """Account for a body that grows from `before` to `now` bytes.

        Raises:
            Unavailable: there is no room; nothing has changed.
        """
        more = memory_for(now) - memory_for(before)
        if more > 0 and self._held + more > self._most:
            raise Unavailable("too much is being sent at once; send it again later")
        self._held += more


def memory_for(size: int) -> int:
    """Return the memory that a body of `size` bytes takes from a budget."""
    return MEMORY_FOR_BODY * max(size - SMALL_BODY, 0)


class Reservation:
    """The memory of one body, reserved from a budget until it is released."""

    __slots__ = ("_budget", "_size")

    def __init__(self, budget: MemoryBudget) -> None:
        self._budget = budget
        self._size = 0

    def grow(self, size: int) -> None:
        """Reserve memory for a body that now has `size` bytes.

        Raises:
            Unavailable: there is no room.
        """
        self._budget.change(self._size, size)
        self._size = size

    def release(self) -> None:
        """Release the memory."""
        if self._size:
            self._budget.change(self._size, 0)
            self._size = 0


class Capacity(msgspec.Struct, frozen=True):
    """Limits of open connections and requests in one process."""

    connections: int
    requests: int
    per_connection: int
    """Maximum number of requests on one connection."""
