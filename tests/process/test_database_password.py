"""The database's password stands in a file: every program finds it there, and none of them shows it."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.helpers.killable_postgres import KillablePostgres, killable
from tests.helpers.machine import ROOM
from tests.helpers.planted import Planted
from tests.helpers.processes import Site, site
from tests.helpers.waiting import until
from tests.helpers.webhooks import config_text

SECRET = Planted()
PASSWORD = SECRET.odd("database-password")
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def server() -> Iterator[KillablePostgres]:
    """A server that lets `inbox` in with its password alone."""
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
def place(server: KillablePostgres, tmp_path: Path) -> Iterator[Site]:
    (tmp_path / "password").write_text(f"{PASSWORD}\n", encoding="utf-8")
    url = f"postgresql+psycopg://inbox@/inbox?host={server.sockets}"
    config = config_text(url).replace(f'"{url}"\n', f'"{url}"\npassword = "file:{tmp_path}/password"\n')
    with site(tmp_path, config) as made:
        yield made


def told(place: Site, statuses: set[int], *command: str) -> str:
    """All that a command shows, which ends with one of these statuses."""
    ended = place.invoke(*command)
    assert ended.status in statuses, ended.stderr
    assert SECRET.leaks({"stdout": ended.stdout, "stderr": ended.stderr}) == []
    return ended.stdout + ended.stderr


def test_every_program_uses_the_password_of_the_file_and_none_shows_it(place: Site) -> None:
    for command in (("inbox", "migrate"), ("inbox", "check", "--online"), ("relay", "status")):
        assert "password authentication" not in told(place, {0, 1}, *command)  # 1: no relay runs yet; and warnings
    alembic = subprocess.run(
        [sys.executable, "-m", "alembic", "current"],
        cwd=ROOT,
        env=os.environ | place.environment,
        capture_output=True,
        text=True,
        check=True,
    )
    assert alembic.stdout.startswith("0001")
    receiver, _ = place.receiver(1)
    relay = place.relay("--processes", "2", "--verbose")
    relay.writes("started", times=2)
    pids = [pid for program in (receiver, relay) for pid in (program.pid, *program.children())]
    shown = {f"ps {pid}": Path(f"/proc/{pid}/cmdline").read_text(encoding="utf-8") for pid in pids}
    until(lambda: place.invoke("relay", "status", "--check").status == 0, "the relays are well", within=60)
    assert (receiver.stop(), relay.stop()) == (0, 0)
    assert SECRET.leaks({"alembic": alembic.stdout + alembic.stderr} | shown | place.logs()) == []
    assert SECRET.leaks({"the file": (place.folder / "password").read_text(encoding="utf-8")}) != []


def test_a_wrong_password_is_told_without_it(place: Site) -> None:
    (place.folder / "password").write_text(SECRET.plain("wrong-password"), encoding="utf-8")
    for command in (("inbox", "check", "--online"), ("relay", "run", "--drain")):
        assert 'password authentication failed for user "inbox"' in told(place, {2}, *command)
