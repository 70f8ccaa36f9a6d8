"""The commands of pages for DBAs run as they are typed, against a server of the test's own: roles belong to a whole server."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import Engine

from inbox.db import engine as engines
from tests.docs.pages import PAGES, Block, Shell, blocks, shell, the_block
from tests.helpers.killable_postgres import KillablePostgres, killable
from tests.helpers.machine import ROOM, program
from tests.helpers.relaying import give_up
from tests.helpers.tables import facts, read_inbox
from tests.helpers.traffic import events
from tests.helpers.webhooks import config_text

pytestmark = pytest.mark.nightly

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
def typing(server: KillablePostgres, folder: Path) -> Iterator[Shell]:
    """A shell of somebody who has set the variables of Postgres; `inbox` is migrated, and so is an inbox.db."""
    variables = {"PGHOST": str(server.sockets), "PGUSER": "postgres"}
    with shell(folder, server.programs, program("sqlite3").parent, **variables) as terminal:
        (folder / "here" / "inbox.toml").write_text(config_text(URL), encoding="utf-8")
        types(terminal, "inbox migrate\nINBOX_DATABASE_URL=sqlite:///inbox.db inbox migrate\n")
        yield terminal


def types(terminal: Shell, commands: str) -> None:
    terminal.run(Block("sh", commands, 0, ""), None)


def opened(server: KillablePostgres, database: str) -> Engine:
    return engines.connect(server.url(database), application="tests")


def test_a_dump_is_restored_with_roles_and_a_base_backup_is_taken(server: KillablePostgres, tmp_path: Path) -> None:
    with typing(server, tmp_path) as terminal:
        before = opened(server, "inbox")
        give_up(before, server.url("inbox"), events(30))
        for block in blocks(PAGES[BACKUP]):
            if block.info == "sh":
                types(terminal, block.text.replace("/backup", str(tmp_path)))
    after = opened(server, "restored")
    assert (read_inbox(after), facts(after)) == (read_inbox(before), facts(before))
    with after.connect() as connection:
        assert connection.exec_driver_sql(MAY.format(role="inbox_reader")).all() == [("inbox_reader", True)]
    assert (tmp_path / "base" / "backup_manifest").exists()
    assert {path.name for path in (tmp_path / "here").glob("*.db")} == {"inbox.db", "backup.db", "copy.db"}
    for engine in (before, after):
        engine.dispose()


def test_roles_are_made_and_get_their_rights_and_settings(server: KillablePostgres, tmp_path: Path) -> None:
    with typing(server, tmp_path) as terminal:
        for block in blocks(PAGES[ROLES]):
            if block.info == "sh":
                types(terminal, block.text)
            elif block.info == "sql":
                types(terminal, f"psql --quiet --set=ON_ERROR_STOP=1 --dbname=inbox <<'SQL'\n{block.text}SQL\n")
        types(terminal, the_block(ROLES, "sh", "inbox roles"))  # as the page says of new login roles
    engine = opened(server, "inbox")
    with engine.connect() as connection:
        assert connection.exec_driver_sql(MAY.format(role="anna")).all() == [("anna", True)]
        assert connection.exec_driver_sql(MAY.format(role="receiver_1")).all() == [("receiver_1", False)]
        settings = (
            "SELECT setconfig FROM pg_db_role_setting s JOIN pg_roles r ON r.oid = s.setrole WHERE rolname = 'anna'"
        )
        assert "default_transaction_read_only=on" in connection.exec_driver_sql(settings).scalar_one()
    engine.dispose()
