"""SQLite: its settings, a log that stays small without automatic checkpoints, and what reads or copies the file meanwhile."""

from __future__ import annotations

import contextlib
import hashlib
import shlex
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from datetime import UTC, datetime
from pathlib import Path

import pytest
from sqlalchemy import Engine, text
from sqlalchemy.exc import OperationalError

from inbox.db import engine as engines
from inbox.db import guarantees, intake
from inbox.db.engine import checkpoint
from relay.delivery.outcome import Failed
from relay.delivery.policy import policies
from relay.store.database import Database
from tests.docs.pages import PAGES, blocks
from tests.helpers.databases import opened
from tests.helpers.machine import asked
from tests.helpers.receiver import a_link
from tests.helpers.relaying import DONE, UNWELL, FakeClock, Steps, fill
from tests.helpers.storing import an_event
from tests.helpers.tables import count, rows
from tests.helpers.webhooks import a_config, moment
from tests.store.verifying import differences

# --- SQLite's write-ahead log stays small without automatic checkpoints


@pytest.fixture
def engine(sqlite_database_url: str) -> Iterator[Engine]:
    with opened(sqlite_database_url) as made:
        yield made


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


# --- Settings of every SQLite connection that differ from the defaults of SQLite and its driver


@pytest.fixture
def two(sqlite_database_url: str) -> Iterator[tuple[Engine, Engine]]:
    """Two processes on one file."""
    made = [engines.connect(sqlite_database_url, application=f"number {number}") for number in (1, 2)]
    yield made[0], made[1]
    for each in made:
        each.dispose()


def setting(engine: Engine, name: str) -> object:
    return next(iter(rows(engine, f"PRAGMA {name}")[0].values()))


def test_every_commit_is_synced_to_a_log_that_readers_do_not_wait_for(engine: Engine) -> None:
    assert (setting(engine, "journal_mode"), setting(engine, "synchronous")) == ("wal", 2)
    assert setting(engine, "busy_timeout") == 5000


def test_a_reader_connects_while_somebody_holds_the_write_lock(sqlite_database_url: str, engine: Engine) -> None:
    """A connection that wrote anything at its start would wait, and fail after the busy timeout."""
    with engine.begin():  # IMMEDIATE: it has the lock
        other = engines.connect(sqlite_database_url, application="tests")
        with engines.reading(other.connect()) as connection:
            assert connection.execute(text("SELECT count(*) FROM gate")).scalar_one() == 0
            assert connection.connection.cursor().execute("PRAGMA auto_vacuum").fetchone() == (2,)
        other.dispose()


def test_a_transaction_that_reads_first_and_writes_later_does_not_lose_to_another(two: tuple[Engine, Engine]) -> None:
    """One that began deferred would fail at once: it can't write upon what it has seen."""
    one, other = two
    with one.begin() as connection:
        connection.execute(text("SELECT count(*) FROM inbox"))
        impatient = sqlite3.connect(str(other.url.database), timeout=0)
        with pytest.raises(sqlite3.OperationalError, match="locked"):
            impatient.execute("BEGIN IMMEDIATE")
        impatient.close()
        connection.execute(text("UPDATE order_lock SET id = id"))
    with other.begin() as connection:
        connection.execute(text("UPDATE order_lock SET id = id"))


@contextlib.contextmanager
def full(engine: Engine) -> Iterator[None]:
    """The database file can't grow."""
    _most_pages(engine, int(str(setting(engine, "page_count"))))
    yield
    _most_pages(engine, 1_000_000)


def _most_pages(engine: Engine, number: int) -> None:
    connection = engine.raw_connection()  # the pool's one connection, which the steps have too
    connection.cursor().execute(f"PRAGMA max_page_count = {number}")
    connection.close()


def test_a_step_that_finds_the_disk_full_does_nothing_and_is_made_when_there_is_room(
    sqlite_database_url: str, engine: Engine
) -> None:
    """SQLite has rolled back by itself then: a second ROLLBACK must not hide the error or keep the connection."""
    fill(sqlite_database_url, [("u1", moment(0)), ("u1", moment(1))])
    steps = Steps(engine, policies(a_config(sqlite_database_url)), FakeClock(datetime(2030, 1, 1, tzinfo=UTC)))
    steps.sequence()
    outcomes = [(delivery, UNWELL) for delivery in steps.claim_due()]
    before = rows(engine, "SELECT seq, state, attempt, lease_token FROM open_delivery ORDER BY seq")
    large = Failed((), "server_error", "x" * 1_000_000)
    with full(engine):
        for _ in range(3):
            with pytest.raises(OperationalError, match="full"):
                steps.record([(delivery, large) for delivery, _ in outcomes])
    assert rows(engine, "SELECT seq, state, attempt, lease_token FROM open_delivery ORDER BY seq") == before
    (recorded,) = steps.record(outcomes)
    assert recorded.fact is not None
    assert count(engine, "delivery_log") == 1


def test_it_passes_over_a_count_behind_its_table_by_itself(sqlite_database_url: str, engine: Engine) -> None:
    """It takes the larger of the two: https://sqlite.org/autoinc.html."""
    fill(sqlite_database_url, [("u1", moment(1)), ("u2", moment(2))])
    with engine.begin() as connection:
        connection.execute(text("UPDATE sqlite_sequence SET seq = 0"))
        assert guarantees.differences(connection) == []
    assert fill(sqlite_database_url, [("u3", moment(3))]) == [3]


# --- A DBA's `sqlite3` shell beside the programs: it may read at any time, and whatever it holds is given back


def path_of(engine: Engine) -> Path:
    return Path(engine.url.database or "")


@pytest.mark.parametrize("name", ["backup.db", "copy.db"])
def test_each_backup_of_the_page_is_whole_while_others_write(lived_in: Steps, engine: Engine, name: str) -> None:
    page = "\n".join(block.text for block in blocks(PAGES["docs/how-to/back-up-and-restore.md"]) if block.info == "sh")
    (line,) = (line for line in page.splitlines() if line.startswith("sqlite3") and name in line)
    _, where, command = shlex.split(line)
    path = path_of(engine)
    copy = path.with_name(name)
    lived_in.arrive(an_event(98))
    assert asked(where.replace("inbox.db", str(path)), command.replace(name, str(copy))) == ""
    lived_in.arrive(an_event(99))
    assert asked(str(copy), "PRAGMA integrity_check; SELECT count(*) FROM inbox") == "ok\n14"
    with opened(f"sqlite:///{copy}") as other:
        restored = Steps(other)
        assert differences(restored.database) == []
        restored.attempt(DONE)
