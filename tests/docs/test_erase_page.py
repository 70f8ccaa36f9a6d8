"""The commands and statements of docs/how-to/erase-a-person.md do what the page says."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import Engine, text

from relay.store.database import Database
from relay.store.operator import execution
from tests.docs.pages import PAGES, blocks
from tests.helpers.processes import Site, site
from tests.helpers.relaying import Steps, work_of
from tests.helpers.storing import an_event
from tests.helpers.tables import rows
from tests.helpers.webhooks import config_text

PAGE = blocks(PAGES["docs/how-to/erase-a-person.md"])
COMMANDS = [shlex.split(block.text) for block in PAGE if block.info == "text"]
ASKING, MAINTENANCE = (block.text for block in PAGE if block.info == "sql")


@pytest.fixture
def place(database_url: str, tmp_path: Path) -> Iterator[Site]:
    with site(tmp_path, config_text(database_url)) as made:
        yield made


def an_ended_event(engine: Engine, number: int) -> None:
    steps = Steps(engine)
    steps.arrive(an_event(number, "IDNUMBER1234"))
    steps.until_nothing_is_due()


def test_the_commands_show_the_plan_and_erase(place: Site, engine: Engine) -> None:
    an_ended_event(engine, 1)
    plan, done = (place.invoke(*command) for command in COMMANDS)
    assert (plan.status, done.status) == (0, 0)
    assert "events: 1" in plan.stdout
    assert done.stderr.endswith("1 event erased\n")


def test_the_statement_is_done_by_relays(engine: Engine) -> None:
    an_ended_event(engine, 1)
    with engine.begin() as connection:
        connection.execute(text(ASKING.replace(":", "\\:")))
    commands = execution.OpenCommands()
    while commands.work(work_of(Database(engine))):
        pass
    assert rows(engine, "SELECT count(*) AS number FROM inbox WHERE erased_at IS NOT NULL") == [{"number": 1}]


def test_the_maintenance_runs(engine: Engine) -> None:
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        for statement in MAINTENANCE.split(";")[:-1]:
            if engine.dialect.name == "postgresql" or "FULL" not in statement:
                connection.execute(text(statement))
