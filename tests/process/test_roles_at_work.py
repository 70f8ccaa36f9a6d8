"""A real receiver and a real relay, each as its role, in a schema of their own: they lack nothing that they need."""

from __future__ import annotations

import contextlib
import http.client
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import Engine, make_url

from inbox.db.migrate import ROLES, Role
from tests.helpers import checkers
from tests.helpers.databases import Granted, PostgresServer, connect_postgres, granted, migrated, opened
from tests.helpers.processes import GUNICORN, RELAY, free_port, is_ready, site
from tests.helpers.tables import open_states, rows, stored
from tests.helpers.traffic import Sender, events, serving
from tests.helpers.waiting import until
from tests.helpers.webhooks import HEADERS, PATH, body, config_text
from tests.process.test_own_schema import crowd, untouched

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


@pytest.fixture(scope="module")
def apart(postgres_server: PostgresServer) -> Iterator[Granted]:
    """An installation in the schema `apart`, beside another application's tables, with all roles and a login for each."""
    with postgres_server.database() as url:
        crowd(url)
        migrated(make_url(url).update_query_dict({"schema": "apart"}).render_as_string(hide_password=False))
        with granted(url, f"w{os.getpid()}", "apart") as made:
            yield made
        assert untouched(url)


@pytest.fixture
def admin(apart: Granted) -> Iterator[Engine]:
    with opened(apart.admin_url) as made:
        yield made


def post(port: int, payload: bytes, **headers: str) -> int:
    """Send one webhook; the status of its answer."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    with contextlib.closing(connection):
        connection.request("POST", PATH, payload, {**HEADERS, **headers})
        return connection.getresponse().status


def test_each_side_lacks_no_right_that_its_work_needs(apart: Granted, admin: Engine, tmp_path: Path) -> None:
    with (
        serving(tmp_path / "arrivals.jsonl") as downstream,
        site(tmp_path, config_text(apart.url("reader"), downstream.url)) as place,
    ):
        port = free_port()
        receiver = place.start(
            "receiver",
            *GUNICORN,
            "--bind",
            f"127.0.0.1:{port}",
            "--workers",
            "1",
            INBOX_DATABASE_URL=apart.url("receiver"),
        )
        until(lambda: not receiver.runs or is_ready(port), "the receiver can write", within=PATIENCE)
        assert receiver.runs, receiver.output
        relay = place.start("relay", *RELAY, "run", INBOX_DATABASE_URL=apart.url("relay"))
        sender = Sender(tmp_path / "sends.jsonl", port, [*events(EVENTS), *events(5)], connections=4)
        try:
            until(lambda: sender.is_done, "all is acknowledged", within=PATIENCE)
        finally:
            sender.stop()
        assert post(port, b"{") == 400
        assert post(port, body(), Prefer="wait=20") == 200
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
            side, *arguments = command.format(config=other).split()
            ended = place.invoke(side, *arguments, INBOX_DATABASE_URL=apart.url(role))
            assert "permission denied" not in ended.stdout + ended.stderr, (role, command, ended)
            assert ended.status == 0, (role, command, ended)
        assert relay.stop() == 0
        assert receiver.stop() == 0
        logs = place.logs()
    assert checkers.complaints(logs, ("Traceback", "CRITICAL", "ERROR", "permission denied", "not written")) == []
    assert len(stored(admin)) == EVENTS + 1


def test_a_receiver_with_another_role_answers_503_and_says_why(apart: Granted, tmp_path: Path) -> None:
    with site(tmp_path, config_text(apart.url("operator"))) as place:
        port = free_port()
        program = place.start("receiver", *GUNICORN, "--bind", f"127.0.0.1:{port}", "--workers", "1")
        until(
            lambda: not program.runs or is_ready(port) or "permission denied" in program.output,
            "it says that it may not write",
            within=PATIENCE,
        )
        assert post(port, body()) == 503
        assert not is_ready(port)


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
            for role in ROLES:
                root.execute(f"DROP ROLE IF EXISTS {prefix}_{role}".encode())
            root.execute(f"DROP ROLE {prefix}".encode())
