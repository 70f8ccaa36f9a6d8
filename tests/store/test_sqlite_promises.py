"""Settings of every SQLite connection that differ from the defaults of SQLite and its driver."""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Iterator
from datetime import UTC, datetime

import pytest
from sqlalchemy import Engine, text
from sqlalchemy.exc import OperationalError

from inbox.db import engine as engines
from inbox.db import guarantees
from relay.delivery.outcome import Failed
from relay.delivery.policy import policies
from tests.helpers.filling import fill
from tests.helpers.reading import count, rows
from tests.helpers.relaying import UNWELL, FakeClock, Steps
from tests.helpers.webhooks import a_config, moment


@pytest.fixture
def engine(sqlite_database_url: str) -> Iterator[Engine]:
    made = engines.connect(sqlite_database_url, application="tests")
    yield made
    made.dispose()


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
