"""`inbox copy` shows its plan, copies when it is told to, survives Ctrl-C, and says what to do next."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import Engine, text

from tests.copying.conftest import Databases, url_of
from tests.copying.installation import everything
from tests.docs.pages import PAGES, blocks, expected_after, shell
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


def test_it_copies_and_says_what_comes_next(place: Site, source: Engine, databases: Databases) -> None:
    url = databases.new("postgres")
    done = copying(place, url, "--yes")
    assert done.status == 0, done.stderr
    assert "both ends are equal" in done.stdout
    assert "put its url into [database] url" in done.stderr
    assert everything(databases.open(url)) == everything(source)


def test_a_plan_makes_no_file_that_would_be_the_target(place: Site, tmp_path: Path) -> None:
    folder = tmp_path / "new"
    folder.mkdir()
    for options in ((), ("--json",)):
        assert copying(place, f"sqlite:///{folder}/there.db", *options).status == 0
    assert list(folder.iterdir()) == []
    missing = copying(place, f"sqlite:///{folder}/no/there.db")
    assert (missing.status, missing.stderr.startswith("error: ")) == (2, True), missing


def test_a_target_that_does_not_answer_is_no_traceback(place: Site) -> None:
    silent = copying(place, "postgresql+psycopg://inbox@127.0.0.1:9/inbox")
    assert silent.status == 2
    assert silent.stderr.startswith("error: the database:")


def test_a_program_that_has_the_file_open_stops_it(place: Site, source: Engine, databases: Databases) -> None:
    with source.connect():
        used = copying(place, databases.new("sqlite"), "--yes")
    assert used.status == 2
    assert "in use: stop the program that has the file open" in used.stderr


def test_a_relay_that_runs_stops_it(place: Site, source: Engine, databases: Databases) -> None:
    with source.begin() as connection:
        now = "strftime('%Y-%m-%d %H:%M:%f', 'now') || '000Z'"
        connection.execute(text(f"UPDATE relay_node SET heartbeat_at = {now.replace(':', chr(92) + ':')}"))
    source.dispose()
    assert "in use: stop the relay h pid 7" in copying(place, databases.new("sqlite"), "--yes").stderr


async def test_after_the_move_a_relay_delivers_the_rest_in_order_and_the_receiver_knows_its_keys(
    tmp_path: Path, sqlite_database_url: str, databases: Databases
) -> None:
    sent = events(12, entities=2)
    with (
        serving(tmp_path / "arrivals.jsonl") as downstream,
        site(tmp_path, config_text(sqlite_database_url, downstream.url)) as place,
    ):
        async with receiving(a_config(sqlite_database_url)) as receiver:
            for event in sent:
                assert (await receiver.post(body(*event))).status_code == 200
        url = databases.new("postgres")
        assert copying(place, url, "--yes").status == 0
        there = databases.open(url)
        async with receiving(a_config(url)) as receiver:
            answers = [(await receiver.post(body(*event))).json for event in [*sent, ("u0", "2026-01-02T00:00:00Z")]]
        assert [answer["status"] for answer in answers] == ["duplicate"] * 12 + ["accepted"]
        place.configure(config_text(url, downstream.url))
        relay = place.relay()
        until(lambda: count(there, "delivery_log WHERE kind = 'delivered'") == 13, "all are delivered")
        relay.stop()
        assert place.run("relay", "verify").status == 0
    delivered = (
        "SELECT l.seq FROM delivery_log l JOIN inbox i ON i.seq = l.seq WHERE i.entity_id = :entity ORDER BY l.id"
    )
    for entity in ("u0", "u1"):
        order = [row["seq"] for row in rows(there, delivered, entity=entity)]
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


def interrupted(place: Site, script: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a command of `inbox` that gets SIGINT, as from a terminal."""
    return subprocess.run(
        [sys.executable, "-c", script, "inbox"],
        env=os.environ | place.environment | environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_a_person_stops_a_copy_and_nothing_of_it_stays(
    databases: Databases, templates: dict[str, str], tmp_path: Path
) -> None:
    source = databases.open(databases.new("sqlite", templates["sqlite"]))
    source.dispose()
    url = databases.new("postgres")
    with site(tmp_path, config_text(url_of(source))) as place:
        stopped = interrupted(place, _COPY, THERE=url)
        assert stopped.returncode == 1, stopped
        assert stopped.stderr.endswith("interrupted, and the target is empty; the same command begins again\n"), stopped
        there = databases.open(url)
        assert count(there, "inbox") == 0
        there.dispose()
        done = place.invoke("inbox", "copy", "--to", "env:THERE", "--yes", THERE=url)
        assert done.status == 0, done.stderr
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
                terminal.run(block, expected_after(read, position))
