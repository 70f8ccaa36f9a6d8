"""Run database operations in threads, one SQL statement at a time, in an order that the test chooses.

An operation is any function that uses the engine. It stops before each statement and each COMMIT until it is stepped.
A step returns when every operation stands before its next statement, has ended, or is known to wait for a lock. A step
includes following statements that do not concern the others: the COMMIT of a reading transaction, and statements after
the first of a transaction that the test lets pass.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
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
    """A stepper's view of lock waits in its database. Operations are known by name."""

    def note_checkout(self, operation: str, connection: Any, info: dict[Any, Any]) -> None:  # noqa: ANN401  # the driver's
        """Note the operation's connection, in its thread. `info` stays with the connection."""

    def begins(self, operation: str, statement: str) -> None:
        """Note that the operation begins a transaction with this statement, in its thread."""

    def note_release(self, operation: str) -> None:
        """Note that the operation's transaction is over, in its thread."""

    def would_wait(self, operation: str, statement: str) -> bool:  # noqa: ARG002
        """Return whether this statement would only wait, and may begin to wait later.

        Never on Postgres: a waiting statement already has its snapshot.
        """
        return False

    def held_up(self, moving: Collection[str]) -> set[str]:
        """Return the operations of `moving` that wait, directly or not, for one standing still or for another program."""
        raise NotImplementedError

    def cancel(self, moving: Collection[str]) -> None:
        """Cancel the waiting of these operations. On SQLite they stop waiting when those before them end."""

    def close(self) -> None:
        """Release all resources."""


class PostgresWaits(LockWaits):
    """Lock waits by pg_blocking_pids, over a separate connection."""

    def __init__(self, engine: Engine) -> None:
        self._engine = create_engine(engine.url, poolclass=NullPool, isolation_level="AUTOCOMMIT")
        self._monitor: Connection | None = None
        self._pids: dict[str, int] = {}

    def note_checkout(self, operation: str, connection: Any, info: dict[Any, Any]) -> None:  # noqa: ANN401
        """See LockWaits. The connection stays patient, as its transactions stand still."""
        self._pids[operation] = connection.info.backend_pid
        make_patient(connection, info)

    def note_release(self, operation: str) -> None:
        """See LockWaits."""
        self._pids.pop(operation, None)

    def held_up(self, moving: Collection[str]) -> set[str]:
        """See LockWaits. Deadlocked operations are not included: Postgres is about to end one."""
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
    """Lock waits by a queue: SQLite has one lock, which a writing transaction takes when it begins."""

    def __init__(self, changed: threading.Condition) -> None:
        self._changed = changed
        self._queue: deque[str] = deque()
        """Operations in order; the first has the lock."""

    def begins(self, operation: str, statement: str) -> None:
        """See LockWaits. Waits for the lock here."""
        if not _writes(statement):
            return
        with self._changed:
            self._queue.append(operation)
            self._changed.notify_all()
            self._changed.wait_for(lambda: self._queue[0] == operation)

    def note_release(self, operation: str) -> None:
        """See LockWaits."""
        with self._changed:
            if self._queue and self._queue[0] == operation:
                self._queue.popleft()
                self._changed.notify_all()

    def would_wait(self, operation: str, statement: str) -> bool:  # noqa: ARG002
        """See LockWaits. A transaction that has not begun has no snapshot, so it may wait later."""
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
"""Longer than any step takes, even on a slow machine."""

COMMIT = "COMMIT"

_LOOK_AGAIN_SECONDS = 0.001
"""Seconds to let a statement run before asking whether it waits for a lock. Any value is correct."""


Step = tuple[str, str]
"""Name of an operation and the statement that it sent."""


class Crashed(BaseException):
    """Raised in an operation in place of its next statement, as if its process had died."""


class Stepped:
    """An operation in its own thread, which stops before each statement and each COMMIT."""

    def __init__(self, name: str, stepper: Stepper) -> None:
        self.name = name
        self.finished = False
        """True when it has returned or raised."""
        self.blocked = False
        """True while its last step waits for a lock of another operation."""
        self.before: str | None = None
        """Its next statement; None when it is blocked or finished."""
        self.result: Any = None
        self.error: BaseException | None = None
        self._stepper = stepper
        self._crashing = False
        self._first = False  # whether the next statement is the first of its transaction
        self._began = False  # whether a BEGIN was stepped, which includes the next statement

    @property
    def can_move(self) -> bool:
        """True if a step has an effect: on SQLite, only one writing transaction can begin at a time."""
        return self.before is not None and not self._stepper.waits.would_wait(self.name, self.before)

    def step(self) -> None:
        """Let it send one statement: BEGIN includes the first of its transaction, COMMIT is a step of its own.

        Afterwards, operations that got their lock by this step stand before their next statement.

        Raises:
            RuntimeError: it is blocked or finished.
        """
        if self.before is None:
            raise RuntimeError(f"{self.name} can't be stepped: it is {'finished' if self.finished else 'blocked'}")
        self._stepper.taken.append((self.name, self.before))
        self._stepper.let_pass([self])

    def crash(self) -> None:
        """Crash it where it stands, undoing uncommitted changes. A blocked operation crashes when it gets its lock."""
        self._crashing = True
        self._stepper.let_pass([self])

    def stand_before(self, statement: str, rest: threading.Condition) -> None:
        """Stand before this statement until it may pass, in the operation's thread."""
        with rest:
            if not self._crashing:
                self.before, self.blocked = statement, False
                rest.notify_all()
                rest.wait_for(lambda: self.before is None)
        if self._crashing:
            raise Crashed


class Stepper:
    """Steps operations on one engine; it is reusable, and holds up only its own threads.

    On Postgres, connections of operations have a lock timeout of a minute from then on, and no timeout for idle
    transactions. On SQLite, all concurrent writers must be operations.
    """

    def __init__(self, engine: Engine, passing: Callable[[str], bool] = lambda _: False) -> None:
        self.operations: dict[str, Stepped] = {}
        """Operations by name, including finished ones."""
        self.taken: list[Step] = []
        """All steps so far; may be cleared."""
        self._rest = threading.Condition()  # guards the states of operations; notified of changes
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
            "checkout": self._on_checkout,
            "checkin": self._on_checkin,
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
        """Start an operation, up to its first statement. Names of finished operations may be reused."""
        if name in self.operations and not self.operations[name].finished:
            raise RuntimeError(f"{name} is not finished yet")
        stepped = self.operations[name] = Stepped(name, self)
        self._threads.submit(self._run, stepped, operation).add_done_callback(
            lambda done: self._note_end(stepped, done)
        )
        self._come_to_rest()
        return stepped

    def let_pass(self, operations: Iterable[Stepped]) -> None:
        """Let these operations send their next statements, and wait until all are at rest."""
        with self._rest:
            for stepped in operations:
                stepped.before = None
            self._rest.notify_all()
        self._come_to_rest()

    def settle(self) -> None:
        """Wait until every operation stands before a statement, is finished, or is blocked.

        Steps do so themselves; call it after the test released a lock on its own connection.
        """
        self._unblock_all()
        self._come_to_rest()

    def finish(self, stepped: Stepped) -> None:
        """Step an operation until it is finished; operations blocked by it may move on.

        Raises:
            RuntimeError: it is blocked.
        """
        while not stepped.finished:
            stepped.step()

    def run(self, choices: Sequence[str]) -> None:
        """Step the named operations in this order, skipping blocked and finished ones, then finish all."""
        for name in choices:
            if self[name].before is not None:
                self[name].step()
        while unfinished := [stepped for stepped in self.operations.values() if not stepped.finished]:
            movable = next((stepped for stepped in unfinished if stepped.can_move), None)
            if movable is None:
                raise RuntimeError(f"blocked by another program: {', '.join(stepped.name for stepped in unfinished)}")
            movable.step()

    def close(self) -> None:
        """Crash unfinished operations and wait for the threads."""
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

    def _run(self, stepped: Stepped, operation: Callable[[], Any]) -> Any:  # noqa: ANN401  # any result
        self._here.stepped = stepped
        return operation()

    def _note_end(self, stepped: Stepped, done: Future[Any]) -> None:
        with self._rest:
            stepped.error = done.exception()
            stepped.result = None if stepped.error is not None else done.result()
            stepped.finished, stepped.blocked = True, False
            self._rest.notify_all()

    def _transaction_begins(self, _connection: object) -> None:
        if (stepped := self._find_stepped()) is not None:
            stepped._first = True

    def _before_statement(self, _connection: object, _cursor: object, statement: str, *_: object) -> None:
        if (stepped := self._find_stepped()) is None:
            return
        first, stepped._first = stepped._first, False
        if stepped._began:
            stepped._began = False
            return
        begins = statement.startswith("BEGIN")  # only SQLite's; psycopg sends one unseen
        if self._passing(statement) and not first and not begins:
            return
        if begins:
            self.waits.note_release(stepped.name)
        stepped.stand_before(statement, self._rest)
        if begins:
            stepped._began = True
            self.waits.begins(stepped.name, statement)

    def _before_commit(self, connection: Connection) -> None:
        if (stepped := self._find_stepped()) is not None:
            stepped._began = False
            if not _only_reads(connection):
                stepped.stand_before(COMMIT, self._rest)
            self._unblock_all()

    def _before_rollback(self, _connection: object) -> None:
        if (stepped := self._find_stepped()) is not None:
            stepped._began = False
            self._unblock_all()

    def _on_checkout(self, connection: Any, record: ConnectionPoolEntry, _: object) -> None:  # noqa: ANN401  # the driver's
        if (stepped := self._find_stepped()) is not None:
            self.waits.note_checkout(stepped.name, connection, record.info)

    def _on_checkin(self, *_: object) -> None:
        if (stepped := self._find_stepped()) is not None:
            self.waits.note_release(stepped.name)
            self._unblock_all()

    def _find_stepped(self) -> Stepped | None:
        stepped: Stepped | None = getattr(self._here, "stepped", None)
        return stepped

    def _unblock_all(self) -> None:
        """Forget which operations are blocked, as a lock was released."""
        with self._rest:
            for stepped in self.operations.values():
                stepped.blocked = False

    # In the test's thread.

    def _moving(self) -> list[Stepped]:
        return [stepped for stepped in self.operations.values() if stepped.before is None and not stepped.finished]

    def _come_to_rest(self) -> None:
        deadline = time.monotonic() + PATIENCE_SECONDS
        while not self._is_at_rest():
            if time.monotonic() > deadline:
                names = ", ".join(stepped.name for stepped in self._moving())
                raise AssertionError(
                    f"neither at a statement nor waiting for a lock after {PATIENCE_SECONDS:g} s: {names}"
                )

    def _is_at_rest(self) -> bool:
        """Return whether all are at rest. Give moving operations a moment, then ask the database about them."""
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
    """Return whether the transaction is from `inbox.db.engine.reading` or `snapshot`."""
    options = connection.get_execution_options()
    return options.get("sqlite_begin") == "DEFERRED" or bool(options.get("postgresql_readonly"))


# --- A search through all orders of the statements of several operations


TRIES = 50
"""Attempts to make the database repeat a choice before the search gives up on it."""


def all_orders(
    engine: Engine,
    start: Callable[[], Mapping[str, Callable[[], Any]]],
    check: Callable[[Stepper], None],
    *,
    passing: Callable[[str], bool] = lambda _: False,
    pointless: Callable[[Stepper, Stepped], bool] = lambda _stepper, _stepped: False,
    swaps: Callable[[str, str], bool] = lambda _one, _other: False,
) -> int:
    """Run operations in every order, depth first.

    When several operations wait for one row, Postgres chooses the next. Each choice seen once is searched to its end,
    unless the database does not repeat it.

    Args:
        engine: the engine of the operations.
        start: prepares the same state for each order, and returns the operations by name.
        check: called after each order, when all operations have finished.
        passing: see Stepper.
        pointless: whether a step can be delayed from this point without changing the result.
        swaps: whether two consecutive statements of two operations commute. Of orders that differ only so, one is run
            ("sleep sets", Godefroid 1996).

    Returns:
        The number of orders.

    Raises:
        AssertionError: from `check`, with the order as a note.
        RuntimeError: the initial state differed, or a connection of another program holds a lock.
    """
    with Stepper(engine, passing) as stepper:
        return _search(stepper, start, check, pointless, swaps)


def _search(
    stepper: Stepper,
    start: Callable[[], Mapping[str, Callable[[], Any]]],
    check: Callable[[Stepper], None],
    pointless: Callable[[Stepper, Stepped], bool],
    swaps: Callable[[str, str], bool],
) -> int:
    root: _Point | None = None
    orders = 0
    while root is None or not root.done:
        for name, operation in start().items():
            stepper.begin(name, operation)
        stepper.taken.clear()
        movable = _movable(stepper, pointless)
        new = root is None
        root = root or _Point(movable)
        if root.choices != movable:
            raise RuntimeError(f"at first {root.choices} could move, now {movable}")
        point, path = root, [root]
        while (choice := point.next_choice()) is not None:
            before = {name: str(stepper[name].before) for name in point.choices}
            stepper[choice].step()
            movable = _movable(stepper, pointless)
            new |= movable not in point.after[choice]
            point = point.follow(choice, movable, before, swaps)
            path.append(point)
        _hold(stepper, check if not point.choices else lambda _: None)
        for earlier in reversed(path):
            earlier.look_back()
        orders += new and not point.choices
    return orders


def _movable(stepper: Stepper, pointless: Callable[[Stepper, Stepped], bool]) -> tuple[str, ...]:
    return tuple(
        name for name, stepped in stepper.operations.items() if stepped.can_move and not pointless(stepper, stepped)
    )


def _hold(stepper: Stepper, check: Callable[[Stepper], None]) -> None:
    stepper.run([])  # raises if one stays blocked
    try:
        check(stepper)
    except AssertionError as error:
        error.add_note("\n".join(["in this order:", *(f"{name}: {_short(sql)}" for name, sql in stepper.taken)]))
        raise


def _short(statement: str) -> str:
    return " ".join(statement.split())[:120]


class _Point:
    """A point of the search with its possible moves."""

    def __init__(self, choices: tuple[str, ...], asleep: frozenset[str] = frozenset()) -> None:
        self.choices = choices
        self.asleep = asleep
        """Choices equivalent to an order searched before."""
        self.after: dict[str, dict[tuple[str, ...], _Point]] = {name: {} for name in choices}
        """Points seen after each choice, by the operations that could move then."""
        self.done = False
        self._in_vain = 0

    def next_choice(self) -> str | None:
        """Return the next operation to move, preferring unfinished ones; None if all are blocked or asleep."""
        awake = [name for name in self.choices if name not in self.asleep]
        return next((name for name in awake if not self._is_done(name)), awake[0] if awake else None)

    def follow(
        self, name: str, movable: tuple[str, ...], before: Mapping[str, str], swaps: Callable[[str, str], bool]
    ) -> _Point:
        """Return the point after this choice. After TRIES repeats, give up points that it no longer leads to.

        `before` are the pending statements at this point.
        """
        seen = self.after[name]
        if movable not in seen:
            searched = self.asleep.union(other for other in self.choices if other != name and self._is_done(other))
            asleep = (other for other in searched if other in movable and swaps(before[other], before[name]))
            seen[movable] = _Point(movable, frozenset(asleep))
        point = seen[movable]
        if point.done and not self._is_done(name):
            self._in_vain += 1
            if self._in_vain > TRIES:
                for other in seen.values():
                    other.done = True
        return point

    def look_back(self) -> None:
        self.done = self.done or all(name in self.asleep or self._is_done(name) for name in self.choices)

    def _is_done(self, name: str) -> bool:
        seen = self.after[name].values()
        return bool(seen) and all(point.done for point in seen)
