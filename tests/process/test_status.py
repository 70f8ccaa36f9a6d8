"""`relay status`, as a person and a program call it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from sqlalchemy import Engine

from relay.store import nodes
from relay.store.database import Database
from tests.helpers.filling import fill
from tests.helpers.webhooks import config_text, moment


def status(folder: Path, database_url: str, *options: str) -> subprocess.CompletedProcess[str]:
    (folder / "inbox.toml").write_text(config_text(database_url), encoding="utf-8")
    return subprocess.run(
        [sys.executable, "-m", "relay", "status", *options],
        env={**os.environ, "INBOX_CONFIG": str(folder / "inbox.toml")},
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )


def test_what_is_open_is_told_as_json(database_url: str, tmp_path: Path) -> None:
    fill(database_url, [("u1", moment(0))])
    (backlog,) = json.loads(status(tmp_path, database_url, "--json").stdout)
    assert (backlog["route"], backlog["received"]) == ("everything", 1)
    assert isinstance(backlog["oldest_age_seconds"], float)


def test_a_host_is_told_by_the_name_it_has(database_url: str, engine: Engine, tmp_path: Path) -> None:
    nodes.start_node(Database(engine), "n1", "[/red]", 7, "1.0")
    assert "relays running: 1 ([/red] pid 7)" in status(tmp_path, database_url).stderr
