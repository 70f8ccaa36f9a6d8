"""The only module that reads the wall clock. Leases and due times use the database's clock instead.

`steady` measures durations, unaffected by corrections of the wall clock.
"""

from __future__ import annotations

import time
from datetime import UTC, datetime
from typing import Protocol, cast


class Clock(Protocol):
    """A source of the current time; tests pass their own."""

    def now(self) -> datetime:
        """Return the current time, aware, in UTC."""
        ...


class SystemClock:
    """The machine's clock."""

    def now(self) -> datetime:
        """Return the current time, aware, in UTC."""
        return datetime.now(UTC)


_BOOT_CLOCK = cast("int | None", getattr(time, "CLOCK_BOOTTIME", None))
"""Linux clock that counts suspended time too; CLOCK_MONOTONIC, which `time.monotonic` reads, stops meanwhile.

See clock_gettime(2).
"""


def steady() -> float:
    """Return the seconds of a clock that is never adjusted and, if the system has one, counts suspended time too.

    Leases and the deadlines of calls depend on this clock alone.
    """
    return time.monotonic() if _BOOT_CLOCK is None else time.clock_gettime(_BOOT_CLOCK)
