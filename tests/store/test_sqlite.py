"""SQLite: its settings, a log that stays small without automatic checkpoints, and readers and copies of the file meanwhile."""

from __future__ import annotations

import shlex
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path

import pytest
from sqlalchemy import Engine, text
from sqlalchemy.exc import OperationalError

from inbox.db import engine as engines
from inbox.db import intake
from inbox.db.engine import checkpoint
from relay.delivery.outcome import Failed
from relay.delivery.policy import policies
from relay.store.database import Database
from tests.docs.pages import PAGES, blocks
from tests.helpers.databases import open_engine
from tests.helpers.machine import run_sqlite_shell
from tests.helpers.receiver import a_link
from tests.helpers.relaying import DONE, UNWELL, FakeClock, Steps, fill
from tests.helpers.storing import an_event
from tests.helpers.tables import rows
from tests.helpers.webhooks import a_config, moment
from tests.store.conftest import differences

# --- SQLite's write-ahead log stays small without automatic checkpoints


@pytest.fixture
def engine(sqlite_database_url: str) -> Iterator[Engine]:
    with open_engine(sqlite_database_url) as made:
        yield made


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
    path = path_of(engine)
    write(Database(engine))
    before = path.read_bytes()
    with holding_the_write_lock(path):
        assert not checkpoint(engine)
        assert path.read_bytes() == before
    assert checkpoint(engine)
    assert path.read_bytes() != before


def path_of(engine: Engine) -> Path:
    return Path(engine.url.database or "")


def trace(monkeypatch: pytest.MonkeyPatch, tell: Callable[[str], None]) -> None:
    """Have each statement of a checkpoint told before it runs."""
    connected = engines._connect_apart

    def connect_traced(of: Path) -> sqlite3.Connection:
        connection = connected(of)
        connection.set_trace_callback(tell)
        return connection

    monkeypatch.setattr(engines, "_connect_apart", connect_traced)


def test_no_other_connection_writes_while_the_log_is_copied(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    attempts: dict[str, bool] = {}

    def try_to_write(statement: str) -> None:
        attempts[statement] = False
        other = sqlite3.connect(path_of(engine), timeout=0, isolation_level=None)
        with closing(other), suppress(sqlite3.OperationalError):
            other.execute("BEGIN IMMEDIATE")
            attempts[statement] = True

    trace(monkeypatch, try_to_write)
    write(Database(engine))
    assert checkpoint(engine)
    # SQLite reports a statement before it runs: the lock is free before the first, and held before the second.
    assert attempts == {"BEGIN IMMEDIATE": True, "PRAGMA wal_checkpoint(PASSIVE)": False}


def test_a_checkpoint_waits_for_a_reader_of_an_older_state(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
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


def test_the_log_stays_small_while_a_relay_writes(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engines, "EVERY_CHANGES", 50)
    database, path, sizes = Database(engine), Path(f"{engine.url.database}-wal"), []
    database.sql.pause_after_write = 0.0
    for n in range(200):
        write(database, n % 60)
        sizes.append(path.stat().st_size)
    assert max(sizes[100:]) <= max(sizes[:100])


async def test_the_log_stays_small_while_a_receiver_writes(sqlite_database_url: str) -> None:
    link, sizes = a_link(sqlite_database_url), []
    path = Path(f"{engines.parse_url(sqlite_database_url).database}-wal")
    await link.open()
    for first in range(0, 6000, 200):
        await link.write(intake.append, [an_event(n, f"u{n}") for n in range(first, first + 200)])
        sizes.append(path.stat().st_size)  # noqa: ASYNC240  # nothing else runs in this loop
    await link.drop()
    assert max(sizes[15:]) < 1.5 * max(sizes[:15])


# --- Settings of every SQLite connection that differ from the defaults of SQLite and its driver


def setting(engine: Engine, name: str) -> object:
    return next(iter(rows(engine, f"PRAGMA {name}")[0].values()))


def test_every_commit_is_synced_to_a_log_that_readers_do_not_wait_for(engine: Engine) -> None:
    assert (setting(engine, "journal_mode"), setting(engine, "synchronous")) == ("wal", 2)
    assert setting(engine, "busy_timeout") == 5000


def test_a_reader_connects_while_the_write_lock_is_held(sqlite_database_url: str, engine: Engine) -> None:
    """A connection that wrote anything at its start would wait, and fail after the busy timeout."""
    with engine.begin():  # IMMEDIATE: it has the lock
        other = engines.connect(sqlite_database_url, application="tests")
        with engines.reading(other.connect()) as connection:
            assert connection.execute(text("SELECT count(*) FROM gate")).scalar_one() == 0
            assert connection.connection.cursor().execute("PRAGMA auto_vacuum").fetchone() == (2,)
        other.dispose()


def test_a_transaction_that_reads_first_and_writes_later_does_not_lose_to_another(engine: Engine) -> None:
    """A deferred transaction would fail at once: it can't write after its snapshot is stale."""
    with engine.begin() as connection:
        connection.execute(text("SELECT count(*) FROM inbox"))
        with closing(sqlite3.connect(path_of(engine), timeout=0)) as other, pytest.raises(sqlite3.OperationalError):
            other.execute("BEGIN IMMEDIATE")
        connection.execute(text("UPDATE order_lock SET id = id"))


def test_a_step_on_a_full_disk_is_made_when_there_is_room(sqlite_database_url: str, engine: Engine) -> None:
    """SQLite has rolled back by itself then: a second ROLLBACK must not hide the error or keep the connection."""
    fill(sqlite_database_url, [("u1", moment(0)), ("u1", moment(1))])
    steps = Steps(engine, policies(a_config(sqlite_database_url)), FakeClock(datetime(2030, 1, 1, tzinfo=UTC)))
    steps.sequence()
    claimed = steps.claim_due()
    before = steps.rows("SELECT seq, state, attempt, lease_token FROM open_delivery ORDER BY seq")
    _most_pages(engine, int(str(setting(engine, "page_count"))))
    for _ in range(3):
        with pytest.raises(OperationalError, match="full"):
            steps.record_all(claimed, Failed((), "server_error", "x" * 1_000_000))
    _most_pages(engine, 1_000_000)
    assert steps.rows("SELECT seq, state, attempt, lease_token FROM open_delivery ORDER BY seq") == before
    (recorded,) = steps.record_all(claimed, UNWELL)
    assert recorded.fact is not None
    assert len(steps.kinds()) == 1


def _most_pages(engine: Engine, number: int) -> None:
    """Let the file have so many pages, by the pool's one connection, which the steps have too."""
    with closing(engine.raw_connection()) as connection:
        connection.cursor().execute(f"PRAGMA max_page_count = {number}")


# --- A DBA's `sqlite3` shell beside the programs: it may read at any time, and whatever it holds is given back


@pytest.mark.parametrize("name", ["backup.db", "copy.db"])
def test_each_backup_of_the_page_is_whole_while_others_write(lived_in: Steps, engine: Engine, name: str) -> None:
    page = "\n".join(block.text for block in blocks(PAGES["docs/how-to/back-up-and-restore.md"]) if block.info == "sh")
    (line,) = (line for line in page.splitlines() if line.startswith("sqlite3") and name in line)
    _, where, command = shlex.split(line)
    copy = path_of(engine).with_name(name)
    lived_in.arrive(an_event(98))
    assert run_sqlite_shell(where.replace("inbox.db", str(path_of(engine))), command.replace(name, str(copy))) == ""
    lived_in.arrive(an_event(99))
    assert run_sqlite_shell(str(copy), "PRAGMA integrity_check; SELECT count(*) FROM inbox") == "ok\n14"
    with open_engine(f"sqlite:///{copy}") as other:
        restored = Steps(other)
        assert differences(restored.database) == []
        restored.attempt(DONE)
