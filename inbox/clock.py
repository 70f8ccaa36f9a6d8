"""The one place that reads the wall clock. Leases and due times use the database's clock instead.

Spans of time are measured by `steady`, which no correction of the wall clock moves.
"""

from __future__ import annotations

import time
from datetime import UTC, datetime
from typing import Protocol, cast


class Clock(Protocol):
    """Tells the time; a test hands in its own."""

    def now(self) -> datetime:
        """The present instant, aware, in UTC."""
        ...


class SystemClock:
    """The machine's clock."""

    def now(self) -> datetime:
        """The present instant, aware, in UTC."""
        return datetime.now(UTC)


_BOOT_CLOCK = cast("int | None", getattr(time, "CLOCK_BOOTTIME", None))
"""Linux's own: its CLOCK_MONOTONIC, which `time.monotonic` reads, stands still while the machine is suspended.

See clock_gettime(2).
"""


def steady() -> float:
    """Seconds by a clock that is never set, and that goes on while the machine is suspended, where there is one.

    Until when a lease is trusted, and until when a call may run, are told by this clock alone.
    """
    return time.monotonic() if _BOOT_CLOCK is None else time.clock_gettime(_BOOT_CLOCK)
