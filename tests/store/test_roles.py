"""Each role may do what its program needs, on each table, view, sequence and function; PUBLIC may do nothing."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

import psycopg
import pytest
from sqlalchemy import Engine

from inbox.db import engine as engines
from inbox.db import grants
from inbox.db.roles import FUNCTIONS, PAYLOAD_COLUMNS, ROLES, SEQUENCES, SETTINGS, TABLES, VIEWS, Role
from inbox.db.schema import metadata
from inbox.errors import ConfigError
from tests.helpers.outage import connect_postgres
from tests.helpers.patience import stand_still
from tests.helpers.reading import rows
from tests.helpers.roles import Granted, granted
from tests.helpers.storing import Intake, an_event

READERS: tuple[Role, ...] = ("operator", "reader", "reader_without_payloads")
THINGS = """
SELECT c.relname AS name, c.relkind::text AS kind FROM pg_class c
WHERE c.relnamespace = current_schema()::regnamespace AND c.relkind IN ('r', 'p', 'v', 'm', 'S') AND NOT c.relispartition
UNION ALL
SELECT proname, 'function' FROM pg_proc WHERE pronamespace = current_schema()::regnamespace
"""


@pytest.fixture(scope="module")
def roles(module_database_url: str) -> Iterator[Granted]:
    with granted(module_database_url, f"t{os.getpid()}") as made:
        yield made


def test_every_table_view_sequence_and_function_has_its_line_and_no_other(module_engine: Engine) -> None:
    found = rows(module_engine, THINGS)

    def named(*kinds: str) -> set[str]:
        return {row["name"] for row in found if row["kind"] in kinds}

    assert named("r", "p") == TABLES.keys()
    assert named("v", "m") == VIEWS.keys()
    assert named("S") == SEQUENCES.keys()
    assert named("function") == FUNCTIONS.keys()


def test_public_may_do_nothing(roles: Granted, module_engine: Engine) -> None:
    """The owner of a thing has the rights in its list, so a list that is missing is PUBLIC's default."""
    given = rows(
        module_engine,
        """
SELECT c.relname AS name FROM pg_class c, aclexplode(c.relacl) a
WHERE c.relnamespace = current_schema()::regnamespace AND a.grantee = 0
UNION ALL
SELECT p.proname FROM pg_proc p, aclexplode(coalesce(p.proacl, acldefault('f', p.proowner))) a
WHERE p.pronamespace = current_schema()::regnamespace AND a.grantee = 0
""",
    )
    assert given == []
    assert roles.prefix


def test_a_role_may_do_nothing_that_its_line_lacks(roles: Granted) -> None:
    """Asked of the database itself: for each role and table, each privilege on it or on one of its columns."""
    with contextlib.closing(connect_postgres(roles.server_url)) as admin:
        for role in ROLES[1:]:
            for name, line in {**TABLES, **VIEWS}.items():
                for privilege in ("SELECT", "INSERT", "UPDATE", "DELETE", "TRUNCATE", "REFERENCES", "TRIGGER"):
                    query = "SELECT has_table_privilege(%(role)s, %(name)s, %(privilege)s)"
                    if privilege not in {"DELETE", "TRUNCATE", "TRIGGER"}:
                        query += " OR has_any_column_privilege(%(role)s, %(name)s, %(privilege)s)"
                    asked = {"role": roles.login(role), "name": name, "privilege": privilege}
                    may = admin.execute(query.encode(), asked).fetchone()
                    assert may == (privilege in line.get(role, ""),), (role, name, privilege)


def test_the_owner_owns_all_so_that_a_member_migrates(roles: Granted) -> None:
    assert roles.allows("owner", "ALTER TABLE inbox ADD COLUMN later text")
    assert roles.allows("owner", "CREATE OR REPLACE VIEW backlog_too AS SELECT 1")
    assert roles.allows("owner", "DROP FUNCTION inbox_is_append_only() CASCADE")


@pytest.mark.parametrize(
    "statement",
    [
        "SELECT * FROM inbox",
        "SELECT event_type FROM inbox",
        "SELECT entity_id FROM inbox",
        "DELETE FROM inbox",
        "UPDATE inbox SET source = 'x'",
        "TRUNCATE inbox",
        "SELECT * FROM rejected_request",
        "SELECT body FROM duplicate_request",
        "SELECT * FROM delivery_log",
        "SELECT detail FROM delivery_log",
        "SELECT entity_id FROM dead_letter",
        "SELECT * FROM gate",
        "SELECT * FROM stuck",
        "UPDATE open_delivery SET state = 'dead'",
        "INSERT INTO open_delivery (seq, route, lane, occurred_at, state, run) VALUES (1, 'r', 'l', now(), 'received', 9)",
        "INSERT INTO relay_command (kind, selection, reason) VALUES ('replay', '{}', 'r')",
        "INSERT INTO delivery_log (at, seq, route, kind, attempt, detail) VALUES (now(), 1, 'r', 'delivered', 1, '{}')",
        "SELECT setval('inbox_seq_seq', 1)",
        "SELECT id FROM order_lock FOR UPDATE",
        "CREATE TABLE mine (a int)",
        "ALTER TABLE inbox DISABLE TRIGGER ALL",
        "SELECT inbox_is_append_only()",
    ],
)
def test_a_stolen_receiver_reads_no_event_and_changes_none(roles: Granted, statement: str) -> None:
    assert not roles.allows("receiver", statement)


@pytest.mark.parametrize(
    "statement",
    [
        "TRUNCATE inbox",
        "ALTER TABLE inbox DISABLE TRIGGER ALL",
        "DROP VIEW stuck",
        "CREATE TABLE mine (a int)",
        "SET ROLE {owner}",
        "SET session_replication_role = replica",
        "DELETE FROM order_lock",
        "UPDATE alembic_version SET version_num = '0002'",
        "SELECT setval('inbox_seq_seq', 1)",
    ],
)
def test_a_stolen_relay_can_not_undo_what_the_guarantees_rest_on(roles: Granted, statement: str) -> None:
    assert not roles.allows("relay", statement.format(owner=roles.name("owner")))


def test_a_relay_makes_and_expires_leaves_that_belong_to_the_owner(roles: Granted, module_engine: Engine) -> None:
    with roles.connected("relay") as connection:
        assert connection.execute("SELECT inbox_payload_add_leaf(100001, 200001)").fetchone() == (True,)
    owners = rows(
        module_engine, "SELECT DISTINCT tableowner AS name FROM pg_tables WHERE tablename LIKE 'inbox_payload%'"
    )
    assert [row["name"] for row in owners] == [roles.name("owner")]
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
    of_owner = f"ALTER DEFAULT PRIVILEGES FOR ROLE {roles.name('owner')}"
    with contextlib.closing(connect_postgres(roles.server_url)) as admin:
        admin.execute(f"{of_owner} GRANT ALL ON TABLES TO {others}".encode())
        with roles.connected("relay") as connection:
            assert connection.execute("SELECT inbox_payload_add_leaf(200001, 300001)").fetchone() == (True,)
        admin.execute(f"{of_owner} REVOKE ALL ON TABLES FROM {others}".encode())
    assert not roles.allows("receiver", "SELECT body FROM inbox_payload_200001")
    assert not roles.allows("reader_without_payloads", "SELECT body FROM inbox_payload_200001")
    given = "SELECT DISTINCT a.grantee::regrole::text AS name FROM pg_class c, aclexplode(c.relacl) a WHERE c.relname = '{}'"
    assert rows(module_engine, given.format("inbox_payload_200001")) == [{"name": roles.name("owner")}]
    assert roles.allows("owner", "SELECT body FROM inbox_payload_200001")


@pytest.mark.parametrize("role", ["operator", "reader", "relay"])
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


def test_who_asked_is_the_role_that_asked(roles: Granted) -> None:
    with roles.connected("operator") as connection:
        connection.execute(
            "INSERT INTO relay_command (kind, selection, reason) VALUES ('pause', '{\"route\": \"r\"}', 'a test')"
        )
        row = connection.execute("SELECT asked_by FROM relay_command ORDER BY id DESC LIMIT 1").fetchone()
    assert row == (roles.login("operator"),)


@pytest.mark.parametrize("role", READERS)
def test_a_reader_reads_each_table_and_view(roles: Granted, role: Role) -> None:
    for name, line in {**TABLES, **VIEWS}.items():
        if role not in line:
            continue
        columns = line[role].partition("(")[2].partition(")")[0] or "*"
        assert roles.allows(role, f"SELECT {columns} FROM {name} LIMIT 1"), (role, name)


@pytest.mark.parametrize("role", ["reader", "reader_without_payloads"])
def test_a_reader_writes_nothing_even_when_it_may(roles: Granted, role: Role) -> None:
    for name in TABLES:
        assert not roles.allows(role, f"DELETE FROM {name}")
    assert not roles.allows(role, "CREATE TABLE mine (a int)")
    with roles.connected(role) as connection, pytest.raises(psycopg.errors.ReadOnlySqlTransaction):
        connection.execute("CREATE TEMP TABLE mine (a int)")


def test_without_payloads_no_column_of_a_sender_s_words_can_be_read(roles: Granted) -> None:
    with roles.connected("reader_without_payloads") as connection:
        readable = connection.execute(
            "SELECT table_name || '.' || column_name FROM information_schema.column_privileges"
            " WHERE privilege_type = 'SELECT' AND table_schema = current_schema()"
        ).fetchall()
    names = {name for (name,) in readable}
    assert "rejected_request.reason" in names
    assert {name for name in names if name.rpartition(".")[2] in PAYLOAD_COLUMNS} == set()
    for table in metadata.tables.values():
        for column in table.columns:
            if column.type.python_type is bytes and f"{table.name}.{column.name}" in names:
                assert column.name.endswith(("sha256", "hash", "config")), f"{table.name}.{column.name}"


def test_each_login_has_the_timeouts_of_its_group_and_finds_the_tables(roles: Granted) -> None:
    for role in ROLES:
        set_ = roles.settings(role)
        with roles.connected(role) as connection:
            for name, setting in SETTINGS[role].items():
                if connection.info.server_version // 10000 < setting.since:
                    continue
                assert set_[name] == setting.value, (role, name)
        assert set_["search_path"] == "public, pg_temp"


def test_a_second_time_changes_no_owner_and_leaves_the_same_rights(roles: Granted, module_engine: Engine) -> None:
    rights = (
        "SELECT relname, coalesce(relacl, acldefault('r', relowner))::text AS rights, relowner"
        " FROM pg_class WHERE relnamespace = 'public'::regnamespace ORDER BY 1"
    )
    before = rows(module_engine, rights)
    assert [line for line in roles.grant() if "OWNER TO" in line or line.startswith("CREATE")] == []
    assert rows(module_engine, rights) == before


def test_a_right_that_somebody_gave_by_hand_goes(roles: Granted) -> None:
    with contextlib.closing(connect_postgres(roles.server_url)) as admin:
        admin.execute(f"GRANT DELETE ON inbox TO {roles.name('receiver')}, PUBLIC".encode())
        admin.execute(f"GRANT SELECT (event_type) ON inbox TO {roles.name('receiver')}".encode())
    assert roles.allows("receiver", "SELECT event_type FROM inbox")
    roles.grant()
    assert not roles.allows("receiver", "SELECT event_type FROM inbox")
    assert not roles.allows("receiver", "DELETE FROM inbox")


def test_rights_on_all_tables_leave_none_on_the_leaves_of_payloads(roles: Granted) -> None:
    body = "SELECT body FROM inbox_payload_1"
    with contextlib.closing(connect_postgres(roles.server_url)) as admin:
        admin.execute(
            f"GRANT SELECT ON ALL TABLES IN SCHEMA public TO {roles.name('reader_without_payloads')}, PUBLIC".encode()
        )
    assert roles.allows("reader_without_payloads", body)
    roles.grant()
    assert not roles.allows("reader_without_payloads", body)
    assert not roles.allows("receiver", "SELECT body FROM inbox_payload_default")


def test_a_locked_table_is_named_and_the_rest_comes_with_the_next_run(
    module_engine: Engine, module_database_url: str
) -> None:
    prefix = f"l{os.getpid()}"
    with module_engine.connect() as holder:
        stand_still(holder)
        holder.exec_driver_sql("LOCK TABLE gate IN ACCESS SHARE MODE")
        with (
            pytest.raises(ConfigError, match=r"ALTER TABLE gate OWNER TO .* waits for a lock"),
            granted(module_database_url, prefix),
        ):
            raise AssertionError
    with granted(module_database_url, prefix) as made:
        assert made.allows("receiver", "SELECT seq FROM inbox")


@pytest.mark.parametrize("prefix", ["Inbox", "a-b", "9a", "pg_x", "x" * 41, 'x"'])
def test_a_prefix_that_makes_no_name_is_refused(prefix: str) -> None:
    with pytest.raises(ConfigError, match="--prefix"):
        grants.names("public", prefix)


def test_on_sqlite_it_says_what_protects_a_file(sqlite_database_url: str) -> None:
    engine = engines.connect(sqlite_database_url, application="tests")
    with pytest.raises(ConfigError, match="a SQLite file has no roles"):
        grants.grant(engine)
    engine.dispose()
