"""`inbox prune`: a plan, and a command that this process carries out under the lease of pruners."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import msgspec
import pytest
from sqlalchemy import Engine, text

from inbox.clock import SystemClock
from inbox.db.leaves import SHARE_PAYLOADS
from relay.delivery.policy import policies
from relay.store.operator import commands, execution
from tests.helpers.kinds import ON_POSTGRES
from tests.helpers.processes import Ended, invoke
from tests.helpers.pruning import AFTER_A_MONTH, a_pruner
from tests.helpers.reading import count
from tests.helpers.relaying import CONFIG, Steps, work_of
from tests.helpers.storing import an_event
from tests.helpers.webhooks import config_text

RETENTION = '[retention]\npayloads = "30d"\nattempts = "30d"\nevents = "60d"\n'
YES = ("--reason", "the disk is full", "--yes")
MONTHLY = msgspec.structs.replace(CONFIG, retention=AFTER_A_MONTH)
Inbox = Callable[..., Ended]


@pytest.fixture
def inbox(tmp_path: Path, database_url: str, monkeypatch: pytest.MonkeyPatch) -> Inbox:
    file = tmp_path / "inbox.toml"
    file.write_text(config_text(database_url) + RETENTION, encoding="utf-8")
    monkeypatch.setenv("INBOX_CONFIG", str(file))
    return lambda *arguments: invoke("inbox", "prune", *arguments, COLUMNS="200")


@pytest.fixture
def full(steps: Steps) -> Steps:
    """Two thousand old events that nobody needs."""
    for at in range(1, 2001, 500):
        steps.receive(*(an_event(n, routes=[]) for n in range(at, at + 500)))
    return steps


def plan_of(ran: Ended, kind: str) -> dict[str, Any]:
    found: dict[str, Any] = next(each for each in json.loads(ran.stdout)["figures"] if each["name"] == kind)
    return found


@pytest.mark.usefixtures("full")
def test_the_plan_counts_and_deletes_nothing(inbox: Inbox, engine: Engine) -> None:
    ran = inbox("--json")
    assert ran.status == 0
    assert plan_of(ran, "events") == {"name": "events", "count": 1999, "note": "older than 60d"}
    assert "events: 1,999" in inbox().stdout
    assert count(engine, "inbox") == 2000


@pytest.mark.usefixtures("full")
def test_it_deletes_what_the_plan_says(inbox: Inbox, engine: Engine) -> None:
    ran = inbox(*YES)
    assert ran.status == 0, ran.stderr
    assert "3,999 rows deleted" in ran.stderr, "1,999 events, and 2,000 payloads before"
    assert count(engine, "inbox") == 1
    again = inbox(*YES, "--kind", "events", "--json")
    assert json.loads(again.stdout)["affected"] == 0
    assert count(engine, "pruner WHERE held_by IS NULL") == 1, "the lease is given back"


@pytest.mark.usefixtures("lived_in")
def test_a_command_waits_while_a_relay_prunes(steps: Steps, engine: Engine) -> None:
    relay = a_pruner(engine, "r7", steps.clock.now)
    assert relay.take() is not None
    number = commands.ask(steps.database, "prune", {"kinds": ["rejected", "alerts"]}, who="kim", why="too large")

    def worked() -> tuple[str, str | None]:
        execution.work_on(work_of(steps.database, policies(CONFIG)), number)
        found = commands.progress(steps.database, number)
        assert found is not None
        return found.state, found.answer

    assert worked() == ("running", "waits: a relay prunes")
    relay.give_back()
    assert worked() == ("running", None), "one kind after the other"
    assert worked() == ("done", "nothing has expired")


def test_a_clock_of_the_database_that_has_jumped_ahead_deletes_nothing(steps: Steps, engine: Engine) -> None:
    arrived = SystemClock().now()
    steps.receive(*(msgspec.structs.replace(an_event(n, routes=[]), received_at=arrived) for n in range(3)))
    steps.clock.moment = arrived + timedelta(days=3650)
    number = commands.ask(steps.database, "prune", {"kinds": ["payloads", "events"]}, who="kim", why="too large")
    for _ in range(3):
        execution.work_on(work_of(steps.database, policies(CONFIG), config=MONTHLY), number)
    assert count(engine, "inbox") == count(engine, "inbox_payload") == 3


@ON_POSTGRES
@pytest.mark.usefixtures("full")
def test_a_command_waits_for_the_rows_that_a_replay_uses(steps: Steps, engine: Engine) -> None:
    """It took the kind for pruned, and ended as done with nothing deleted."""
    steps.clock.moment = SystemClock().now()
    number = commands.ask(steps.database, "prune", {"kinds": ["events"]}, who="kim", why="too large")
    with engine.begin() as other:
        other.execute(text(SHARE_PAYLOADS))
        execution.work_on(work_of(steps.database, policies(CONFIG), config=MONTHLY), number)
    waits = commands.progress(steps.database, number)
    assert waits is not None
    assert (waits.state, waits.affected, waits.answer) == ("running", 0, "waits: others use the rows, or prune")
    execution.work_on(work_of(steps.database, policies(CONFIG), config=MONTHLY), number)
    assert count(engine, "inbox") < 2000
