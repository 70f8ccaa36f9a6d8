"""Detection of operations that wait for a lock: found out, never guessed from how long something takes."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Collection
from typing import Any

from sqlalchemy import Connection, Engine, create_engine, text
from sqlalchemy.pool import NullPool

from tests.helpers.waiting import make_patient

_WAITS = text("""
SELECT waiting.pid, blocker.pid AS blocker
FROM unnest(CAST(:pids AS int[])) AS waiting(pid), unnest(pg_blocking_pids(waiting.pid)) AS blocker(pid)
JOIN pg_stat_activity a ON a.pid = blocker.pid
WHERE a.backend_type = 'client backend'
""")


class LockWaits:
    """Questions of a stepper to its database. An operation is known by its name."""

    def checked_out(self, operation: str, connection: Any, info: dict[Any, Any]) -> None:  # noqa: ANN401  # the driver's
        """In the operation's thread: it uses this connection now. What `info` holds stays with the connection."""

    def begins(self, operation: str, statement: str) -> None:
        """In the operation's thread: it is about to begin a transaction with this statement."""

    def released(self, operation: str) -> None:
        """In the operation's thread: its transaction is over."""

    def would_wait(self, operation: str, statement: str) -> bool:  # noqa: ARG002
        """Return whether this statement would do nothing but wait, and it does not matter when that begins.

        On Postgres it matters: a statement that waits has its snapshot by then.
        """
        return False

    def held_up(self, moving: Collection[str]) -> set[str]:
        """Return those of `moving` that wait for one that stands still, for one that does so in turn, or for a stranger."""
        raise NotImplementedError

    def cancel(self, moving: Collection[str]) -> None:
        """End the waiting of these, with an error. On SQLite they stop waiting when whoever is before them ends."""

    def close(self) -> None:
        """Give back what was used to find out."""


class PostgresWaits(LockWaits):
    """Postgres knows who waits for whom; it is asked through a connection of our own."""

    def __init__(self, engine: Engine) -> None:
        self._engine = create_engine(engine.url, poolclass=NullPool, isolation_level="AUTOCOMMIT")
        self._monitor: Connection | None = None
        self._pids: dict[str, int] = {}

    def checked_out(self, operation: str, connection: Any, info: dict[Any, Any]) -> None:  # noqa: ANN401
        """See LockWaits. A connection that was stepped once stays patient: standing still is what its transactions do."""
        self._pids[operation] = connection.info.backend_pid
        make_patient(connection, info)

    def released(self, operation: str) -> None:
        """See LockWaits."""
        self._pids.pop(operation, None)

    def held_up(self, moving: Collection[str]) -> set[str]:
        """See LockWaits. Those that wait for each other in a circle are not among them: Postgres is about to end one."""
        names = {pid: name for name, pid in dict(self._pids).items() if name in moving}
        waits = [(names[row.pid], names.get(row.blocker)) for row in self._ask().execute(_WAITS, {"pids": list(names)})]
        found: set[str] = set()
        while more := {name for name, blocker in waits if blocker is None or blocker in found} - found:
            found |= more
        return found

    def cancel(self, moving: Collection[str]) -> None:
        """See LockWaits."""
        for pid in [pid for name, pid in dict(self._pids).items() if name in moving]:
            self._ask().execute(text("SELECT pg_cancel_backend(:pid)"), {"pid": pid})

    def close(self) -> None:
        """See LockWaits."""
        if self._monitor is not None:
            self._monitor.close()
        self._engine.dispose()

    def _ask(self) -> Connection:
        if self._monitor is None:
            self._monitor = self._engine.connect()
        return self._monitor


class SqliteWaits(LockWaits):
    """SQLite has one lock, which a writing transaction takes when it begins: operations queue for it here, in order."""

    def __init__(self, changed: threading.Condition) -> None:
        self._changed = changed
        self._queue: deque[str] = deque()
        """The first has the lock."""

    def begins(self, operation: str, statement: str) -> None:
        """See LockWaits: where it waits."""
        if not _writes(statement):
            return
        with self._changed:
            self._queue.append(operation)
            self._changed.notify_all()
            self._changed.wait_for(lambda: self._queue[0] == operation)

    def released(self, operation: str) -> None:
        """See LockWaits."""
        with self._changed:
            if self._queue and self._queue[0] == operation:
                self._queue.popleft()
                self._changed.notify_all()

    def would_wait(self, operation: str, statement: str) -> bool:  # noqa: ARG002
        """See LockWaits. A transaction that has not begun knows nothing, so when it begins to wait does not matter."""
        return _writes(statement) and bool(self._queue)

    def held_up(self, moving: Collection[str]) -> set[str]:
        """See LockWaits."""
        with self._changed:
            if not self._queue or self._queue[0] in moving:
                return set()
            return {name for name in moving if name in self._queue}


def _writes(statement: str) -> bool:
    return statement.startswith("BEGIN") and "DEFERRED" not in statement
