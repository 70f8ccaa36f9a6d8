"""The bounded queue of rejected requests: a flood of them costs counters, not rows."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

from inbox.db.intake import Rejected
from inbox.telemetry import metrics
from inbox.telemetry.metrics import Meters

PER_SECOND = 10
"""Rows, of each receiver process."""
MAX_WAITING = 200
MAX_BYTES = 4 * 1024 * 1024
"""Bytes of all bodies that wait or are being written, so that large ones don't fill the memory. A single one may be larger."""


class RejectionQueue:
    """Rejected requests that wait to be written. `now` is monotonic, in seconds."""

    def __init__(self, meters: Meters) -> None:
        self._meters = meters
        self._waiting: deque[Rejected] = deque()
        self._bytes = 0
        self._next_at = 0.0
        self.unkept = 0
        """Count of those without a row: there was no room, or the database did not take them."""

    def __len__(self) -> int:
        return len(self._waiting)

    def add(self, row: Rejected) -> bool:
        """Queue a row when there is room. Returns whether there was."""
        size = _size(row)
        if len(self._waiting) >= MAX_WAITING or (self._bytes and self._bytes + size > MAX_BYTES):
            self.count_unkept(1)
            return False
        self._waiting.append(row)
        self._bytes += size
        return True

    def delay(self, now: float) -> float | None:
        """Return the seconds until some may be written, 0 or less for now; None: there are none."""
        return self._next_at - now if self._waiting else None

    def take(self, now: float) -> list[Rejected]:
        """Take at most a second's worth of rows to write; the next may be taken when that time is over."""
        rows = [self._waiting.popleft() for _ in range(min(len(self._waiting), PER_SECOND))]
        self._next_at = now + len(rows) / PER_SECOND
        return rows

    def release(self, rows: Sequence[Rejected]) -> None:
        """Release the memory of rows that are written or given up."""
        self._bytes -= sum(map(_size, rows))

    def count_unkept(self, number: int) -> None:
        """Count requests that get no row."""
        self.unkept += number
        self._meters.count(metrics.NOT_KEPT, by=number)


def _size(row: Rejected) -> int:
    return len(row.body or b"")
