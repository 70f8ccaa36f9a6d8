"""Each role may do what its program needs, on each table, view, sequence and function; PUBLIC may do nothing."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping

import psycopg
import pytest
from sqlalchemy import Engine

from inbox.db.migrate import ROLES, Role, roles_script
from inbox.db.schema import metadata
from inbox.db.views import VIEWS
from inbox.errors import ConfigError
from tests.helpers.databases import Granted, connect_postgres, granted
from tests.helpers.storing import Intake, an_event
from tests.helpers.tables import rows

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
        "UPDATE": {*TABLES} - {"alembic_version", "inbox_payload"},
        "DELETE": {*TABLES}
        - {"alembic_version", "order_lock", "payload_lock", "pruner", "write_probe", "route_lock"},
    },
    "web": {
        "INSERT": {"relay_command", "payload_reveal"},
        "UPDATE": {"relay_command"},
    },
    "operator": {"INSERT": {"relay_command"}, "UPDATE": {"relay_command"}},
}  # fmt: skip
"""Tables of which a role may write any column, by privilege; no other."""
READ_BY_RECEIVER = {
    "alembic_version", "inbox", "open_delivery", "dead_letter", "duplicate_request", "rejected_request", "write_probe", "alert",
    "throughput_minute",
}  # fmt: skip


@pytest.fixture(scope="module")
def roles(module_database_url: str) -> Iterator[Granted]:
    with granted(module_database_url, f"t{os.getpid()}") as made:
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
                if role == "reader_without_payloads" and name == "inbox_payload":
                    readable = False
                should = {"SELECT"} if readable else set()
                should |= {privilege for privilege, tables in WRITES.get(role, {}).items() if name in tables}
                may = set()
                for privilege in ("SELECT", "INSERT", "UPDATE", "DELETE", "TRUNCATE", "REFERENCES", "TRIGGER"):
                    query = "SELECT has_table_privilege(%(role)s, %(name)s, %(privilege)s)"
                    if privilege not in {"DELETE", "TRUNCATE", "TRIGGER"}:
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
        "SELECT setval('inbox_seq_seq', 1)",
        "SELECT id FROM order_lock FOR UPDATE",
        "CREATE TABLE mine (a int)",
        "ALTER TABLE inbox DISABLE TRIGGER ALL",
    ),
    "relay": (
        "ALTER TABLE inbox DISABLE TRIGGER ALL",
        "DROP VIEW stuck",
        "CREATE TABLE mine (a int)",
        "SET session_replication_role = replica",
        "SELECT setval('inbox_seq_seq', 1)",
    ),
}
"""Rights beyond those on tables: columns, sequences and what an owner may do."""


def test_a_stolen_receiver_reads_no_event_and_a_stolen_relay_undoes_no_guarantee(roles: Granted) -> None:
    allowed = [statement for role, each in BEYOND.items() for statement in each if roles.allows(role, statement)]
    assert allowed == []


def test_a_relay_makes_and_expires_leaves_that_belong_to_the_owner(roles: Granted, module_engine: Engine) -> None:
    with roles.connected("relay") as connection:
        assert connection.execute("SELECT inbox_payload_add_leaf(100001, 200001)").fetchone() == (True,)
    owners = rows(module_engine, "SELECT DISTINCT tableowner AS name FROM pg_tables WHERE tablename LIKE 'inbox%'")
    assert len(owners) == 1
    with roles.connected("relay") as connection:
        assert connection.execute("SELECT result FROM inbox_payload_expire_leaf('inbox_payload_1', now())").fetchone()
    for role in ("receiver", "operator", "reader"):
        assert not roles.allows(role, "SELECT inbox_payload_expire_leaf('inbox_payload_1', now())")
        assert not roles.allows(role, "SELECT inbox_payload_add_leaf(900000001, 900100001)")
    assert not roles.allows("relay", "TRUNCATE inbox_payload_1")
    assert not roles.allows("relay", "SELECT * FROM inbox_payload_1")
    assert not roles.allows("reader_without_payloads", "SELECT * FROM inbox_payload_1")


def test_a_new_leaf_gives_nobody_what_the_defaults_of_the_owner_would(roles: Granted, module_engine: Engine) -> None:
    others = f"{roles.name('receiver')}, {roles.name('reader_without_payloads')}, PUBLIC"
    of_owner = "ALTER DEFAULT PRIVILEGES"
    with contextlib.closing(connect_postgres(roles.server_url)) as admin:
        admin.execute(f"{of_owner} GRANT ALL ON TABLES TO {others}".encode())
        with roles.connected("relay") as connection:
            assert connection.execute("SELECT inbox_payload_add_leaf(200001, 300001)").fetchone() == (True,)
        admin.execute(f"{of_owner} REVOKE ALL ON TABLES FROM {others}".encode())
    assert not roles.allows("receiver", "SELECT body FROM inbox_payload_200001")
    assert not roles.allows("reader_without_payloads", "SELECT body FROM inbox_payload_200001")
    assert rows(module_engine, "SELECT 1 FROM pg_tables WHERE tablename = 'inbox_payload_200001'")


def test_a_right_that_somebody_gave_by_hand_goes(roles: Granted) -> None:
    receiver, reader = roles.name("receiver"), roles.name("reader_without_payloads")
    with contextlib.closing(connect_postgres(roles.server_url)) as admin:
        admin.execute(f"GRANT SELECT (event_type) ON inbox TO {receiver}".encode())
        admin.execute(f"GRANT SELECT ON inbox_payload TO {reader}".encode())
    assert roles.allows("receiver", "SELECT event_type FROM inbox")
    assert roles.allows("reader_without_payloads", "SELECT body FROM inbox_payload")
    roles.grant()
    assert not roles.allows("receiver", "SELECT event_type FROM inbox")
    assert not roles.allows("reader_without_payloads", "SELECT body FROM inbox_payload")


@pytest.mark.parametrize("role", ["reader"])
def test_a_reader_of_events_may_run_what_shows_their_bodies(
    roles: Granted, module_engine: Engine, module_database_url: str, role: Role
) -> None:
    if not rows(module_engine, "SELECT 1 FROM inbox"):
        Intake(module_database_url).append(an_event(1))
    with roles.connected(role) as connection:
        assert connection.execute("SELECT body FROM event").fetchone() == (an_event(1).body.decode(),)
    assert not roles.allows("reader_without_payloads", "SELECT body FROM event")
    assert roles.allows("reader_without_payloads", "SELECT seq, is_pruned FROM event")


def test_an_operator_asks_for_commands_and_changes_nothing_himself(roles: Granted) -> None:
    ask = "INSERT INTO relay_command (kind, selection, reason{0}) VALUES ('pause', '{{\"route\": \"r\"}}', 'a test'{1})"
    for forged in (("asked_by", "'somebody'"), ("state", "'done'"), ("answer", "'all is well'"), ("asked_at", "now()")):
        assert not roles.allows("operator", ask.format(*(f", {part}" for part in forged)))
    assert roles.allows("operator", ask.format("", ""))
    assert roles.allows("operator", "UPDATE relay_command SET state = 'cancelled' WHERE id = 1")
    for statement in (
        "UPDATE relay_command SET reason = 'x'",
        "DELETE FROM relay_command",
        "UPDATE gate SET paused_at = now()",
        "UPDATE open_delivery SET due_at = now()",
        "DELETE FROM open_delivery",
        "UPDATE rejected_request SET readmitted_at = now()",
    ):
        assert not roles.allows("operator", statement)
    assert roles.allows("operator", "SELECT * FROM stuck")


@pytest.mark.parametrize("role", ["reader", "reader_without_payloads"])
def test_a_reader_writes_nothing_even_when_it_may(roles: Granted, role: Role) -> None:
    for name in TABLES:
        assert not roles.allows(role, f"DELETE FROM {name}")
    assert not roles.allows(role, "CREATE TABLE mine (a int)")
    with roles.connected(role) as connection, pytest.raises(psycopg.errors.ReadOnlySqlTransaction):
        connection.execute("CREATE TEMP TABLE mine (a int)")


def test_without_payloads_every_column_can_be_read_but_a_sender_s_words(roles: Granted) -> None:
    columns = (
        "SELECT table_name || '.' || column_name FROM information_schema.columns WHERE table_schema = current_schema()"
    )
    with roles.connected("reader_without_payloads") as connection, roles.connected("reader") as other:
        readable = {name for (name,) in connection.execute(columns)}
        everything = {name for (name,) in other.execute(columns)}
    assert everything - readable == {
        "duplicate_request.body", "event.body", "event.headers", "inbox_payload.body", "inbox_payload.headers", "inbox_payload.seq",
        "rejected_request.body", "rejected_request.headers",
    }  # fmt: skip


def test_each_login_has_the_timeouts_of_its_group_and_finds_the_tables(roles: Granted) -> None:
    timeouts = {role: roles.settings(role) for role in ROLES}
    assert {role: each["statement_timeout"] for role, each in timeouts.items()} == {
        "receiver": "30s", "relay": "15min", "web": "30s", "operator": "5min", "reader": "5min", "reader_without_payloads": "5min",
    }  # fmt: skip
    assert {each["search_path"] for each in timeouts.values()} == {"public, pg_temp"}
    for role in ("reader", "reader_without_payloads"):
        assert timeouts[role]["default_transaction_read_only"] == "on"
    idle = {role: each.get("idle_in_transaction_session_timeout") for role, each in timeouts.items()}
    assert idle == {
        "receiver": None, "relay": None, "web": "10s", "operator": "10s", "reader": "1min", "reader_without_payloads": "1min",
    }  # fmt: skip


def test_a_transaction_that_the_owner_forgets_ends_after_a_minute(roles: Granted) -> None:
    with contextlib.closing(connect_postgres(roles.server_url)) as owner:
        assert owner.execute("SHOW idle_in_transaction_session_timeout").fetchone() == ("1min",)


@pytest.mark.parametrize("prefix", ["Inbox", "a-b", "9a", "pg_x", "x" * 41, 'x"'])
def test_a_prefix_that_makes_no_name_is_refused(prefix: str) -> None:
    with pytest.raises(ConfigError, match="--prefix"):
        roles_script("public", prefix)
