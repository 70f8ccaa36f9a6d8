"""Programs that users might run instead, from their own packages, each tuned as its documentation advises.

`make bench` installs them. Otherwise benchmarks omit them with the reason.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import threading
from importlib.util import find_spec

import msgspec
import requests


class Peer(msgspec.Struct, frozen=True):
    """A program to compare with."""

    title: str
    module: str
    packages: tuple[str, ...]
    """Imported modules."""
    program: str | None = None
    """Program needed on the PATH."""

    def missing(self) -> str | None:
        """Return the reason why it cannot run here, or None."""
        if lacking := [name for name in self.packages if find_spec(name) is None]:
            return f"without {', '.join(lacking)}: make bench installs it"
        if self.program and shutil.which(self.program) is None:
            return f"without {self.program}: install it with the system's packages"
        return None


FASTAPI = {
    "postgres": Peer("FastAPI, SQLAlchemy, asyncpg", "fastapi_app", ("fastapi", "asyncpg")),
    "sqlite": Peer("FastAPI, SQLAlchemy, aiosqlite", "fastapi_app", ("fastapi", "aiosqlite")),
}
"""Peers by database; each request is one transaction."""

QUEUES = {
    "procrastinate": Peer("procrastinate", "procrastinate_queue", ("procrastinate",)),
    "pgqueuer": Peer("PgQueuer", "pgqueuer_queue", ("pgqueuer", "asyncpg")),
    "celery": Peer("Celery with Redis", "celery_queue", ("celery", "redis"), "redis-server"),
}
"""`python -m benchmarks.peers.MODULE DATABASE URL CONCURRENCY` queues each line of its standard input, then posts each."""


# --- The call of each queue for a job: like the bare loop's, on a session for each thread


_OF_THREAD = threading.local()


class Task(msgspec.Struct, frozen=True):
    """Arguments of a queue's program."""

    database: str
    url: str
    concurrency: int
    bodies: list[str]


def read_task() -> Task:
    """Read the command line, and the bodies from standard input."""
    parser = argparse.ArgumentParser()
    parser.add_argument("database")
    parser.add_argument("url")
    parser.add_argument("concurrency", type=int)
    given = parser.parse_args()
    return Task(given.database, given.url, given.concurrency, sys.stdin.read().split("\n"))


def post(url: str, body: str) -> None:
    """Post a body, and raise an error for an error status."""
    session: requests.Session | None = getattr(_OF_THREAD, "session", None)
    if session is None:
        session = _OF_THREAD.session = requests.Session()
    session.post(url, data=body, headers={"Content-Type": "application/json"}, timeout=15).raise_for_status()
