"""Settings that the guarantees depend on: every connection pins them, whatever the server's owner or the URL has set."""

from __future__ import annotations

import asyncio
import contextlib
import threading

import pytest
from sqlalchemy import Engine, make_url, text

from inbox.db import engine as engines
from inbox.db import guarantees
from inbox.db.engine import PINNED
from inbox.errors import ConfigError
from relay.store.database import Database
from tests.helpers.kinds import ON_POSTGRES, ON_SQLITE
from tests.helpers.outage import connect_postgres, read_only
from tests.helpers.patience import be_patient
from tests.helpers.settings import HOSTILE, pinned, set_otherwise
from tests.helpers.waiting import until


@pytest.fixture
def hostile(postgres_database_url: str) -> str:
    """A database whose owner has set everything otherwise."""
    set_otherwise(postgres_database_url)
    return postgres_database_url


def settings_of_both(url: str) -> list[dict[str, str]]:
    """The settings of a relay's transaction, and of a receiver's statement."""

    async def of_the_receiver() -> dict[str, str]:
        made = engines.connect_async(url, application="tests")
        async with made.connect() as connection:
            found = await connection.run_sync(pinned, "statement_timeout")
        await made.dispose()
        return found

    made = engines.connect(url, application="tests")
    with made.begin() as connection:
        of_the_relay = pinned(connection, "statement_timeout")
    made.dispose()
    return [of_the_relay, asyncio.run(of_the_receiver())]


def test_the_settings_of_the_database_reach_neither_side(hostile: str) -> None:
    for found in settings_of_both(hostile):
        assert found == {**PINNED, "statement_timeout": "0"}


def test_what_is_read_under_the_order_lock_is_what_the_one_before_has_left(hostile: str) -> None:
    made = engines.connect(hostile, application="tests")
    be_patient(made)
    database = Database(made)
    seen: list[int] = []

    def second() -> None:
        with database.write() as transaction:
            transaction.take_order_lock()
            seen.extend(row.n for row in transaction.execute(text("SELECT count(*) AS n FROM gate")))

    thread = threading.Thread(target=second)
    with contextlib.closing(connect_postgres(hostile)) as observer, database.write() as transaction:
        transaction.take_order_lock()
        thread.start()
        waits = "SELECT 1 FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
        until(lambda: observer.execute(waits).fetchone(), "the second waits for the lock, with a snapshot of before")
        transaction.execute(text("INSERT INTO gate (kind, name) VALUES ('route', 'r')"))
    thread.join(10)
    made.dispose()
    assert seen == [1]


@pytest.mark.parametrize(
    "options",
    [
        "-c synchronous_commit=off",
        "-csynchronous_commit=off",
        "--synchronous-commit=off",
        "-c statement_timeout=1s -c LOCK_TIMEOUT=0",
        "-c transaction_isolation=serializable",
        "-c default_transaction_isolation=serializable -c search_path=x",
    ],
)
def test_options_in_the_url_undo_no_guarantee(postgres_database_url: str, options: str) -> None:
    url = make_url(postgres_database_url).update_query_dict({"options": options})
    for found in settings_of_both(url.render_as_string(hide_password=False)):
        assert found.items() >= PINNED.items()


@pytest.mark.parametrize("schema", ["Inbox", "pg_inbox", "a-b", 'x"; DROP', "9a", "a" * 64])
def test_a_schema_that_needs_quotes_is_refused(schema: str) -> None:
    url = make_url("postgresql+psycopg://localhost/inbox").update_query_dict({"schema": schema})
    with pytest.raises(ConfigError, match="a schema has small letters"):
        engines.connect(url.render_as_string(), application="tests")


@ON_POSTGRES
def test_a_pin_that_was_dropped_on_the_way_is_refused_with_who_set_it(engine: Engine) -> None:
    for setting in PINNED.keys() - {"default_transaction_isolation"}:
        with engine.begin() as connection:
            connection.execute(text(f"SET LOCAL {setting} = '{HOSTILE[setting]}'"))
            (line,) = guarantees.differences(connection)
        assert f"= {HOSTILE[setting]} (set by: session), not {PINNED[setting]}: " in line
        assert "pooler=transaction" in line


@ON_POSTGRES
@pytest.mark.parametrize("level", ["remote_write", "local"])
def test_a_commit_that_waits_for_less_than_a_standbys_disk_is_refused(level: str, engine: Engine) -> None:
    with engine.begin() as connection:
        connection.execute(text(f"SET LOCAL synchronous_commit = {level}"))
        assert len(guarantees.differences(connection)) == 1
        connection.execute(text("SET LOCAL synchronous_commit = remote_apply"))
        assert guarantees.differences(connection) == []


@ON_POSTGRES
def test_what_only_the_servers_owner_can_change_is_said_and_not_refused(
    database_url: str, engine: Engine, caplog: pytest.LogCaptureFixture
) -> None:
    with read_only(database_url):
        guarantees.require(engine)
    assert "default_transaction_read_only = on (set by: database), not off: nothing can be stored" in caplog.text


@ON_SQLITE
@pytest.mark.parametrize("pragma", ["synchronous = NORMAL", "wal_autocheckpoint = 1000", "journal_mode = DELETE"])
def test_a_pragma_of_sqlite_that_did_not_take_is_refused(pragma: str, engine: Engine) -> None:
    with engine.connect() as connection:
        cursor = connection.connection.cursor()
        cursor.execute(f"PRAGMA {pragma}")
        (line,) = guarantees.differences(connection)
    assert line.startswith(f"the SQLite file has {pragma.partition(' ')[0]} = ")


@pytest.mark.parametrize(("options", "shown"), [("", "off"), ("-c jit=on", "on")])
def test_statements_of_milliseconds_are_not_compiled_unless_the_url_says_so(
    postgres_database_url: str, options: str, shown: str
) -> None:
    query = {"options": options} if options else {}
    url = make_url(postgres_database_url).update_query_dict(query).render_as_string(hide_password=False)
    made = engines.connect(url, application="tests")
    with made.connect() as connection:
        assert connection.execute(text("SHOW jit")).scalar_one() == shown
    made.dispose()
