"""Runs database operations in threads, one SQL statement at a time, in an order that the test chooses.

An operation is any function that uses the engine. It stops before each statement and before each COMMIT, until it is
stepped. A step returns when every operation stands before its next statement, has ended, or is known to wait for a lock.
Statements that are nothing to the others go with the one before them: a COMMIT of what only read, and those of a
transaction, but its first, that the test lets pass.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Collection, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Any, Self

from sqlalchemy import Connection, Engine, create_engine, event, text
from sqlalchemy.pool import ConnectionPoolEntry, NullPool

from inbox.db.dialect import Sql
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


PATIENCE_SECONDS = 60.0
"""Longer than any step takes, however slow the machine: then something is wrong."""

COMMIT = "COMMIT"

_LOOK_AGAIN_SECONDS = 0.001
"""Time to let a statement run before asking whether it waits for a lock. Right at any value."""


Step = tuple[str, str]
"""The name of an operation and the statement that it sent."""


class Crashed(BaseException):
    """Raised in an operation in place of its next statement, as if its process had died there."""


class Stepped:
    """An operation that runs in a thread of its own and stops before each statement it sends, and before each COMMIT."""

    def __init__(self, name: str, stepper: Stepper) -> None:
        self.name = name
        self.finished = False
        """It has returned or raised."""
        self.blocked = False
        """Its last step waits for a lock that another operation holds."""
        self.before: str | None = None
        """The statement it stands before; None when it is blocked or finished."""
        self.result: Any = None
        self.error: BaseException | None = None
        self._stepper = stepper
        self._crashing = False
        self._first = False  # whether the next statement is the first of its transaction
        self._began = False  # whether it goes with a BEGIN that stood at the gate

    @property
    def can_move(self) -> bool:
        """Return whether a step would do anything: on SQLite, only one transaction that may write can begin at a time."""
        return self.before is not None and not self._stepper.waits.would_wait(self.name, self.before)

    def step(self) -> None:
        """Let it send one statement: BEGIN goes with the first of its transaction, COMMIT is a step of its own.

        When this returns, those that were blocked and got their lock by it have gone on to their next statement.

        Raises:
            RuntimeError: it is blocked or finished.
        """
        if self.before is None:
            raise RuntimeError(f"{self.name} can't be stepped: it is {'finished' if self.finished else 'blocked'}")
        self._stepper.taken.append((self.name, self.before))
        self._stepper.let_pass([self])

    def crash(self) -> None:
        """Let its process die where it stands: what it has not committed is undone. A blocked one dies when it gets its lock."""
        self._crashing = True
        self._stepper.let_pass([self])

    def at(self, statement: str, rest: threading.Condition) -> None:
        """In its thread: stand before this statement until it is let pass."""
        with rest:
            if not self._crashing:
                self.before, self.blocked = statement, False
                rest.notify_all()
                rest.wait_for(lambda: self.before is None)
        if self._crashing:
            raise Crashed


class Stepper:
    """Steps operations on one engine. Only threads that it started are held up; it may be used again and again.

    On Postgres, connections that operations used wait a minute for a lock from then on, and their transactions may stand
    still: how long an operation stands is up to the test. On SQLite everybody who writes meanwhile has to be an operation.
    """

    def __init__(self, engine: Engine, passing: Callable[[str], bool] = lambda _: False) -> None:
        self.operations: dict[str, Stepped] = {}
        """By name, also those that are finished."""
        self.taken: list[Step] = []
        """Every step there was; whoever begins anew may clear it."""
        self._rest = threading.Condition()  # guards what operations say of themselves; notified when that changes
        self.waits: LockWaits = (
            PostgresWaits(engine) if Sql(engine.dialect.name).is_postgres else SqliteWaits(self._rest)
        )
        self._threads = ThreadPoolExecutor(max_workers=64, thread_name_prefix="stepped")
        self._here = threading.local()
        self._listeners: dict[str, Callable[..., None]] = {
            "begin": self._transaction_begins,
            "before_cursor_execute": self._before_statement,
            "commit": self._before_commit,
            "rollback": self._before_rollback,
            "checkout": self._checked_out,
            "checkin": self._checked_in,
        }
        self._engine = engine
        self._passing = passing
        for name, listener in self._listeners.items():
            event.listen(engine, name, listener)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def __getitem__(self, name: str) -> Stepped:
        return self.operations[name]

    def begin(self, name: str, operation: Callable[[], Any]) -> Stepped:
        """Start an operation; it stands before its first statement. The name of a finished one may be used again."""
        if name in self.operations and not self.operations[name].finished:
            raise RuntimeError(f"{name} is not finished yet")
        stepped = self.operations[name] = Stepped(name, self)
        self._threads.submit(self._run, stepped, operation).add_done_callback(lambda done: self._ended(stepped, done))
        self._come_to_rest()
        return stepped

    def let_pass(self, operations: Iterable[Stepped]) -> None:
        """Let these pass the statements they stand before, and wait until all are at rest again."""
        with self._rest:
            for stepped in operations:
                stepped.before = None
            self._rest.notify_all()
        self._come_to_rest()

    def settle(self) -> None:
        """Wait until every operation stands before a statement, is finished, or is blocked.

        Steps do so themselves; this is for when a connection of the test's own has let a lock go.
        """
        self._somebody_lets_go()
        self._come_to_rest()

    def finish(self, stepped: Stepped) -> None:
        """Step it until it is finished; those that it blocked may move on.

        Raises:
            RuntimeError: it is blocked itself.
        """
        while not stepped.finished:
            stepped.step()

    def run(self, choices: Sequence[str]) -> None:
        """Step the named operations in this order, passing over one that is blocked or finished by then; then finish all."""
        for name in choices:
            if self[name].before is not None:
                self[name].step()
        while unfinished := [stepped for stepped in self.operations.values() if not stepped.finished]:
            movable = next((stepped for stepped in unfinished if stepped.can_move), None)
            if movable is None:
                raise RuntimeError(f"blocked by somebody else: {', '.join(stepped.name for stepped in unfinished)}")
            movable.step()

    def close(self) -> None:
        """Let what is not finished crash, and wait for the threads."""
        unfinished = [stepped for stepped in self.operations.values() if not stepped.finished]
        for stepped in unfinished:
            stepped._crashing = True
        self.waits.cancel([stepped.name for stepped in unfinished if stepped.before is None])
        self.let_pass(unfinished)
        self._threads.shutdown()
        for name, listener in self._listeners.items():
            event.remove(self._engine, name, listener)
        self.waits.close()

    # In the operations' threads.

    def _run(self, stepped: Stepped, operation: Callable[[], Any]) -> Any:  # noqa: ANN401  # whatever it returns
        self._here.stepped = stepped
        return operation()

    def _ended(self, stepped: Stepped, done: Future[Any]) -> None:
        with self._rest:
            stepped.error = done.exception()
            stepped.result = None if stepped.error is not None else done.result()
            stepped.finished, stepped.blocked = True, False
            self._rest.notify_all()

    def _transaction_begins(self, _connection: object) -> None:
        if (stepped := self._stepped()) is not None:
            stepped._first = True

    def _before_statement(self, _connection: object, _cursor: object, statement: str, *_: object) -> None:
        if (stepped := self._stepped()) is None:
            return
        first, stepped._first = stepped._first, False
        if stepped._began:
            stepped._began = False
            return
        begins = statement.startswith("BEGIN")  # only SQLite's; psycopg sends one unseen
        if self._passing(statement) and not first and not begins:
            return
        if begins:
            self.waits.released(stepped.name)
        stepped.at(statement, self._rest)
        if begins:
            stepped._began = True
            self.waits.begins(stepped.name, statement)

    def _before_commit(self, connection: Connection) -> None:
        if (stepped := self._stepped()) is not None:
            stepped._began = False
            if not _only_reads(connection):
                stepped.at(COMMIT, self._rest)
            self._somebody_lets_go()

    def _before_rollback(self, _connection: object) -> None:
        if (stepped := self._stepped()) is not None:
            stepped._began = False
            self._somebody_lets_go()

    def _checked_out(self, connection: Any, record: ConnectionPoolEntry, _: object) -> None:  # noqa: ANN401  # the driver's
        if (stepped := self._stepped()) is not None:
            self.waits.checked_out(stepped.name, connection, record.info)

    def _checked_in(self, *_: object) -> None:
        if (stepped := self._stepped()) is not None:
            self.waits.released(stepped.name)
            self._somebody_lets_go()

    def _stepped(self) -> Stepped | None:
        stepped: Stepped | None = getattr(self._here, "stepped", None)
        return stepped

    def _somebody_lets_go(self) -> None:
        """Whoever is known to be blocked may no longer be, once who lets go is at rest again."""
        with self._rest:
            for stepped in self.operations.values():
                stepped.blocked = False

    # In the test's thread.

    def _moving(self) -> list[Stepped]:
        return [stepped for stepped in self.operations.values() if stepped.before is None and not stepped.finished]

    def _come_to_rest(self) -> None:
        deadline = time.monotonic() + PATIENCE_SECONDS
        while not self._at_rest():
            if time.monotonic() > deadline:
                names = ", ".join(stepped.name for stepped in self._moving())
                raise AssertionError(
                    f"neither at a statement nor waiting for a lock after {PATIENCE_SECONDS:g} s: {names}"
                )

    def _at_rest(self) -> bool:
        """Return whether all are at rest. Give those that move a moment, then ask the database about them."""
        with self._rest:
            if self._rest.wait_for(lambda: all(stepped.blocked for stepped in self._moving()), _LOOK_AGAIN_SECONDS):
                return True
            moving = self._moving()
        held_up = self.waits.held_up([stepped.name for stepped in moving])
        with self._rest:
            for stepped in moving:
                stepped.blocked = stepped.name in held_up and stepped.before is None and not stepped.finished
            return all(stepped.blocked for stepped in self._moving())


def _only_reads(connection: Connection) -> bool:
    """Return whether `inbox.db.engine.reading` or `snapshot` made its transaction."""
    options = connection.get_execution_options()
    return options.get("sqlite_begin") == "DEFERRED" or bool(options.get("postgresql_readonly"))
