"""Unfit and missing databases, a password in a file, and a schema with roles beside another application's tables."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import Engine, make_url, text
from sqlalchemy.exc import DBAPIError

from inbox.db import guarantees, migrate
from inbox.db.migrate import ROLES, Role
from inbox.db.schema import metadata
from inbox.errors import ConfigError
from tests.docs.pages import ROOT
from tests.helpers import checkers
from tests.helpers.databases import Granted, PostgresServer, connect_postgres, gone, grant_roles, open_engine
from tests.helpers.killable_postgres import KillablePostgres, killable
from tests.helpers.machine import ROOM
from tests.helpers.planted import Planted
from tests.helpers.processes import RELAY, Site, site
from tests.helpers.receiver import post_json
from tests.helpers.relaying import fill
from tests.helpers.tables import open_states, read_inbox, rows
from tests.helpers.traffic import Sender, events, serving
from tests.helpers.waiting import until
from tests.helpers.webhooks import HEADERS, PATH, body, config_text, moment


def test_neither_side_starts_on_a_sequence_behind_its_table_and_both_name_the_fix(
    postgres_database_url: str, postgres_place: Site
) -> None:
    fill(postgres_database_url, [("u1", moment(1)), ("u2", moment(2))])
    fix = "SELECT setval('public.inbox_seq_seq', 2)"
    with contextlib.closing(connect_postgres(postgres_database_url)) as owner:
        owner.execute("SELECT setval('inbox_seq_seq', 1)")
        receiver, relay = postgres_place.start_refused_receiver(), postgres_place.relay("--processes", "2")
        listing = postgres_place.invoke("inbox", "list", "--json")
        assert (listing.status, len(json.loads(listing.stdout))) == (0, 2)
        for program in (receiver, relay):
            assert program.ends() == 2, program.output
            assert fix in " ".join(program.output.split())
            assert "Traceback" not in program.output

        owner.execute(fix.encode())
        assert postgres_place.relay("--drain").ends() == 0


def test_a_relay_that_starts_before_its_database_waits_for_it(postgres_database_url: str, postgres_place: Site) -> None:
    """After a power cut, both start at once. A drain ends with status 2 instead, as its caller waits for it."""
    with gone(postgres_database_url):
        waiting, parent = postgres_place.relay(), postgres_place.relay("--processes", "2")
        for program in (waiting, parent):
            program.writes("database trouble while starting, trying again", times=2)
        drain = postgres_place.relay("--drain")
        assert drain.ends() == 2, "the caller learns the reason"
        for program in (waiting, parent):
            program.send(signal.SIGHUP)
            tried = program.output.count("trying again")
            program.writes("trying again", times=tried + 1)
        assert waiting.stop() == 0
    for word in ("started node", "reloaded node"):
        parent.writes(word, times=2)
    assert parent.stop() == 0


def test_a_command_that_meets_a_lock_says_that_it_stays_open_and_what_to_do(
    postgres_database_url: str, postgres_place: Site
) -> None:
    """After a plain error, an operator would repeat the command while a relay carries out the first one."""
    fill(postgres_database_url, [("u1", moment(1))])
    with contextlib.closing(connect_postgres(postgres_database_url)) as person:
        person.execute("BEGIN")
        person.execute("SELECT id FROM order_lock FOR UPDATE")
        ended = postgres_place.invoke("relay", "cancel", "--seq", "1", "--reason", "x", "--yes")
        person.execute("ROLLBACK")
        assert ended.status == 2
        said = " ".join(ended.stderr.split())
        assert "command 1 stays open, and a relay executes it" in said
        assert "another session holds a lock: try again" in said
        assert "stop it with `relay stop --command 1`" in said
        assert postgres_place.invoke("relay", "stop", "--command", "1", "--reason", "x", "--yes").status == 0
        row = person.execute("SELECT state FROM relay_command WHERE id = 1").fetchone()
        assert row == ("cancelled",)


# --- The database's password stands in a file: every program finds it there, and none of them shows it


SECRET = Planted()
PASSWORD = SECRET.odd("database-password")


@pytest.fixture(scope="module")
def server() -> Iterator[KillablePostgres]:
    """A server that admits `inbox` only with its password."""
    with tempfile.TemporaryDirectory(prefix="inbox-relay-password-", dir=ROOM) as name:
        folder = Path(name)
        folder.chmod(0o755)
        with killable(folder) as made:
            made.run(f"CREATE ROLE inbox LOGIN PASSWORD '{PASSWORD}'")
            made.run("CREATE DATABASE inbox OWNER inbox")
            rules = "local all postgres trust\nlocal all inbox scram-sha-256\n"
            (folder / "data" / "pg_hba.conf").write_text(rules, encoding="utf-8")
            made.run("SELECT pg_reload_conf()")
            yield made


@pytest.fixture
def guarded_place(server: KillablePostgres, tmp_path: Path) -> Iterator[Site]:
    (tmp_path / "password").write_text(f"{PASSWORD}\n", encoding="utf-8")
    url = f"postgresql+psycopg://inbox@/inbox?host={server.sockets}"
    config = config_text(url).replace(f'"{url}"\n', f'"{url}"\npassword = "file:{tmp_path}/password"\n')
    with site(tmp_path, config) as made:
        yield made


def output_of(place: Site, statuses: set[int], *command: str) -> str:
    """Run a command that ends with one of these statuses and return its output."""
    ended = place.invoke(*command)
    assert ended.status in statuses, ended.stderr
    assert SECRET.leaks({"stdout": ended.stdout, "stderr": ended.stderr}) == []
    return ended.stdout + ended.stderr


def test_every_program_uses_the_password_of_the_file_without_showing_it(guarded_place: Site) -> None:
    for command in (("inbox", "migrate"), ("inbox", "check", "--online"), ("relay", "status")):
        assert "password authentication" not in output_of(
            guarded_place, {0, 1}, *command
        )  # 1: no relay runs yet; and warnings
    alembic = subprocess.run(
        [sys.executable, "-m", "alembic", "current"],
        cwd=ROOT,
        env=os.environ | guarded_place.environment,
        capture_output=True,
        text=True,
        check=True,
    )
    assert alembic.stdout.startswith("0001")
    receiver, _ = guarded_place.receiver(1)
    relay = guarded_place.relay("--processes", "2", "--verbose")
    relay.writes("started", times=2)
    pids = [pid for program in (receiver, relay) for pid in (program.pid, *program.children())]
    shown = {f"ps {pid}": Path(f"/proc/{pid}/cmdline").read_text(encoding="utf-8") for pid in pids}
    until(lambda: guarded_place.invoke("relay", "status", "--check").status == 0, "the relays are well", within=60)
    assert (receiver.stop(), relay.stop()) == (0, 0)
    assert SECRET.leaks({"alembic": alembic.stdout + alembic.stderr} | shown | guarded_place.logs()) == []
    assert SECRET.leaks({"the file": (guarded_place.folder / "password").read_text(encoding="utf-8")}) != []


def test_a_wrong_password_is_told_without_it(guarded_place: Site) -> None:
    (guarded_place.folder / "password").write_text(SECRET.plain("wrong-password"), encoding="utf-8")
    for command in (("inbox", "check", "--online"), ("relay", "run", "--drain")):
        assert 'password authentication failed for user "inbox"' in output_of(guarded_place, {2}, *command)


# --- A receiver and a relay, each as its role, in a schema of their own beside another application's tables


NAMES = [*metadata.tables, "alembic_version", "delivery", "dead_letter", "backlog", "stuck"]
EVENTS = 40
PATIENCE = 90
DEDUP = '"timestamp", "id", "entityType", "eventType"'
"""The preset's own `dedup`."""
COMMANDS: tuple[tuple[Role, str], ...] = (
    ("relay", "relay verify"),
    ("relay", "relay rebuild --reason check --yes"),
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
"""Commands, each with the weakest role that may run it."""


@contextlib.contextmanager
def database_of_another(server: PostgresServer) -> Iterator[str]:
    """Create a database where another application has tables of the same names, which must stay untouched."""
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
def install(url: str, schema: str) -> Iterator[Engine]:
    """Migrate this schema and connect to it."""
    within = make_url(url).update_query_dict({"schema": schema}).render_as_string(hide_password=False)
    with open_engine(within) as engine:
        migrate.upgrade(engine)
        yield engine


@pytest.fixture(scope="module")
def apart(postgres_server: PostgresServer) -> Iterator[Granted]:
    """An installation in the schema `apart` beside another application, with all roles and a login for each."""
    with (
        database_of_another(postgres_server) as url,
        install(url, "apart"),
        grant_roles(url, f"w{os.getpid()}", "apart") as made,
    ):
        yield made


@pytest.fixture
def admin(apart: Granted) -> Iterator[Engine]:
    with open_engine(apart.admin_url) as made:
        yield made


# --- the schema


def test_two_installations_share_a_database_and_each_finds_its_own_tables(apart: Granted, admin: Engine) -> None:
    with install(apart.server_url, "second") as second:
        with second.begin() as connection:
            connection.execute(text("INSERT INTO gate (kind, name) VALUES ('route', 'r')"))
        assert [len(rows(engine, "SELECT * FROM gate")) for engine in (admin, second)] == [0, 1]
        with pytest.raises(DBAPIError, match="append-only"), second.begin() as connection:
            connection.execute(text("TRUNCATE inbox"))
    functions = rows(admin, "SELECT proconfig::text AS paths FROM pg_proc WHERE pronamespace = 'apart'::regnamespace")
    assert {"search_path=apart, pg_temp" in row["paths"] for row in functions} == {True}


def test_a_search_path_that_could_reach_another_table_is_reported(admin: Engine) -> None:
    with admin.connect() as connection:
        connection.execute(text("CREATE TEMP TABLE gate (theirs text)"))
        connection.execute(text("INSERT INTO gate (kind, name) VALUES ('route', 'temporary')"))
        connection.execute(text("SET LOCAL search_path = public"))
        (line,) = guarantees.list_differences(connection)
        connection.rollback()
    assert line.startswith("the database has search_path = public (set by: session), not apart, pg_temp: ")


def test_another_application_in_the_schema_or_a_missing_right_is_reported_with_the_fix(
    postgres_database_url: str,
) -> None:
    role = f"plain{os.getpid()}"
    with contextlib.closing(connect_postgres(postgres_database_url)) as owner:
        owner.execute(f"CREATE ROLE {role} LOGIN".encode())
        try:
            url = make_url(postgres_database_url).set(username=role).render_as_string(hide_password=False)
            with (
                pytest.raises(ConfigError, match="CREATE SCHEMA apart AUTHORIZATION") as refused,
                install(url, "apart"),
            ):
                pass
            owner.execute(str(refused.value).partition("of the database: ")[2].encode())
            with install(url, "apart") as engine:
                assert rows(engine, "SELECT * FROM gate") == []
        finally:
            owner.execute(f"DROP OWNED BY {role}".encode())
            owner.execute(f"DROP ROLE {role}".encode())
        owner.execute(b"UPDATE alembic_version SET version_num = '3fa9c0'")
        theirs = r"revision 3fa9c0, so it is another application's: .* \[database\] schema"
        with pytest.raises(ConfigError, match=theirs), install(postgres_database_url, "public"):
            pass


# --- the roles


def test_each_role_has_every_right_that_its_work_needs(apart: Granted, admin: Engine, tmp_path: Path) -> None:
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
        other = tmp_path / "other.toml"  # makes the plan read each request again, with its payload
        preset = 'preset = "trivore"\n'
        other.write_text((tmp_path / "inbox.toml").read_text().replace(preset, f"{preset}dedup = [{DEDUP}]\n"))
        for role, command in COMMANDS:
            ended = place.invoke(*command.format(config=other).split(), INBOX_DATABASE_URL=apart.url(role))
            assert ended.status == 0, (role, command, ended)
        assert (relay.stop(), receiver.stop()) == (0, 0)
        logs = place.logs()
    assert checkers.find_complaints(logs, ("Traceback", "CRITICAL", "ERROR", "permission denied", "not written")) == []
    assert len(read_inbox(admin)) == EVENTS + 1


def test_a_migrator_without_superuser_rights_creates_roles_too(apart: Granted, tmp_path: Path) -> None:
    """On a managed server, the migrator owns its database and has CREATEROLE."""
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
