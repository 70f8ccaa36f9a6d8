"""The command lines: what `--help` and a listing must not import, and how wide a table is."""

from __future__ import annotations

import os
import pwd
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import pytest

from relay.cli.options import login_name
from relay.cli.output import answer, show
from tests.helpers.processes import invoke

LOADED = """
import sys
from importlib import import_module
name, unwanted, *sys.argv[1:] = sys.argv[1:]
try:
    import_module({"inbox": "relay.cli.inbox", "relay": "relay.cli.main"}[name]).main()
except SystemExit:
    pass
print("loaded:", *(module for module in unwanted.split() if module in sys.modules))
"""

CALLS = {
    "requests",
    "urllib3",
    "jwt",
    "cryptography",
    "prometheus_client",
    "relay.destinations",
    "relay.http",
    "relay.demo.run",
    "relay.demo.services",
}
SERVES = {"falcon", "gunicorn", "httptools", "uvicorn", "inbox.receiver", "relay.daemon.loop", "relay.sweep"}
MIGRATES = {"alembic", "mako", "sqlalchemy.orm"}
READS = MIGRATES | {"inbox.db", "inbox.loader", "inbox.sources", "jmespath", "relay.store", "sqlalchemy"}


@pytest.mark.parametrize("command", ["inbox", "inbox migrate", "relay", "relay status"])
def test_the_help_shows_no_type_for_a_flag(command: str) -> None:
    ran = invoke(*command.split(), "--help")
    assert ran.status == 0
    assert "bool" not in ran.stdout.lower()


def test_the_help_shows_words_in_brackets() -> None:
    """They look like markup."""
    ran = invoke("inbox", "prune", "--help")
    assert "older than [retention] says" in " ".join(ran.stdout.split())


@pytest.mark.parametrize(
    ("command", "unwanted"),
    [
        ("inbox --help", CALLS | SERVES | READS),
        ("relay --help", CALLS | SERVES | READS),
        ("relay demo --help", CALLS | SERVES | READS),
        ("relay status", CALLS | SERVES | MIGRATES),
        ("relay dead", CALLS | SERVES | MIGRATES),
        ("relay run --drain", MIGRATES | {"falcon", "gunicorn", "inbox.receiver", "uvicorn"}),
        ("inbox list", CALLS | SERVES | MIGRATES),
        ("inbox migrate --dry-run", CALLS | SERVES | MIGRATES),
    ],
)
def test_a_command_imports_no_more_than_it_needs(command: str, unwanted: set[str], tmp_path: Path) -> None:
    (tmp_path / "inbox.toml").write_text('[database]\nurl = "sqlite:///inbox.db"\n')
    name, *arguments = command.split()
    done = subprocess.run(
        [sys.executable, "-c", LOADED, name, " ".join(sorted(unwanted)), *arguments],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.splitlines()[-1].split() == ["loaded:"]


@pytest.mark.parametrize("columns", ["", "0", "20", "80"])
def test_a_table_in_a_pipe_has_whole_values_whatever_columns_says(
    columns: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    row = {"words": "word " * 40, "n": 1, "at": datetime(2026, 1, 31, 10, tzinfo=UTC)}
    show([row], ("words", "n", "at"))
    answer("w" * 200)
    _, shown, sentence = capsys.readouterr().out.splitlines()
    assert shown == f"{'word ' * 40}  1  2026-01-31T10:00:00.000Z"
    assert sentence == "w" * 200


@pytest.mark.parametrize("error", [KeyError, OSError])
def test_a_user_without_a_name_is_named_by_the_uid(error: type[Exception], monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in ("LOGNAME", "USER", "LNAME", "USERNAME"):
        monkeypatch.delenv(variable, raising=False)

    def unnamed(uid: int) -> None:
        raise error(uid)

    monkeypatch.setattr(pwd, "getpwuid", unnamed)
    assert login_name() == f"uid {os.getuid()}"
    monkeypatch.setenv("LOGNAME", "kim")
    assert login_name() == "kim"
