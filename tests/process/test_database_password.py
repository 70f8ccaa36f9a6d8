"""The database's password stands in a file: every program finds it there, and none of them shows it."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import pytest

from tests.helpers.killable_postgres import KillablePostgres, killable
from tests.helpers.machine import ROOM
from tests.helpers.planted import Planted
from tests.helpers.processes import Program, Site, site
from tests.helpers.waiting import until
from tests.helpers.webhooks import config_text

SECRET = Planted()
PASSWORD = SECRET.odd("database-password")
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def server() -> Iterator[KillablePostgres]:
    """A server that lets `inbox` in with its password alone."""
    folder = Path(tempfile.mkdtemp(prefix="inbox-relay-password-", dir=ROOM))
    folder.chmod(0o755)
    try:
        with killable(folder) as made:
            made.run(f"CREATE ROLE inbox LOGIN PASSWORD '{PASSWORD}'")
            made.run("CREATE DATABASE inbox OWNER inbox")
            rules = "local all postgres trust\nlocal all inbox scram-sha-256\n"
            (folder / "data" / "pg_hba.conf").write_text(rules, encoding="utf-8")
            made.run("SELECT pg_reload_conf()")
            yield made
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def place(server: KillablePostgres, tmp_path: Path) -> Iterator[Site]:
    (tmp_path / "password").write_text(f"{PASSWORD}\n", encoding="utf-8")
    url = f"postgresql+psycopg://inbox@/inbox?host={server.sockets}"
    config = config_text(url).replace(f'"{url}"\n', f'"{url}"\npassword = "file:{tmp_path}/password"\n')
    with site(tmp_path, config) as made:
        yield made


def command_lines(program: Program) -> str:
    """Give what `ps` shows of a program and its children."""
    pids = [program.pid, *program.children()]
    return " ".join(Path(f"/proc/{pid}/cmdline").read_text(encoding="utf-8") for pid in pids)


def test_every_program_uses_the_password_of_the_file_and_none_shows_it(place: Site) -> None:
    shown: dict[str, str] = {}
    for side, *arguments in (
        ("inbox", "migrate"),
        ("inbox", "check", "--online"),
        ("relay", "status"),
    ):
        ended = place.invoke(side, *arguments)
        assert ended.status in {0, 1}, ended.stderr  # 1: no relay runs yet; and warnings
        assert "password authentication" not in ended.stdout + ended.stderr
        shown[f"{side} {arguments}"] = ended.stdout + ended.stderr
    alembic = subprocess.run(
        [sys.executable, "-m", "alembic", "current"],
        cwd=ROOT,
        env={"INBOX_CONFIG": str(place.folder / "inbox.toml"), "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert alembic.stdout.startswith("0001")
    shown["alembic"] = alembic.stdout + alembic.stderr
    receiver, _ = place.receiver(2)
    relay = place.relay("--processes", "2", "--verbose")
    relay.writes("started", times=2)
    shown["ps"] = command_lines(receiver) + command_lines(relay)
    until(lambda: place.invoke("relay", "status", "--check").status == 0, "the relays are well", within=60)
    assert (receiver.stop(), relay.stop()) == (0, 0)
    assert SECRET.leaks(shown | place.logs()) == []
    assert SECRET.leaks({"the file": (place.folder / "password").read_text(encoding="utf-8")}) != []


def test_a_wrong_password_is_told_without_it(place: Site) -> None:
    (place.folder / "password").write_text(SECRET.plain("wrong-password"), encoding="utf-8")
    for side, *arguments in (("inbox", "check", "--online"), ("relay", "run", "--drain")):
        ended = (place.run if arguments[0] == "run" else place.invoke)(side, *arguments)
        assert ended.status == 2
        assert 'password authentication failed for user "inbox"' in ended.stdout + ended.stderr
        assert SECRET.leaks({"stdout": ended.stdout, "stderr": ended.stderr}) == []


def test_the_url_may_stand_in_a_variable_as_a_whole(place: Site, server: KillablePostgres) -> None:
    url = f"postgresql+psycopg://inbox:{quote(PASSWORD, safe='')}@/inbox?host={server.sockets}"
    place.configure('[database]\nurl = "env:DATABASE"\n')
    ended = place.invoke("inbox", "migrate", DATABASE=url)
    assert ended.status == 0, ended.stderr
    (place.folder / "url").write_text(url, encoding="utf-8")
    place.configure("")
    ended = place.invoke("inbox", "check", "--online", INBOX_DATABASE_URL=f"file:{place.folder}/url")
    assert ended.status == 0, ended.stdout
    assert f"INBOX_DATABASE_URL: file:{place.folder}/url: postgresql+psycopg://inbox:***@/inbox" in ended.stdout
    assert SECRET.leaks({"stdout": ended.stdout, "stderr": ended.stderr}) == []
