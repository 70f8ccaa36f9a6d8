"""The worked examples for contributors, applied to a copy of the checkout as their pages have them: they work."""

from __future__ import annotations

import os
import platform
import shutil
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest

from tests.docs.pages import ROOT
from tests.docs.worked_examples import apply
from tests.helpers.scripted import answer, serving

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
    """The checkout with all examples done."""
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


def test_their_tests_pass_and_the_migrations_make_the_schema_on_both_databases(copy: Path, postgres_url: str) -> None:
    names = (
        "sources/test_acme",
        "sources/test_contract",
        "destinations/test_note",
        "migrations/test_schema_is_metadata",
    )
    paths = [f"tests/{name}.py" for name in names]
    chosen = "acme or not contract"  # of the contract, what is new
    # A folder of its own, or else pytest bars others from the one that tests running beside this one lie in.
    options = ("-q", "-x", "-p", "no:cacheprovider", f"--basetemp={copy}/kept")
    run(copy, "-m", "pytest", *options, "-k", chosen, *paths, TEST_DATABASE_URL=postgres_url)


def test_a_relay_delivers_a_note_follows_the_outcomes_of_its_destination_and_writes_the_new_column(
    copy: Path, tmp_path: Path
) -> None:
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


def test_they_are_written_as_the_house_writes(copy: Path) -> None:
    run(
        copy, "-m", "ruff", "check", "--no-cache", "inbox", "relay", "migrations", "tests/sources", "tests/destinations"
    )
    run(copy, "-m", "ruff", "format", "--no-cache", "--check", "inbox", "relay", "migrations", "tests/sources")


def test_the_documentation_can_be_made_with_them(copy: Path) -> None:
    run(copy, "docs/generate.py")
    assert 'with `kind = "note"`' in (copy / "docs/reference/configuration.md").read_text(encoding="utf-8")
    assert "- `python` (text): version of Python it runs on\n" in (copy / "docs/reference/schema.md").read_text("utf-8")
