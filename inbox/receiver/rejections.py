"""Which refusals get a row: a bounded queue, so that a flood of them costs counters and little else."""

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
"""Of the bodies that wait or are being written: a flood of large ones must not fill the memory. A single one may be larger."""


class Refusals:
    """Those that wait to be written. `now` is monotonic, in seconds."""

    def __init__(self, meters: Meters) -> None:
        self._meters = meters
        self._waiting: deque[Rejected] = deque()
        self._bytes = 0
        self._next_at = 0.0
        self.unkept = 0
        """How many have no row: there was no room, or the database did not take them."""

    def __len__(self) -> int:
        return len(self._waiting)

    def add(self, row: Rejected) -> bool:
        """Keep it, when there is room. Returns whether there was."""
        size = _size(row)
        if len(self._waiting) >= MAX_WAITING or (self._bytes and self._bytes + size > MAX_BYTES):
            self.lost(1)
            return False
        self._waiting.append(row)
        self._bytes += size
        return True

    def turn(self, now: float) -> float | None:
        """In how many seconds some may be written, 0 or less: now; None: there are none."""
        return self._next_at - now if self._waiting else None

    def take(self, now: float) -> list[Rejected]:
        """Those that are to be written now: a second's worth. The next come when their time is used up."""
        rows = [self._waiting.popleft() for _ in range(min(len(self._waiting), PER_SECOND))]
        self._next_at = now + len(rows) / PER_SECOND
        return rows

    def written(self, rows: Sequence[Rejected]) -> None:
        """They are written, or given up: until then their bodies take memory."""
        self._bytes -= sum(map(_size, rows))

    def lost(self, number: int) -> None:
        """So many have no row."""
        self.unkept += number
        self._meters.count(metrics.NOT_KEPT, by=number)


def _size(row: Rejected) -> int:
    return len(row.body or b"")
