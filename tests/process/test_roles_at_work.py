"""A real receiver and a real relay, each as its role, in a schema of their own beside another application's tables."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import Engine, make_url, text
from sqlalchemy.exc import DBAPIError

from inbox.db import guarantees, migrate
from inbox.db.migrate import ROLES, Role
from inbox.db.schema import metadata
from inbox.errors import ConfigError
from tests.helpers import checkers
from tests.helpers.databases import Granted, PostgresServer, connect_postgres, grant_roles, open_engine
from tests.helpers.processes import RELAY, site
from tests.helpers.receiver import post_json
from tests.helpers.tables import open_states, read_inbox, rows
from tests.helpers.traffic import Sender, events, serving
from tests.helpers.waiting import until
from tests.helpers.webhooks import HEADERS, PATH, body, config_text

NAMES = [*metadata.tables, "alembic_version", "delivery", "dead_letter", "backlog", "stuck"]
EVENTS = 40
PATIENCE = 90
DEDUP = '"timestamp", "id", "entityType", "eventType"'
"""The preset's own."""
COMMANDS: tuple[tuple[Role, str], ...] = (
    ("relay", "relay verify"),
    ("relay", "relay rebuild"),
    ("relay", "relay pause --route everything --reason maintenance --yes"),
    ("relay", "relay resume --route everything --reason over --yes"),
    ("relay", "inbox rejected"),
    ("operator", "relay status"),
    ("operator", "relay dead"),
    ("reader", "inbox list"),
    ("reader", "inbox show 1"),
    ("reader", "relay plan --config {config}"),
    ("reader_without_payloads", "inbox list"),
)
"""Commands, and the role that each needs at the most."""


@contextlib.contextmanager
def crowded(server: PostgresServer) -> Iterator[str]:
    """The URL of a database in which another application has tables of all these names, which nothing may touch."""
    with server.database() as url, contextlib.closing(connect_postgres(url)) as theirs:
        for table in NAMES:
            theirs.execute(f"CREATE TABLE public.{table} (theirs text)".encode())
            theirs.execute(f"INSERT INTO public.{table} VALUES ('untouched')".encode())
        theirs.execute(b"CREATE FUNCTION public.inbox_is_not_truncated() RETURNS int LANGUAGE sql AS 'SELECT 1'")
        theirs.execute(b"CREATE SEQUENCE public.inbox_seq_seq START 7000")
        yield url
        for table in NAMES:
            assert theirs.execute(f"SELECT * FROM public.{table}".encode()).fetchall() == [("untouched",)]


@contextlib.contextmanager
def installed(url: str, schema: str) -> Iterator[Engine]:
    """An installation in this schema."""
    within = make_url(url).update_query_dict({"schema": schema}).render_as_string(hide_password=False)
    with open_engine(within) as engine:
        migrate.upgrade(engine)
        yield engine


@pytest.fixture(scope="module")
def apart(postgres_server: PostgresServer) -> Iterator[Granted]:
    """An installation in the schema `apart` of a crowded database, with all roles and a login for each."""
    with crowded(postgres_server) as url, installed(url, "apart"), grant_roles(url, f"w{os.getpid()}", "apart") as made:
        yield made


@pytest.fixture
def admin(apart: Granted) -> Iterator[Engine]:
    with open_engine(apart.admin_url) as made:
        yield made


# --- the schema


def test_two_installations_share_a_database_and_each_finds_its_own_tables(apart: Granted, admin: Engine) -> None:
    with installed(apart.server_url, "second") as second:
        with second.begin() as connection:
            connection.execute(text("INSERT INTO gate (kind, name) VALUES ('route', 'r')"))
        assert [len(rows(engine, "SELECT * FROM gate")) for engine in (admin, second)] == [0, 1]
        with pytest.raises(DBAPIError, match="append-only"), second.begin() as connection:
            connection.execute(text("TRUNCATE inbox"))
    functions = rows(admin, "SELECT proconfig::text AS paths FROM pg_proc WHERE pronamespace = 'apart'::regnamespace")
    assert {"search_path=apart, pg_temp" in row["paths"] for row in functions} == {True}


def test_a_table_of_another_name_space_is_never_reached_instead(admin: Engine) -> None:
    with admin.connect() as connection:
        connection.execute(text("CREATE TEMP TABLE gate (theirs text)"))
        connection.execute(text("INSERT INTO gate (kind, name) VALUES ('route', 'temporary')"))
        connection.execute(text("SET LOCAL search_path = public"))
        (line,) = guarantees.differences(connection)
        connection.rollback()
    assert line.startswith("the database has search_path = public (set by: session), not apart, pg_temp: ")


def test_another_application_in_the_schema_or_a_missing_right_is_told_with_the_remedy(
    postgres_database_url: str,
) -> None:
    role = f"plain{os.getpid()}"
    with contextlib.closing(connect_postgres(postgres_database_url)) as owner:
        owner.execute(f"CREATE ROLE {role} LOGIN".encode())
        try:
            url = make_url(postgres_database_url).set(username=role).render_as_string(hide_password=False)
            with (
                pytest.raises(ConfigError, match="CREATE SCHEMA apart AUTHORIZATION") as refused,
                installed(url, "apart"),
            ):
                pass
            owner.execute(str(refused.value).partition("of the database: ")[2].encode())
            with installed(url, "apart") as engine:
                assert rows(engine, "SELECT * FROM gate") == []
        finally:
            owner.execute(f"DROP OWNED BY {role}".encode())
            owner.execute(f"DROP ROLE {role}".encode())
        owner.execute(b"UPDATE alembic_version SET version_num = '3fa9c0'")
        theirs = r"revision 3fa9c0, so it is another application's: .* \[database\] schema"
        with pytest.raises(ConfigError, match=theirs), installed(postgres_database_url, "public"):
            pass


# --- the roles


def test_each_side_lacks_no_right_that_its_work_needs(apart: Granted, admin: Engine, tmp_path: Path) -> None:
    with (
        serving(tmp_path / "arrivals.jsonl") as downstream,
        site(tmp_path, config_text(apart.url("receiver"), downstream.url)) as place,
    ):
        receiver, port = place.receiver(workers=1)
        relay = place.start("relay", *RELAY, "run", INBOX_DATABASE_URL=apart.url("relay"))
        with Sender(tmp_path / "sends.jsonl", port, [*events(EVENTS), *events(5)], connections=4) as sender:
            until(lambda: sender.is_done, "all is acknowledged", within=PATIENCE)
        assert post_json(port, PATH, b"{", HEADERS) == 400
        assert post_json(port, PATH, body(), {**HEADERS, "Prefer": "wait=20"}) == 200
        until(
            lambda: not open_states(admin) and rows(admin, "SELECT 1 FROM throughput_minute WHERE kind = 'source'"),
            "all is delivered, and the figures are written",
            within=PATIENCE,
        )
        until(lambda: rows(admin, "SELECT 1 FROM rejected_request"), "the rejected request is kept", within=PATIENCE)
        other = tmp_path / "other.toml"  # it reads each request again, with its payload
        preset = 'preset = "trivore"\n'
        other.write_text((tmp_path / "inbox.toml").read_text().replace(preset, f"{preset}dedup = [{DEDUP}]\n"))
        for role, command in COMMANDS:
            ended = place.invoke(*command.format(config=other).split(), INBOX_DATABASE_URL=apart.url(role))
            assert ended.status == 0, (role, command, ended)
        assert (relay.stop(), receiver.stop()) == (0, 0)
        logs = place.logs()
    assert checkers.find_complaints(logs, ("Traceback", "CRITICAL", "ERROR", "permission denied", "not written")) == []
    assert len(read_inbox(admin)) == EVENTS + 1


def test_a_migrator_that_is_no_superuser_makes_roles_too(apart: Granted, tmp_path: Path) -> None:
    """As on a managed server: a role that may make roles, and owns its database."""
    prefix, name = f"managed{os.getpid()}", f"inbox_relay_managed_{os.getpid()}"
    with contextlib.closing(connect_postgres(apart.server_url)) as root:
        root.execute(f"CREATE ROLE {prefix} LOGIN CREATEROLE".encode())
        root.execute(f"CREATE DATABASE {name} OWNER {prefix}".encode())
        try:
            url = make_url(apart.server_url).set(username=prefix, database=name).render_as_string(hide_password=False)
            with site(tmp_path, config_text(url).replace("[database]", '[database]\nschema = "apart"')) as place:
                assert place.invoke("inbox", "migrate").status == 0
                printed = place.invoke("inbox", "roles", "--prefix", prefix)
                assert printed.status == 0, printed.stderr
            with contextlib.closing(connect_postgres(url)) as psql:
                for _ in range(2):
                    psql.execute(printed.stdout.encode())
                may = "SELECT has_column_privilege(%s, 'apart.inbox', 'seq', 'SELECT')"
                assert psql.execute(may.encode(), (f"{prefix}_receiver",)).fetchone() == (True,)
        finally:
            root.execute(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)".encode())
            for role in (*(f"{prefix}_{each}" for each in ROLES), prefix):
                root.execute(f"DROP ROLE IF EXISTS {role}".encode())
