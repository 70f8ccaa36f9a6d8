"""Size and pauses of batches: steered by measured time, so that each takes about 100 ms and intake goes on. Pure."""

from __future__ import annotations

import msgspec

BATCH_SECONDS = 0.1
"""The time that a batch should take: everybody who waits for its rows waits no longer."""
_FASTEST_GROWTH, _FASTEST_SHRINKING = 2.0, 0.25
_SHRUNK_BY = 8
LONGEST_PAUSE = 10.0
"""Seconds: a third of the lease, which the next batch has to renew."""


class Pace(msgspec.Struct, frozen=True):
    """The size of the next batch, and the share of time in which nothing is deleted."""

    most: int
    """Rows of the next batch."""
    highest: int
    """The most rows of any batch."""
    rest: float
    """The pause after a batch, as a multiple of the time that it took."""
    least: int = 1
    """The fewest rows of a batch after one that took long: fewer save no time when the way to the database takes it."""

    def after(self, seconds: float) -> Pace:
        """Return the pace after a batch that took so long."""
        factor = BATCH_SECONDS / max(seconds, 1e-4)
        factor = min(max(factor, _FASTEST_SHRINKING), _FASTEST_GROWTH)
        return self._of(max(round(self.most * factor), self.least))

    def shrunk(self) -> Pace:
        """Return the pace after a batch that failed: fewer rows may succeed."""
        return self._of(self.most // _SHRUNK_BY)

    def pause(self, seconds: float) -> float:
        """Return the pause after a batch that took so long."""
        return min(self.rest * seconds, LONGEST_PAUSE)

    def _of(self, most: int) -> Pace:
        return msgspec.structs.replace(self, most=min(max(most, 1), self.highest))


def pace_of(*, is_postgres: bool) -> Pace:
    """Return the first pace on a database. SQLite has one writer, so that a batch holds the receiver up as long as it takes."""
    return Pace(500, 20_000, rest=4.0, least=25) if is_postgres else Pace(100, 500, rest=9.0, least=10)
