"""Needs of the guarantees: settings that every connection pins, sequences ahead of their tables, arrays."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import Engine, make_url, text
from sqlalchemy.exc import DataError

from inbox.db import engine as engines
from inbox.db import guarantees
from inbox.db.dialect import array_param
from inbox.db.engine import PINNED
from inbox.errors import ConfigError, UnfitDatabase
from inbox.events.timestamps import as_time
from relay.store.database import Database
from tests.helpers.databases import HOSTILE, ON_POSTGRES, ON_SQLITE, pinned, read_only, set_otherwise
from tests.helpers.tables import rows
from tests.helpers.waiting import be_patient, until

# --- Settings that the guarantees depend on: every connection pins them, whatever the server's owner or the URL has set


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


def test_reads_under_the_order_lock_see_all_that_the_one_before_has_left(hostile: str) -> None:
    made = engines.connect(hostile, application="tests")
    be_patient(made)
    database = Database(made)

    def second() -> list[int]:
        with database.write() as transaction:
            transaction.take_order_lock()
            return [row.n for row in transaction.execute(text("SELECT count(*) AS n FROM gate"))]

    with ThreadPoolExecutor(1) as beside:
        with database.write() as transaction:
            transaction.take_order_lock()
            seen = beside.submit(second)
            waits = "SELECT 1 FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
            until(lambda: rows(made, waits), "the second waits for the lock, with a snapshot of before")
            transaction.execute(text("INSERT INTO gate (kind, name) VALUES ('route', 'r')"))
        assert seen.result(10) == [1]
    made.dispose()


def test_options_in_the_url_undo_no_guarantee(postgres_database_url: str) -> None:
    for options in (
        "-c synchronous_commit=off",
        "-c statement_timeout=1s -c LOCK_TIMEOUT=0",
        "-c default_transaction_isolation=serializable -c search_path=x",
    ):
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
def test_a_commit_that_waits_for_less_than_a_standbys_disk_is_refused(engine: Engine) -> None:
    for level, refused in (("remote_write", 1), ("local", 1), ("remote_apply", 0)):
        with engine.begin() as connection:
            connection.execute(text(f"SET LOCAL synchronous_commit = {level}"))
            assert len(guarantees.differences(connection)) == refused


@ON_POSTGRES
def test_a_setting_of_the_servers_owner_is_only_said(
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


# --- A sequence behind its table, as a restore or the promotion of a logical replica leaves it, is found and said


EVENT = """INSERT INTO inbox (source, dedup_key, event_type, action, occurred_at, received_at, routes, content_type,
    body_bytes, body_sha256) VALUES ('s', random()::text, 'T', 'other', now(), now(), '{}', 'x', 0, '')"""


def found(engine: Engine) -> list[str]:
    with engine.connect() as connection:
        return guarantees.differences(connection)


def do(engine: Engine, *statements: str) -> None:
    with engine.begin() as connection:
        for statement in statements:
            connection.execute(text(statement))


@ON_POSTGRES
def test_every_column_that_counts_up_by_itself_is_looked_at(engine: Engine) -> None:
    defaults = rows(
        engine,
        "SELECT table_name || '.' || column_name AS name FROM information_schema.columns"
        " WHERE column_default LIKE 'nextval%' OR is_identity = 'YES'",
    )
    assert {row["name"] for row in defaults} == set(guarantees.COUNTER_COLUMNS)


@ON_POSTGRES
def test_one_behind_its_table_is_named_with_the_statement_that_mends_it(engine: Engine) -> None:
    do(engine, EVENT, EVENT, EVENT)
    assert found(engine) == []
    do(engine, "SELECT setval('inbox_seq_seq', 2)")
    (line,) = found(engine)
    assert "the sequence public.inbox_seq_seq is behind its table" in line
    with pytest.raises(UnfitDatabase, match="is behind its table"):
        guarantees.require(engine)
    do(engine, line.partition("Run: ")[2])
    assert found(engine) == []
    do(engine, EVENT)


@ON_POSTGRES
@pytest.mark.parametrize("granted", ["TABLES", "SEQUENCES"])
def test_a_role_that_may_not_look_at_both_is_not_held_up(granted: str, engine: Engine) -> None:
    do(engine, EVENT, "SELECT setval('inbox_seq_seq', 1, false)")
    role = "nobody_in_particular"
    with engine.connect() as connection:
        connection.execute(text(f"CREATE ROLE {role}"))  # rolled back: roles are shared by all databases
        connection.execute(text(f"GRANT SELECT ON ALL {granted} IN SCHEMA public TO {role}"))
        connection.execute(text(f"SET LOCAL ROLE {role}"))
        assert guarantees.differences(connection) == []


# --- A column of a batch that is bound as the text of an array arrives in Postgres value for value


TEXTS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=20)
ARRAY_SYNTAX = st.text('{}",\\ \n;NULx', max_size=8)


def stored(engine: Engine, values: list[Any], kind: str) -> list[Any]:
    with engine.connect() as connection:
        statement = text(f"SELECT v FROM unnest(CAST(:values AS {kind}[])) WITH ORDINALITY AS a(v, n) ORDER BY n")
        return list(connection.scalars(statement, {"values": array_param(values)}))


VALUES: dict[str, st.SearchStrategy[Any]] = {
    "text": TEXTS | ARRAY_SYNTAX | st.sampled_from(["NULL", "null", "", "\\x00", '"', "\\"]),
    "bytea": st.binary(max_size=40),
    "boolean": st.booleans(),
    "bigint": st.integers(-(2**63), 2**63 - 1),
    "timestamptz": st.datetimes(datetime(1, 1, 2), datetime(9999, 12, 30), timezones=st.just(UTC)),  # noqa: DTZ001  # bounds are naive
}
READ: dict[str, Callable[[Any], Any]] = {"bytea": bytes, "timestamptz": as_time}


@pytest.mark.parametrize("kind", VALUES)
@given(st.data())
def test_an_array_of_any_kind_arrives_value_for_value(module_engine: Engine, kind: str, data: st.DataObject) -> None:
    values = data.draw(st.lists(st.none() | VALUES[kind]))
    read = READ.get(kind, lambda value: value)
    assert [None if v is None else read(v) for v in stored(module_engine, values, kind)] == values


def test_a_text_with_nul_is_a_data_error_as_in_any_other_parameter(module_engine: Engine) -> None:
    with pytest.raises(DataError):
        stored(module_engine, ["a\0b"], "text")
