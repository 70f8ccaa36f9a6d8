"""Programs that users might run instead, from their own packages, each tuned as its documentation advises.

`make bench` installs them. Otherwise benchmarks omit them with the reason.
"""

from __future__ import annotations

import shutil
from importlib.util import find_spec

import msgspec


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
