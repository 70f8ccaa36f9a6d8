"""Each role has the rights that its program needs, on each table, view, sequence and function; PUBLIC has none."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Callable, Iterator, Mapping
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
from inbox.db.migrate import ROLES, Role, roles_script
from inbox.db.schema import metadata
from inbox.db.views import VIEWS
from inbox.errors import ConfigError, UnfitDatabase
from inbox.events.timestamps import as_time
from relay.store.database import Database
from tests.helpers import databases
from tests.helpers.databases import ON_POSTGRES, ON_SQLITE, Granted, connect_postgres, grant_roles
from tests.helpers.storing import Intake, an_event
from tests.helpers.tables import rows
from tests.helpers.waiting import be_patient, until

TABLES = ["alembic_version", *metadata.tables]
WRITES = {
    "receiver": {
        "INSERT": {
            "inbox", "inbox_payload", "open_delivery", "duplicate_request", "rejected_request", "alert", "throughput_minute",
        },
        "UPDATE": {"duplicate_request", "write_probe", "throughput_minute"},
    },
    "relay": {
        "INSERT": {*TABLES} - {"alembic_version", "order_lock", "payload_lock", "pruner", "write_probe"},
        "UPDATE": {*TABLES} - {"alembic_version", "inbox_payload", "edited_body"},
        "DELETE": {*TABLES}
        - {"alembic_version", "order_lock", "payload_lock", "pruner", "write_probe", "route_lock"},
    },
    "web": {
        "INSERT": {"relay_command", "payload_reveal", "edited_body"},
        "UPDATE": {"relay_command"},
    },
    "operator": {"INSERT": {"relay_command", "edited_body"}, "UPDATE": {"relay_command"}},
}  # fmt: skip
"""Tables of which a role may write any column, by privilege; no other."""
READ_BY_RECEIVER = {
    "alembic_version", "inbox", "open_delivery", "dead_letter", "duplicate_request", "rejected_request", "write_probe", "alert",
    "throughput_minute",
}  # fmt: skip


@pytest.fixture(scope="module")
def roles(module_database_url: str) -> Iterator[Granted]:
    with grant_roles(module_database_url, f"t{os.getpid()}") as made:
        yield made


def test_public_may_do_nothing(roles: Granted, module_engine: Engine) -> None:
    """The owner of a thing has the rights in its list, so a list that is missing is PUBLIC's default."""
    given = rows(
        module_engine,
        """
SELECT c.relname AS name FROM pg_class c, aclexplode(c.relacl) a
WHERE c.relnamespace = current_schema()::regnamespace AND a.grantee = 0
UNION ALL
SELECT p.proname FROM pg_proc p, aclexplode(coalesce(p.proacl, acldefault('f', p.proowner))) a
WHERE p.pronamespace = current_schema()::regnamespace AND a.grantee = 0 AND p.prosecdef
""",
    )
    assert given == []
    assert roles.prefix


def test_each_role_may_do_with_each_table_and_view_what_it_should_and_nothing_else(roles: Granted) -> None:
    """Asked of the database itself, for the table and for its columns. A new table has its line in `roles.sql`, or this fails."""
    with contextlib.closing(connect_postgres(roles.server_url)) as admin:
        for role in ROLES:
            for name in (*TABLES, *(view.name for view in VIEWS)):
                readable = name in READ_BY_RECEIVER if role == "receiver" else True
                if role == "reader_without_payloads" and name in {"inbox_payload", "edited_body"}:
                    readable = False
                should = {"SELECT"} if readable else set()
                should |= {privilege for privilege, tables in WRITES.get(role, {}).items() if name in tables}
                may = set()
                for privilege in (
                    "SELECT",
                    "INSERT",
                    "UPDATE",
                    "DELETE",
                    "TRUNCATE",
                    "REFERENCES",
                    "TRIGGER",
                    "MAINTAIN",
                ):
                    query = "SELECT has_table_privilege(%(role)s, %(name)s, %(privilege)s)"
                    if privilege not in {"DELETE", "TRUNCATE", "TRIGGER", "MAINTAIN"}:
                        query += " OR has_any_column_privilege(%(role)s, %(name)s, %(privilege)s)"
                    asked = {"role": roles.login(role), "name": name, "privilege": privilege}
                    if admin.execute(query.encode(), asked).fetchone() == (True,):
                        may.add(privilege)
                assert may == should, (role, name)


BEYOND: Mapping[Role, tuple[str, ...]] = {
    "receiver": (
        "SELECT event_type FROM inbox",
        "SELECT body FROM duplicate_request",
        "SELECT entity_id FROM dead_letter",
        "INSERT INTO open_delivery (seq, route, lane, occurred_at, state, run) VALUES (1, 'r', 'l', now(), 'received', 9)",
        "SELECT id FROM order_lock FOR UPDATE",
    ),
    "relay": (
        "DROP VIEW stuck",
        "SET session_replication_role = replica",
        "TRUNCATE inbox_payload_1",
        "SELECT * FROM inbox_payload_1",
    ),
    "operator": ("UPDATE relay_command SET reason = 'x'",),
    "reader_without_payloads": ("SELECT * FROM inbox_payload_1",),
    "reader": ("CREATE TEMP TABLE mine (a int)",),
}
"""Rights beyond those on tables: columns, leaves, and those of the owner."""
OF_THE_OWNER = (
    "SELECT setval('inbox_seq_seq', 1)",
    "CREATE TABLE mine (a int)",
    "ALTER TABLE inbox DISABLE TRIGGER ALL",
)


def test_a_stolen_receiver_reads_no_event_and_a_stolen_relay_undoes_no_guarantee(roles: Granted) -> None:
    tried = [(role, each) for role in ROLES for each in (*BEYOND.get(role, ()), *OF_THE_OWNER)]
    assert [(role, each) for role, each in tried if roles.allows(role, each)] == []


ADD_LEAF = "SELECT inbox_payload_add_leaf({0}00001, {1}00001)"


def test_a_relay_makes_and_expires_leaves_that_belong_to_the_owner(roles: Granted, module_engine: Engine) -> None:
    expire = "SELECT inbox_payload_expire_leaf('inbox_payload_1', now())"
    with roles.connect("relay") as connection:
        assert connection.execute(ADD_LEAF.format(1, 2).encode()).fetchone() == (True,)
        assert connection.execute(expire.encode()).fetchone()
    owners = rows(module_engine, "SELECT DISTINCT tableowner AS name FROM pg_tables WHERE tablename LIKE 'inbox%'")
    assert len(owners) == 1
    for role in ("receiver", "operator", "reader"):
        assert not roles.allows(role, expire)
        assert not roles.allows(role, ADD_LEAF.format(9, 10))


def test_a_right_that_was_given_by_hand_is_revoked(roles: Granted) -> None:
    receiver, reader = roles.name("receiver"), roles.name("reader_without_payloads")
    with contextlib.closing(connect_postgres(roles.server_url)) as admin:
        admin.execute(f"GRANT SELECT (event_type) ON inbox TO {receiver}".encode())
        admin.execute(f"GRANT SELECT ON inbox_payload TO {reader}".encode())

    def may() -> list[bool]:
        event, body = "SELECT event_type FROM inbox", "SELECT body FROM inbox_payload"
        return [roles.allows("receiver", event), roles.allows("reader_without_payloads", body)]

    assert may() == [True, True]
    roles.grant()
    assert may() == [False, False]


def test_a_reader_of_events_may_run_the_view_of_bodies(roles: Granted, module_database_url: str) -> None:
    Intake(module_database_url).append(an_event(1))
    with roles.connect("reader") as connection:
        assert connection.execute("SELECT body FROM event").fetchone() == (an_event(1).body.decode(),)
    assert not roles.allows("reader_without_payloads", "SELECT body FROM event")
    assert roles.allows("reader_without_payloads", "SELECT seq, is_pruned FROM event")


def test_an_operator_asks_for_commands_in_his_own_name(roles: Granted) -> None:
    ask = "INSERT INTO relay_command (kind, selection, reason{0}) VALUES ('pause', '{{\"route\": \"r\"}}', 'a test'{1})"
    for forged in (("asked_by", "'ann'"), ("state", "'done'"), ("answer", "'all is well'"), ("asked_at", "now()")):
        assert not roles.allows("operator", ask.format(*(f", {part}" for part in forged)))
    assert roles.allows("operator", ask.format("", ""))
    assert roles.allows("operator", "UPDATE relay_command SET state = 'cancelled' WHERE id = 1")
    assert roles.allows("operator", "SELECT * FROM stuck")


def test_without_payloads_every_column_can_be_read_but_a_sender_s_words(roles: Granted) -> None:
    columns = (
        "SELECT table_name || '.' || column_name FROM information_schema.columns WHERE table_schema = current_schema()"
    )
    with roles.connect("reader_without_payloads") as connection, roles.connect("reader") as other:
        readable = {name for (name,) in connection.execute(columns)}
        everything = {name for (name,) in other.execute(columns)}
    assert everything - readable == {
        "duplicate_request.body", "event.body", "event.headers", "inbox_payload.body", "inbox_payload.headers", "inbox_payload.seq",
        "edited_body.body", "edited_body.id", "edited_body.seq",
        "rejected_request.body", "rejected_request.headers",
    }  # fmt: skip


@pytest.mark.parametrize("prefix", ["Inbox", "a-b", "9a", "pg_x", "x" * 41, 'x"'])
def test_a_prefix_that_makes_no_name_is_refused(prefix: str) -> None:
    with pytest.raises(ConfigError, match="--prefix"):
        roles_script("public", prefix)


# --- Settings that the guarantees depend on: every connection pins them, whatever the server's owner or the URL has set


@pytest.fixture
def hostile(postgres_database_url: str) -> str:
    """A database whose owner has set everything otherwise."""
    databases.set_otherwise(postgres_database_url)
    return postgres_database_url


def settings_of_both(url: str) -> list[dict[str, str]]:
    """Return the settings of a relay's transaction, and of a receiver's statement."""

    async def read_receiver() -> dict[str, str]:
        made = engines.connect_async(url, application="tests")
        async with made.connect() as connection:
            found = await connection.run_sync(databases.read_pinned, "statement_timeout")
        await made.dispose()
        return found

    made = engines.connect(url, application="tests")
    with made.begin() as connection:
        of_the_relay = databases.read_pinned(connection, "statement_timeout")
    made.dispose()
    return [of_the_relay, asyncio.run(read_receiver())]


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
            connection.execute(text(f"SET LOCAL {setting} = '{databases.HOSTILE[setting]}'"))
            (line,) = guarantees.list_differences(connection)
        assert f"= {databases.HOSTILE[setting]} (set by: session), not {PINNED[setting]}: " in line
        assert "pooler=transaction" in line


@ON_POSTGRES
def test_a_commit_that_waits_for_less_than_a_standbys_disk_is_refused(engine: Engine) -> None:
    for level, refused in (("remote_write", 1), ("local", 1), ("remote_apply", 0)):
        with engine.begin() as connection:
            connection.execute(text(f"SET LOCAL synchronous_commit = {level}"))
            assert len(guarantees.list_differences(connection)) == refused


@ON_POSTGRES
def test_a_server_setting_is_only_logged(database_url: str, engine: Engine, caplog: pytest.LogCaptureFixture) -> None:
    with databases.read_only(database_url):
        guarantees.require(engine)
    assert "default_transaction_read_only = on (set by: database), not off: nothing can be stored" in caplog.text


@ON_SQLITE
@pytest.mark.parametrize("pragma", ["synchronous = NORMAL", "wal_autocheckpoint = 1000", "journal_mode = DELETE"])
def test_a_pragma_of_sqlite_that_did_not_take_is_refused(pragma: str, engine: Engine) -> None:
    with engine.connect() as connection:
        cursor = connection.connection.cursor()
        cursor.execute(f"PRAGMA {pragma}")
        (line,) = guarantees.list_differences(connection)
    assert line.startswith(f"the SQLite file has {pragma.partition(' ')[0]} = ")


# --- A sequence behind its table, as a restore or the promotion of a logical replica leaves it, is found and said


EVENT = """INSERT INTO inbox (source, dedup_key, event_type, action, occurred_at, received_at, routes, content_type,
    body_bytes, body_sha256) VALUES ('s', random()::text, 'T', 'other', now(), now(), '{}', 'x', 0, '')"""


def found(engine: Engine) -> list[str]:
    with engine.connect() as connection:
        return guarantees.list_differences(connection)


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
@pytest.mark.parametrize("kind", ["TABLES", "SEQUENCES"])
def test_a_role_that_may_not_look_at_both_is_not_held_up(kind: str, engine: Engine) -> None:
    do(engine, EVENT, "SELECT setval('inbox_seq_seq', 1, false)")
    role = "of_no_program"
    with engine.connect() as connection:
        connection.execute(text(f"CREATE ROLE {role}"))  # rolled back: roles are shared by all databases
        connection.execute(text(f"GRANT SELECT ON ALL {kind} IN SCHEMA public TO {role}"))
        connection.execute(text(f"SET LOCAL ROLE {role}"))
        assert guarantees.list_differences(connection) == []


# --- A column of a batch that is bound as the text of an array arrives in Postgres value for value


TEXTS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=20)
ARRAY_SYNTAX = st.text('{}",\\ \n;NULx', max_size=8)


def store_and_read(engine: Engine, values: list[Any], kind: str) -> list[Any]:
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
    assert [None if v is None else read(v) for v in store_and_read(module_engine, values, kind)] == values


def test_a_text_with_nul_is_a_data_error_as_in_any_other_parameter(module_engine: Engine) -> None:
    with pytest.raises(DataError):
        store_and_read(module_engine, ["a\0b"], "text")
