"""The worked examples for contributors work in a copy of the checkout, and the pages for DBAs work on a server."""

from __future__ import annotations

import contextlib
import os
import platform
import shutil
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from tests.docs.pages import PAGES, ROOT, Block, Shell, apply, blocks, shell, the_block
from tests.helpers.databases import open_engine
from tests.helpers.killable_postgres import KillablePostgres, killable
from tests.helpers.machine import ROOM, program
from tests.helpers.relaying import give_up
from tests.helpers.scripted import answer, serving
from tests.helpers.tables import facts, read_inbox, rows
from tests.helpers.traffic import events
from tests.helpers.webhooks import config_text

pytestmark = pytest.mark.nightly

COPIED = (
    "deploy", "inbox", "relay", "migrations", "tests", "docs", "benchmarks", "pyproject.toml", "README.md", "CONTRIBUTING.md",
    "CHANGELOG.md",
)  # fmt: skip
EXAMPLES = (
    "docs/how-to/add-a-preset.md",
    "docs/how-to/add-a-destination-kind.md",
    "docs/how-to/add-a-column.md",
)
NOTES = """
[database]
url = "sqlite:///DATABASE"
[sources.trivore]
preset = "trivore"
auth = { kind = "none" }
[destinations.board]
kind = "note"
url = "URL"
allow_private = true
allow_http = true
outcomes = { server_error = "dead" }
[routes.notes]
source = "trivore"
destination = "board"
"""
RECEIVE = """
import asyncio
from inbox.loader.load import read_config
from tests.helpers.receiver import receiving
from tests.helpers.webhooks import body

async def receive():
    async with receiving(read_config()) as receiver:
        for entity in ("u1", "u2"):
            answer = await receiver.post(body(entity))
            assert answer.status_code == 200

asyncio.run(receive())
"""


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the checkout with all examples applied."""
    folder = tmp_path_factory.mktemp("checkout")
    for name in COPIED:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / name, folder)
    for page in EXAMPLES:
        apply(page, folder)
    return folder


def run(copy: Path, *arguments: str, **environment: str) -> None:
    done = subprocess.run(
        [sys.executable, *arguments], cwd=copy, env=os.environ | {"PYTHONPATH": str(copy)} | environment,
        check=False, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_tests_of_the_examples_pass_and_their_migrations_make_the_schema(copy: Path, postgres_url: str) -> None:
    names = (
        "sources/test_acme",
        "sources/test_contract",
        "destinations/test_note",
        "migrations/test_migrate",
    )
    paths = [f"tests/{name}.py" for name in names]
    chosen = "acme or note or alembic_check or metadata or comment or explain"  # the new parts of the contract and the migrations
    # A folder of its own: pytest would make the shared one private.
    options = ("-q", "-x", "-p", "no:cacheprovider", f"--basetemp={copy}/kept")
    run(copy, "-m", "pytest", *options, "-k", chosen, *paths, TEST_DATABASE_URL=postgres_url)


def test_a_relay_delivers_notes_follows_their_outcomes_and_writes_the_new_column(copy: Path, tmp_path: Path) -> None:
    config, database = tmp_path / "inbox.toml", tmp_path / "inbox.db"
    with serving(answer(204), answer(500)) as server:
        config.write_text(NOTES.replace("URL", server.url).replace("DATABASE", str(database)), encoding="utf-8")
        for command in ("from relay.cli.inbox import app; app(['migrate'])", RECEIVE):
            run(copy, "-c", command, INBOX_CONFIG=str(config))
        run(copy, "-m", "relay", "run", "--drain", INBOX_CONFIG=str(config))
        assert sorted(request.body for request in server.seen) == [b"UPDATE USER/u1", b"UPDATE USER/u2"]
    with closing(sqlite3.connect(database)) as connection:
        facts = connection.execute("SELECT kind FROM delivery_log ORDER BY kind").fetchall()
        assert facts == [("dead",), ("delivered",)]
        assert connection.execute("SELECT python FROM relay_node").fetchall() == [(platform.python_version(),)]


def test_the_examples_pass_ruff(copy: Path) -> None:
    run(
        copy, "-m", "ruff", "check", "--no-cache", "inbox", "relay", "migrations", "tests/sources", "tests/destinations"
    )
    run(copy, "-m", "ruff", "format", "--no-cache", "--check", "inbox", "relay", "migrations", "tests/sources")


def test_the_documentation_is_generated_with_the_examples(copy: Path) -> None:
    run(copy, "docs/generate.py")
    assert 'with `kind = "note"`' in (copy / "docs/reference/configuration.md").read_text(encoding="utf-8")
    assert "- `python` (text): version of Python it runs on\n" in (copy / "docs/reference/schema.md").read_text("utf-8")


# --- Pages for DBAs, on a server of their own, since roles belong to a whole server


BACKUP, ROLES = "docs/how-to/back-up-and-restore.md", "docs/how-to/limit-what-roles-may-do.md"
URL = "postgresql+psycopg:///inbox"
MAY = "SELECT rolname, has_table_privilege(rolname, 'inbox', 'SELECT') AS may FROM pg_roles WHERE rolname = '{role}'"


@pytest.fixture(scope="module")
def server() -> Iterator[KillablePostgres]:
    with tempfile.TemporaryDirectory(prefix="inbox-relay-pages-", dir=ROOM) as folder:
        Path(folder).chmod(0o755)
        with killable(Path(folder)) as made:
            made.create_database("inbox")
            yield made


@contextlib.contextmanager
def open_shell(server: KillablePostgres, folder: Path) -> Iterator[Shell]:
    """Open a shell with the variables of Postgres, where `inbox` and an inbox.db are migrated."""
    variables = {"PGHOST": str(server.sockets), "PGUSER": "postgres"}
    with shell(folder, server.programs, program("sqlite3").parent, **variables) as terminal:
        (folder / "here" / "inbox.toml").write_text(config_text(URL), encoding="utf-8")
        type_commands(terminal, "inbox migrate\nINBOX_DATABASE_URL=sqlite:///inbox.db inbox migrate\n")
        yield terminal


def type_commands(terminal: Shell, commands: str) -> None:
    terminal.run(Block("sh", commands, 0, ""), None)


def test_a_dump_is_restored_with_roles_and_a_base_backup_is_taken(server: KillablePostgres, tmp_path: Path) -> None:
    with open_shell(server, tmp_path) as terminal:
        with open_engine(server.url("inbox")) as before:
            give_up(before, server.url("inbox"), events(30))
            expected = (read_inbox(before), facts(before))
        for block in blocks(PAGES[BACKUP]):
            if block.info == "sh":
                type_commands(terminal, block.text.replace("/backup", str(tmp_path)))
    with open_engine(server.url("restored")) as after:
        assert (read_inbox(after), facts(after)) == expected
        assert rows(after, MAY.format(role="inbox_reader")) == [{"rolname": "inbox_reader", "may": True}]
    assert (tmp_path / "base" / "backup_manifest").exists()
    assert {path.name for path in (tmp_path / "here").glob("*.db")} == {"inbox.db", "backup.db", "copy.db"}


def test_roles_get_their_rights_and_settings(server: KillablePostgres, tmp_path: Path) -> None:
    with open_shell(server, tmp_path) as terminal:
        for block in blocks(PAGES[ROLES]):
            if block.info == "sh":
                type_commands(terminal, block.text)
            elif block.info == "sql":
                type_commands(terminal, f"psql --quiet --set=ON_ERROR_STOP=1 --dbname=inbox <<'SQL'\n{block.text}SQL\n")
        type_commands(terminal, the_block(ROLES, "sh", "inbox roles"))  # as the page says of new login roles
    with open_engine(server.url("inbox")) as engine:
        for role, may in (("anna", True), ("receiver_1", False)):
            assert rows(engine, MAY.format(role=role)) == [{"rolname": role, "may": may}]
        query = "SELECT setconfig FROM pg_db_role_setting s JOIN pg_roles r ON r.oid = s.setrole WHERE rolname = 'anna'"
        (settings,) = rows(engine, query)
        assert "default_transaction_read_only=on" in settings["setconfig"]
