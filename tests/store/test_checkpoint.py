"""SQLite's write-ahead log stays small without automatic checkpoints."""

from __future__ import annotations

import hashlib
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
from sqlalchemy import Engine, text

from inbox.db import engine as engines
from inbox.db import intake
from inbox.db.engine import checkpoint
from relay.store.database import Database
from tests.helpers.receiver import a_link
from tests.helpers.storing import an_event


@pytest.fixture
def engine(sqlite_database_url: str) -> Iterator[Engine]:
    made = engines.connect(sqlite_database_url, application="tests")
    yield made
    made.dispose()


def size_of(path: Path) -> int:
    return path.stat().st_size


def contents(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@contextmanager
def holding_the_write_lock(path: Path) -> Iterator[None]:
    """Another connection is in the middle of a transaction that writes."""
    with closing(sqlite3.connect(path, isolation_level=None)) as writer:
        writer.execute("BEGIN IMMEDIATE")
        yield
        writer.execute("ROLLBACK")


def write(database: Database, second: int = 0) -> None:
    with database.write() as transaction:
        transaction.execute(text(f"UPDATE write_probe SET probed_at = '2026-01-01 00:00:{second:02}.000000Z'"))


def test_nothing_is_copied_while_another_connection_may_commit(engine: Engine) -> None:
    path = Path(engine.url.database or "")
    write(Database(engine))
    before = contents(path)
    with holding_the_write_lock(path):
        assert not checkpoint(engine)
        assert contents(path) == before
    assert checkpoint(engine)
    assert contents(path) != before


def test_nor_does_a_receiver_copy_anything_then(sqlite_database_url: str) -> None:
    engine = engines.connect_thread(sqlite_database_url)
    path = Path(engine.url.database or "")
    with engine.connect() as connection:
        with connection.begin():
            intake.append(connection, [an_event(1)])
        before = contents(path)
        with holding_the_write_lock(path):
            assert not checkpoint(engine)
            assert contents(path) == before
        assert checkpoint(engine)
        assert contents(path) != before


def trace(monkeypatch: pytest.MonkeyPatch, tell: Callable[[str], None]) -> None:
    """Have each statement of a checkpoint told before it runs."""
    connected = engines._connect_apart

    def traced(of: Path) -> sqlite3.Connection:
        connection = connected(of)
        connection.set_trace_callback(tell)
        return connection

    monkeypatch.setattr(engines, "_connect_apart", traced)


def test_while_the_log_is_copied_nobody_else_can_begin_to_write(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = Path(engine.url.database or "")
    attempts: dict[str, bool] = {}

    def try_to_write(statement: str) -> None:
        with closing(sqlite3.connect(path, timeout=0, isolation_level=None)) as other:
            try:
                other.execute("BEGIN IMMEDIATE")
            except sqlite3.OperationalError:
                attempts[statement] = False
            else:
                attempts[statement] = True

    trace(monkeypatch, try_to_write)
    write(Database(engine))
    assert checkpoint(engine)
    # SQLite tells of a statement before it runs it: nobody has the lock before the one, and one has it before the other.
    assert attempts == {"BEGIN IMMEDIATE": True, "PRAGMA wal_checkpoint(PASSIVE)": False}


def test_a_checkpoint_waits_for_who_has_yet_to_end_reading_an_older_state(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    database = Database(engine)
    reading = engine.connect()
    tries: list[str] = []

    def end_reading_at_the_second_try(statement: str) -> None:
        tries.extend([statement] if "wal_checkpoint" in statement else [])
        if len(tries) == 2:
            reading.rollback()

    trace(monkeypatch, end_reading_at_the_second_try)
    monkeypatch.setattr(engines, "_CHECKPOINT_WAIT_SECONDS", 60)
    engines.reading(reading).execute(text("SELECT * FROM write_probe"))
    write(database)
    assert checkpoint(engine)
    assert len(tries) == 2
    reading.close()


def test_the_next_write_begins_the_log_anew_after_a_whole_checkpoint(engine: Engine) -> None:
    log = Path(f"{engine.url.database}-wal")
    database = Database(engine)
    for second in range(20):
        write(database, second)
    length = size_of(log)
    for second in range(20):
        assert checkpoint(engine)
        write(database, second)
    assert size_of(log) == length


def test_no_connection_checkpoints_by_itself(engine: Engine) -> None:
    with engine.connect() as connection:
        assert connection.execute(text("PRAGMA wal_autocheckpoint")).scalar() == 0
        assert connection.execute(text("PRAGMA synchronous")).scalar() == 2


def test_a_checkpoint_copies_the_whole_log_unless_somebody_reads_an_older_state(engine: Engine) -> None:
    database = Database(engine)
    write(database)
    assert checkpoint(engine)
    with database.read() as reading:
        reading.execute(text("SELECT * FROM write_probe"))
        write(database, 1)
        assert not checkpoint(engine)
    assert checkpoint(engine)


def test_the_log_stays_small_while_a_relay_writes(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engines, "EVERY_CHANGES", 50)
    database = Database(engine)
    path = Path(f"{engine.url.database}-wal")
    sizes = []
    database.sql.pause_after_write = 0.0
    for n in range(200):
        with database.write() as transaction:
            transaction.execute(text("UPDATE relay_node SET pid = :n"), n=n)
            transaction.execute(text(f"UPDATE write_probe SET probed_at = '2026-01-01 00:00:{n % 60:02}.000000Z'"))
        sizes.append(size_of(path))

    assert max(sizes[100:]) <= max(sizes[:100])


async def test_the_log_stays_small_while_a_receiver_writes(sqlite_database_url: str) -> None:
    link, sizes = a_link(sqlite_database_url), []
    path = Path(f"{engines.parse_url(sqlite_database_url).database}-wal")
    await link.open()
    for first in range(0, 6000, 200):
        await link.write(intake.append, [an_event(n, f"u{n}") for n in range(first, first + 200)])
        sizes.append(size_of(path))
    await link.drop()
    assert max(sizes[15:]) < 1.5 * max(sizes[:15])
