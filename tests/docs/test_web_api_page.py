"""The examples of the HTTP API's page work as they stand there."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import Engine

from tests.docs.pages import PAGES, blocks
from tests.helpers.page import TOKEN, Entrance, entrance, on_database
from tests.helpers.relaying import CONFIG, FakeClock, Steps
from tests.helpers.worlds import fill_page

PAGE = PAGES["docs/reference/web-api.md"]
ADDRESS = "http://127.0.0.1:8025"


@pytest.fixture
def running(sqlite_engine: Engine, sqlite_database_url: str, tmp_path: Path) -> Iterator[Entrance]:
    fill_page(Steps(sqlite_engine, clock=FakeClock()))
    with entrance(on_database(CONFIG, sqlite_database_url), tmp_path) as made:
        yield made


def test_the_examples_work_one_after_the_other(running: Entrance, tmp_path: Path) -> None:
    printed = [printed_by(block.text, running, tmp_path) for block in blocks(PAGE) if block.info == "sh"]
    assert printed[0].startswith('{"openapi":"3.1')
    assert len(json.loads(printed[1])["rows"]) == 2
    pages = [json.loads(line) for line in printed[2].replace("}{", "}\n{").splitlines()]
    assert [row["id"] for page in pages for row in page["rows"]] == [2, 1]
    (problem,) = (json.loads(block.text) for block in blocks(PAGE) if block.info == "json")
    assert problem in [json.loads(text) for text in printed if text.startswith('{"title"')]


def printed_by(command: str, running: Entrance, folder: Path) -> str:
    for slash in ("/", r"\/"):
        command = command.replace(ADDRESS.replace("/", slash), running.url.replace("/", slash))
    environment = {"PATH": "/usr/bin:/bin", "TOKEN": TOKEN}
    done = subprocess.run(
        ["bash", "-euc", command], env=environment, cwd=folder, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout
