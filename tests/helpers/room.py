"""A folder for what tests write: in memory where there is enough of it, as a new Postgres database takes 10 ms there, not 80."""

from __future__ import annotations

import shutil
from pathlib import Path

ENOUGH_BYTES = 8 * 2**30
"""The tests of four processes, at their largest, need half of it."""
IN_MEMORY = Path("/dev/shm")  # noqa: S108  # each user of it makes a folder of its own
ON_DISK = Path("/tmp")  # noqa: S108  # likewise; and a socket's path must be short


def _room() -> Path:
    try:
        return IN_MEMORY if shutil.disk_usage(IN_MEMORY).free >= ENOUGH_BYTES else ON_DISK
    except OSError:
        return ON_DISK


ROOM = _room()
"""It has a short path, as a socket needs, and everybody may enter it, as a Postgres server's user must."""
