"""The only place that reads the wall clock. Leases and due times use the database's clock instead.

`steady` measures durations; corrections of the wall clock don't affect it.
"""

from __future__ import annotations

import time
from datetime import UTC, datetime
from typing import Protocol, cast


class Clock(Protocol):
    """A source of the time; tests pass their own."""

    def now(self) -> datetime:
        """Return the current instant, aware, in UTC."""
        ...


class SystemClock:
    """The machine's clock."""

    def now(self) -> datetime:
        """Return the current instant, aware, in UTC."""
        return datetime.now(UTC)


_BOOT_CLOCK = cast("int | None", getattr(time, "CLOCK_BOOTTIME", None))
"""Clock of Linux that also counts suspended time; CLOCK_MONOTONIC, which `time.monotonic` reads, stops meanwhile.

See clock_gettime(2).
"""


def steady() -> float:
    """Read a clock that is never set and, where the system has one, also counts suspended time. Returns seconds.

    The trust in a lease and the deadline of a call depend on this clock alone.
    """
    return time.monotonic() if _BOOT_CLOCK is None else time.clock_gettime(_BOOT_CLOCK)
