"""Programs that a user would run instead, from their own packages, each tuned as its documentation advises.

`make bench` installs them. In an environment without them a benchmark leaves a peer out, and says why.
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
    """Modules that it imports."""
    program: str | None = None
    """A program that it needs on the PATH."""

    def missing(self) -> str | None:
        """Say what is not installed here, or return None."""
        if lacking := [name for name in self.packages if find_spec(name) is None]:
            return f"without {', '.join(lacking)}: make bench installs it"
        if self.program and shutil.which(self.program) is None:
            return f"without {self.program}: install it with the system's packages"
        return None


FASTAPI = {
    "postgres": Peer("FastAPI, SQLAlchemy, asyncpg", "fastapi_app", ("fastapi", "asyncpg")),
    "sqlite": Peer("FastAPI, SQLAlchemy, aiosqlite", "fastapi_app", ("fastapi", "aiosqlite")),
}
"""By database. Each request is one transaction."""

QUEUES = {
    "procrastinate": Peer("procrastinate", "procrastinate_queue", ("procrastinate",)),
    "pgqueuer": Peer("PgQueuer", "pgqueuer_queue", ("pgqueuer", "asyncpg")),
    "celery": Peer("Celery with Redis", "celery_queue", ("celery", "redis"), "redis-server"),
}
"""`python -m benchmarks.peers.MODULE DATABASE URL CONCURRENCY` queues each line of its standard input, then posts each."""
