"""`relay verify` and `relay rebuild` as an operator runs them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from sqlalchemy import Engine, text

from tests.helpers.filling import fill
from tests.helpers.reading import count
from tests.helpers.webhooks import config_text, moment

EVENTS = 40


@pytest.fixture
def folder(database_url: str, tmp_path: Path) -> Path:
    """A folder with a configuration, whose inbox has events."""
    (tmp_path / "inbox.toml").write_text(config_text(database_url), encoding="utf-8")
    fill(database_url, [(f"u{n % 10}", moment(n)) for n in range(EVENTS)])
    return tmp_path


def relay(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "relay", *arguments],
        env={**os.environ, "INBOX_CONFIG": str(folder / "inbox.toml")},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def lose(engine: Engine, seqs: str) -> None:
    with engine.begin() as connection:
        connection.execute(text(f"DELETE FROM open_delivery WHERE seq IN ({seqs})"))


def test_where_all_agrees_it_says_what_it_has_seen(folder: Path) -> None:
    verified = relay(folder, "verify")
    assert verified.returncode == 0, verified.stderr
    assert verified.stdout == f"agreed: {EVENTS} events, {EVENTS} deliveries, 0 facts\n"
    rebuilt = relay(folder, "rebuild")
    assert rebuilt.returncode == 0
    assert rebuilt.stdout == f"nothing to repair: {EVENTS} events, {EVENTS} deliveries, 0 facts\n"


def test_an_empty_inbox_agrees(database_url: str, tmp_path: Path) -> None:
    (tmp_path / "inbox.toml").write_text(config_text(database_url), encoding="utf-8")
    assert relay(tmp_path, "verify").stdout == "agreed: 0 events, 0 deliveries, 0 facts\n"
    assert relay(tmp_path, "verify", "--json").stdout == "[]\n"


def test_each_difference_is_a_line_and_the_exit_status_1_until_it_is_mended(folder: Path, engine: Engine) -> None:
    lose(engine, "3, 7")

    found = relay(folder, "verify")
    assert found.returncode == 1
    assert found.stdout.splitlines() == [
        "missing seq=3 route=everything: open, but stored: no row",
        "missing seq=7 route=everything: open, but stored: no row",
    ]
    assert "2 differences in 40 events" in found.stderr
    assert "`relay rebuild` repairs them" in found.stderr

    repaired = relay(folder, "rebuild")
    assert repaired.returncode == 0
    assert repaired.stdout.splitlines()[-1].startswith("repaired 2 differences: ")
    assert relay(folder, "verify").returncode == 0
    assert count(engine, "open_delivery") == EVENTS


def test_for_programs_the_differences_are_an_array(folder: Path, engine: Engine) -> None:
    lose(engine, "3, 7")
    found = relay(folder, "verify", "--json")
    assert found.returncode == 1
    differences = json.loads(found.stdout)
    assert [(d["finding"], d["seq"], d["route"]) for d in differences] == [
        ("missing", 3, "everything"),
        ("missing", 7, "everything"),
    ]
    assert len(json.loads(relay(folder, "rebuild", "--json").stdout)) == 2
    assert json.loads(relay(folder, "rebuild", "--json").stdout) == []


def test_a_database_that_is_not_there_is_told_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "inbox.toml").write_text(config_text("postgresql+psycopg://127.0.0.1:9/none"), encoding="utf-8")
    told = relay(tmp_path, "verify")
    assert told.returncode == 2
    assert told.stderr.startswith("error: the database")
