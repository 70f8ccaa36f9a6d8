"""SQLite's write-ahead log stays small without automatic checkpoints."""

from __future__ import annotations

from pathlib import Path

from sqlalchemy import text

from inbox.db import engine as engines
from inbox.db.checkpoint import EVERY_ROWS, LONGEST_EVERY_ROWS, Checkpoints, checkpoint
from inbox.store import SqliteIntake
from relay.store.database import Database
from tests.store.conftest import an_event


def size_of(path: Path) -> int:
    return path.stat().st_size


def test_no_connection_checkpoints_by_itself(sqlite_database_url: str) -> None:
    engine = engines.connect(sqlite_database_url, application="tests")
    with engine.connect() as connection:
        assert connection.execute(text("PRAGMA wal_autocheckpoint")).scalar() == 0
        assert connection.execute(text("PRAGMA synchronous")).scalar() == 2
    engine.dispose()


def test_a_checkpoint_copies_the_whole_log_unless_somebody_reads_an_older_state(sqlite_database_url: str) -> None:
    engine = engines.connect(sqlite_database_url, application="tests")
    database = Database(engine)
    with database.write() as transaction:
        transaction.execute(text("UPDATE write_probe SET probed_at = '2026-01-01 00:00:00.000000Z'"))
    assert checkpoint(engine)

    with database.read() as reading:
        reading.execute(text("SELECT * FROM write_probe"))
        with database.write() as transaction:
            transaction.execute(text("UPDATE write_probe SET probed_at = '2026-01-02 00:00:00.000000Z'"))
        assert not checkpoint(engine)
    assert checkpoint(engine)
    engine.dispose()


def test_the_log_stays_small_while_a_relay_writes(sqlite_database_url: str) -> None:
    engine = engines.connect(sqlite_database_url, application="tests")
    database = Database(engine)
    path = Path(f"{engine.url.database}-wal")
    sizes = []
    for n in range(1000):
        with database.write() as transaction:
            transaction.execute(text("UPDATE relay_node SET pid = :n"), n=n)
            transaction.execute(text(f"UPDATE write_probe SET probed_at = '2026-01-01 00:00:{n % 60:02}.000000Z'"))
        sizes.append(path.stat().st_size)
    engine.dispose()

    assert max(sizes[500:]) <= max(sizes[:500])


def test_checkpoints_become_rarer_while_they_cannot_be_completed_and_usual_again_after() -> None:
    checkpoints = Checkpoints()
    assert not checkpoints.due(EVERY_ROWS - 1)
    assert checkpoints.due(1)
    for _ in range(10):
        checkpoints.made(complete=False)
    assert not checkpoints.due(LONGEST_EVERY_ROWS - 1)
    assert checkpoints.due(1)
    checkpoints.made(complete=True)
    assert checkpoints.due(EVERY_ROWS)


async def test_the_log_stays_small_while_a_receiver_writes(sqlite_database_url: str) -> None:
    engine = engines.connect_async(sqlite_database_url, application="tests")
    path = Path(f"{engine.url.database}-wal")
    store, sizes = SqliteIntake(), []
    async with engine.connect() as connection:
        for first in range(0, 6000, 200):
            await store.append(connection, [an_event(n, f"u{n}") for n in range(first, first + 200)])
            sizes.append(size_of(path))
    await engine.dispose()

    assert max(sizes[15:]) < 1.5 * max(sizes[:15])
