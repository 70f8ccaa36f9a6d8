"""`inbox copy` shows its plan, copies when it is told to, survives Ctrl-C, and says what to do next."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import Engine

from tests.copying.conftest import Databases, url_of
from tests.copying.installation import everything
from tests.docs.pages import PAGES, blocks, find_expected, shell
from tests.helpers.processes import Ended, Site, site
from tests.helpers.receiver import receiving
from tests.helpers.tables import count, rows
from tests.helpers.traffic import events, serving
from tests.helpers.waiting import until
from tests.helpers.webhooks import a_config, body, config_text

# --- `inbox copy` shows its plan, copies when it is told to, and says what to do next


@pytest.fixture
def source(databases: Databases, templates: dict[str, str]) -> Engine:
    return databases.open(databases.new("sqlite", templates["sqlite"]))


@pytest.fixture
def place(source: Engine, tmp_path: Path) -> Iterator[Site]:
    source.dispose()  # else the test itself has the file open
    with site(tmp_path, config_text(url_of(source))) as made:
        yield made


def copying(place: Site, url: str, *options: str) -> Ended:
    return place.invoke("inbox", "copy", "--to", "env:THERE", *options, THERE=url)


def test_without_yes_it_shows_the_plan_and_changes_nothing(place: Site, databases: Databases) -> None:
    url = databases.new("postgres")
    shown = copying(place, url)
    assert shown.status == 0
    assert "--yes copies them" in shown.stdout
    planned = json.loads(copying(place, url, "--json").stdout)
    assert {each["table"]: each["rows"] for each in planned["tables"]}["gate"] > 0
    assert planned["running"] == []
    systems = "SELECT oid FROM pg_namespace WHERE nspname IN ('pg_catalog', 'information_schema', 'pg_toast')"
    assert count(databases.open(url), f"pg_class WHERE relnamespace NOT IN ({systems})") == 0


def test_a_plan_makes_no_file_that_would_be_the_target(place: Site, tmp_path: Path) -> None:
    (tmp_path / "new").mkdir()
    for options in ((), ("--json",)):
        assert copying(place, f"sqlite:///{tmp_path}/new/there.db", *options).status == 0
    assert list((tmp_path / "new").iterdir()) == []


@pytest.mark.parametrize("url", ["postgresql+psycopg://inbox@127.0.0.1:9/inbox", "sqlite:////no/such/folder/there.db"])
def test_a_target_that_can_not_be_there_is_no_traceback(place: Site, url: str) -> None:
    ran = copying(place, url)
    assert (ran.status, ran.stderr.startswith("error: ")) == (2, True), ran


def test_a_program_that_has_the_file_open_and_a_relay_that_runs_stop_it(
    place: Site, source: Engine, databases: Databases
) -> None:
    with source.connect():
        used = copying(place, databases.new("sqlite"), "--yes")
    assert used.status == 2
    assert "in use: stop the program that has the file open" in used.stderr
    with source.begin() as connection:
        connection.exec_driver_sql("UPDATE relay_node SET heartbeat_at = strftime('%Y-%m-%d %H:%M:%f000Z', 'now')")
    source.dispose()
    assert "in use: stop the relay h pid 7" in copying(place, databases.new("sqlite"), "--yes").stderr


async def test_after_a_move_everything_goes_on(tmp_path: Path, sqlite_database_url: str, databases: Databases) -> None:
    """The relay delivers the rest in order, and the receiver knows its keys."""
    sent, url = events(12, entities=2), databases.new("postgres")
    there = databases.open(url)
    with (
        serving(tmp_path / "sent.jsonl") as downstream,
        site(tmp_path, config_text(sqlite_database_url, downstream.url)) as place,
    ):
        async with receiving(a_config(sqlite_database_url)) as receiver:
            for event in sent:
                assert (await receiver.post(body(*event))).status_code == 200
        assert copying(place, url, "--yes").status == 0
        async with receiving(a_config(url)) as receiver:
            answers = [(await receiver.post(body(*event))).json for event in [*sent, ("u0", "2026-01-02T00:00:00Z")]]
        assert [answer["status"] for answer in answers] == ["duplicate"] * 12 + ["accepted"]
        place.configure(config_text(url, downstream.url))
        relay = place.relay()
        until(lambda: count(there, "delivery_log WHERE kind = 'delivered'") == 13, "all are delivered")
        relay.stop()
        assert place.run("relay", "verify").status == 0
    delivered = "SELECT l.seq, i.entity_id FROM delivery_log l JOIN inbox i ON i.seq = l.seq ORDER BY l.id"
    for entity in ("u0", "u1"):
        order = [row["seq"] for row in rows(there, delivered) if row["entity_id"] == entity]
        assert order == sorted(order)


# --- Ctrl-C in the middle of a long command: the exit says so, and the same command goes on or begins again


_COPY = """
import os, signal, sys
from inbox.db import copying
insert = copying._insert
def interrupted(target, table, rows):
    insert(target, table, rows)
    if table.name == "delivery_log":
        os.kill(os.getpid(), signal.SIGINT)  # after inbox and payloads
        signal.pause()
copying._insert = interrupted
sys.argv[1:] = ["copy", "--to", "env:THERE", "--yes"]
from relay.cli.inbox import main
main()
"""


def test_a_stopped_copy_leaves_nothing(place: Site, source: Engine, databases: Databases) -> None:
    url = databases.new("postgres")
    stopped = subprocess.run(
        [sys.executable, "-c", _COPY, "inbox"],
        env=os.environ | place.environment | {"THERE": url},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert stopped.returncode == 1, stopped
    assert stopped.stderr.endswith("interrupted, and the target is empty; the same command begins again\n"), stopped
    there = databases.open(url)
    assert count(there, "inbox") == 0
    there.dispose()
    assert copying(place, url, "--yes").status == 0
    assert everything(databases.open(url)) == everything(source)


# --- The page about moving to Postgres works from its first command to its last, with a real Postgres


PAGE = "docs/how-to/move-to-postgres.md"
NAMED = "postgresql+psycopg://inbox@db.example.com/inbox"


@pytest.mark.long
def test_the_commands_of_the_page_move_an_installation(tmp_path: Path, databases: Databases) -> None:
    page = PAGES[PAGE]
    assert NAMED in page
    read = blocks(page.replace(NAMED, f"'{databases.new('postgres')}'"))
    with shell(tmp_path) as terminal:
        for position, block in enumerate(read):
            if block.info == "toml":
                (tmp_path / "here" / "inbox.toml").write_text(block.text, encoding="utf-8")
            elif block.info == "sh":
                terminal.run(block, find_expected(read, position))
