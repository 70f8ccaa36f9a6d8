"""Each role may do what its program needs, on each table, view, sequence and function; PUBLIC may do nothing."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping

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
"""Rights beyond those on tables: columns, leaves, and what an owner may do."""
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
    with roles.connected("relay") as connection:
        assert connection.execute(ADD_LEAF.format(1, 2).encode()).fetchone() == (True,)
        assert connection.execute(expire.encode()).fetchone()
    owners = rows(module_engine, "SELECT DISTINCT tableowner AS name FROM pg_tables WHERE tablename LIKE 'inbox%'")
    assert len(owners) == 1
    for role in ("receiver", "operator", "reader"):
        assert not roles.allows(role, expire)
        assert not roles.allows(role, ADD_LEAF.format(9, 10))


def test_a_new_leaf_gives_nobody_what_the_defaults_of_the_owner_would(roles: Granted, module_engine: Engine) -> None:
    others = f"{roles.name('receiver')}, {roles.name('reader_without_payloads')}, PUBLIC"
    with contextlib.closing(connect_postgres(roles.server_url)) as admin:
        admin.execute(f"ALTER DEFAULT PRIVILEGES GRANT ALL ON TABLES TO {others}".encode())
        with roles.connected("relay") as connection:
            assert connection.execute(ADD_LEAF.format(2, 3).encode()).fetchone() == (True,)
        admin.execute(f"ALTER DEFAULT PRIVILEGES REVOKE ALL ON TABLES FROM {others}".encode())
    for role in ("receiver", "reader_without_payloads"):
        assert not roles.allows(role, "SELECT body FROM inbox_payload_200001")
    assert rows(module_engine, "SELECT 1 FROM pg_tables WHERE tablename = 'inbox_payload_200001'")


def test_a_right_that_somebody_gave_by_hand_goes(roles: Granted) -> None:
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
    with roles.connected("reader") as connection:
        assert connection.execute("SELECT body FROM event").fetchone() == (an_event(1).body.decode(),)
    assert not roles.allows("reader_without_payloads", "SELECT body FROM event")
    assert roles.allows("reader_without_payloads", "SELECT seq, is_pruned FROM event")


def test_an_operator_asks_for_commands_in_his_own_name(roles: Granted) -> None:
    ask = "INSERT INTO relay_command (kind, selection, reason{0}) VALUES ('pause', '{{\"route\": \"r\"}}', 'a test'{1})"
    for forged in (("asked_by", "'somebody'"), ("state", "'done'"), ("answer", "'all is well'"), ("asked_at", "now()")):
        assert not roles.allows("operator", ask.format(*(f", {part}" for part in forged)))
    assert roles.allows("operator", ask.format("", ""))
    assert roles.allows("operator", "UPDATE relay_command SET state = 'cancelled' WHERE id = 1")
    assert roles.allows("operator", "SELECT * FROM stuck")


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
