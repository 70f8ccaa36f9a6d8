"""Lock waits of migrations on Postgres: short where others queue behind them, and reported with the lock's holder."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import msgspec
from sqlalchemy import Connection, Engine, event, text
from sqlalchemy.engine.interfaces import DBAPICursor
from sqlalchemy.exc import SQLAlchemyError

from inbox.errors import ConfigError

LOCK_TIMEOUT_SECONDS = 1.0
"""Limit for all locks of one transaction together: every insert queues behind an ALTER that waits for the inbox."""
_LEAST_SECONDS = 0.1
"""Least wait of a later statement of the transaction."""
HARMLESS_SECONDS = 600.0
"""Limit for waits that delay nobody: another migrator, and old transactions before an index made CONCURRENTLY."""
_POLL_SECONDS = 0.2
_TOLD_AFTER_SECONDS = 2.0
_ADVISORY_LOCK = 0x1B0C_0DE5
_QUERY_CHARACTERS = 80
_VALUE = re.compile(r"['$]|\b\d")


class Holder(msgspec.Struct, frozen=True):
    """Session whose transaction holds a lock that a migration waits for."""

    pid: int
    """Process id; 0 for a prepared transaction, which has no process."""
    application: str
    state: str
    seconds: float
    """Seconds since its transaction began."""
    query: str
    """Beginning of its last statement, up to the first value."""

    def __str__(self) -> str:
        if not self.pid:
            return "a prepared transaction (see pg_prepared_xacts)"
        return f"pid {self.pid} ({self.application}), {self.state}, in its transaction for {self.seconds:.0f} s: {self.query}"


def describe(holders: Sequence[Holder]) -> str:
    """Describe holders for a message."""
    return "; ".join(map(str, holders)) or "somebody who was gone before it could be seen"


class LockWaits:
    """Limits the lock waits of one connection.

    Each transaction may wait LOCK_TIMEOUT_SECONDS in all: `lock_timeout` alone would start again for every lock, while the
    locks that the transaction already has block others.
    """

    def __init__(self, connection: Connection) -> None:
        self._began: float | None = None
        self.pid: int | None = None
        event.listen(connection, "begin", self._on_begin)
        event.listen(connection, "before_cursor_execute", self._on_statement)

    def _on_begin(self, _connection: Connection) -> None:
        self._began = None

    def _on_statement(self, _connection: Connection, cursor: DBAPICursor, *_: object) -> None:
        driver: Any = cursor.connection
        self._began = self._began or time.monotonic()
        if driver.autocommit:
            # Behind a pooler in transaction mode a session's setting would stay for another client, so it is left unset.
            self.pid = _ask(cursor, "SELECT pg_backend_pid()")
            if self.pid == driver.info.backend_pid:
                _ask(cursor, "SELECT set_config('lock_timeout', %s, false)", f"{HARMLESS_SECONDS:.0f}s")
            return
        left = max(LOCK_TIMEOUT_SECONDS - (time.monotonic() - self._began), _LEAST_SECONDS)
        self.pid = _ask(cursor, "SELECT pg_backend_pid(), set_config('lock_timeout', %s, true)", f"{left * 1000:.0f}ms")


def _ask(cursor: Any, statement: str, *values: str) -> Any:  # noqa: ANN401  # psycopg's cursor, and what it gives
    return cursor.execute(statement, values, prepare=False).fetchone()[0]


class LockWatch:
    """Looks up the sessions that block a `LockWaits`, five times a second."""

    def __init__(self, waits: LockWaits, report: Callable[[str], None]) -> None:
        self.holders: tuple[Holder, ...] = ()
        """Holders that were seen last."""
        self._waits = waits
        self._report = report
        self._since: float | None = None

    def look(self, connection: Connection) -> None:
        """Look once. A wait that exceeds a transaction's limit is reported, once for each set of holders."""
        if self._waits.pid is None:
            return
        found = tuple(map(activity_of, connection.execute(_HOLDERS, {"pid": self._waits.pid})))
        if {holder.pid for holder in found} != {holder.pid for holder in self.holders} or not found:
            self._since = time.monotonic()
        self.holders = found or self.holders
        if found and self._since is not None and time.monotonic() - self._since > _TOLD_AFTER_SECONDS:
            self._report(f"waits for {describe(found)}")
            self._since = None


@contextmanager
def watching_lock_waits(engine: Engine, connection: Connection, report: Callable[[str], None]) -> Iterator[LockWatch]:
    """Limit the lock waits of `connection` and watch them from another during the block. It is invalidated afterwards."""
    watch = LockWatch(LockWaits(connection), report)
    ended = threading.Event()

    def look() -> None:
        # A transaction for each look: an index made CONCURRENTLY waits for one that stays open with a snapshot.
        with suppress(SQLAlchemyError), engine.connect() as other:  # on failure, only the message is poorer
            other.execution_options(isolation_level="AUTOCOMMIT")
            while not ended.wait(_POLL_SECONDS):
                watch.look(other)

    thread = threading.Thread(target=look, name="lock-waits", daemon=True)
    thread.start()
    try:
        yield watch
    finally:
        ended.set()
        thread.join()
        connection.invalidate()  # its settings are a migration's, so it must not return to the pool


@contextmanager
def only_migrator(engine: Engine, report: Callable[[str], None]) -> Iterator[None]:
    """Be the only migrator of the database during the block.

    The lock belongs to a transaction that stays open beside those of the migrations, which end one after the other.
    Behind a pooler in transaction mode, a session's lock would pass to any client. The transaction takes no snapshot
    while they run, so that no index made CONCURRENTLY waits for it.

    Raises:
        ConfigError: another migrator runs for longer than the limit.
    """
    deadline = time.monotonic() + HARMLESS_SECONDS
    reported = False
    while True:
        with engine.connect() as guard:
            guard.execution_options(isolation_level="READ COMMITTED")
            guard.execute(_NEVER_ENDED)
            # Without parameters it uses the simple protocol. The extended one keeps its snapshot until the next statement.
            if guard.exec_driver_sql(f"SELECT pg_try_advisory_xact_lock({_ADVISORY_LOCK})").scalar():
                yield
                return
            others = describe([activity_of(row) for row in guard.execute(_MIGRATORS, {"key": _ADVISORY_LOCK})])
        if time.monotonic() > deadline:
            raise ConfigError(f"another process migrates this database, and has not ended within 10 minutes: {others}")
        if not reported:
            report(f"waits for another process that migrates: {others}")
            reported = True
        time.sleep(_POLL_SECONDS)


def activity_of(row: Any) -> Holder:  # noqa: ANN401  # a row with columns of pg_stat_activity, and `seconds`
    """Describe a session without any value of its statement."""
    query = " ".join((row.query or "").split())
    start = _VALUE.split(query, maxsplit=1)[0][:_QUERY_CHARACTERS]
    return Holder(
        pid=row.pid,
        application=row.application_name or "no application_name",
        state=row.state or "of another user",
        seconds=row.seconds or 0.0,
        query=start if start == query else f"{start}…",
    )


_ACTIVITY = """
       a.application_name, a.state, a.query,
       CAST(extract(epoch FROM clock_timestamp() - a.xact_start) AS float8) AS seconds
"""

_HOLDERS = text(f"""
SELECT b.pid, {_ACTIVITY}
FROM (SELECT DISTINCT unnest(pg_blocking_pids(CAST(:pid AS int)))) AS b(pid)
LEFT JOIN pg_stat_activity a ON a.pid = b.pid
ORDER BY a.xact_start
""")

_MIGRATORS = text(f"""
SELECT l.pid, {_ACTIVITY}
FROM pg_locks l
LEFT JOIN pg_stat_activity a ON a.pid = l.pid
WHERE l.locktype = 'advisory' AND l.granted AND CAST(l.classid AS bigint) = CAST(:key AS bigint) >> 32
  AND CAST(l.objid AS bigint) = CAST(:key AS bigint) & 4294967295
  AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())
""")

# Only settings that the server has: transaction_timeout came with Postgres 17. idle_session_timeout ends no transaction.
_NEVER_ENDED = text("""
SELECT set_config(name, '0', true) FROM pg_settings
WHERE name IN ('idle_in_transaction_session_timeout', 'transaction_timeout')
""")
