"""`inbox prune`: plan, question, deletion, and the space given back."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, insert, text

from inbox.clock import SystemClock
from inbox.db.schema import relay_node
from relay.store.retention import LeasedPruner
from tests.helpers.processes import Ended, invoke
from tests.helpers.pruning import a_pruner
from tests.helpers.reading import count
from tests.helpers.relaying import Steps
from tests.helpers.storing import an_event
from tests.helpers.webhooks import config_text

RETENTION = '[retention]\npayloads = "30d"\nattempts = "30d"\nevents = "60d"\n'
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
    found: dict[str, Any] = next(each for each in json.loads(ran.stdout)["plan"] if each["kind"] == kind)
    return found


@pytest.mark.usefixtures("full")
def test_the_plan_counts_and_deletes_nothing(inbox: Inbox, engine: Engine) -> None:
    ran = inbox("--dry-run", "--json")
    assert ran.status == 0
    found = plan_of(ran, "events")
    assert (found["rows"], found["are_all"], found["age"]) == (1999, True, "60d")
    assert found["oldest"] == "2026-01-01T00:00:00.000000Z"
    assert "events" in inbox().stdout, "nobody is there to be asked"
    assert count(engine, "inbox") == 2000


@pytest.mark.usefixtures("full")
def test_it_deletes_what_the_plan_says(inbox: Inbox, engine: Engine) -> None:
    ran = inbox("--yes")
    assert ran.status == 0, ran.stderr
    assert "events: 1,999 rows deleted" in ran.stdout
    assert count(engine, "inbox") == 1
    again = inbox("--yes", "--kind", "events", "--json")
    assert json.loads(again.stdout)["pruned"][0]["rows"] == 0
    assert count(engine, "pruner WHERE held_by IS NULL") == 1, "the lease is given back"


def test_a_large_plan_says_that_there_may_be_more(steps: Steps, inbox: Inbox, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("relay.store.retention.MOST_COUNTED", 10)
    steps.receive(*(an_event(n, routes=[]) for n in range(1, 30)))
    found = plan_of(inbox("--dry-run", "--json"), "events")
    assert (found["rows"], found["are_all"]) == (10, False)
    assert "10 or more" in inbox("--dry-run").stdout


def test_an_unknown_kind_names_the_nearest(inbox: Inbox) -> None:
    ran = inbox("--kind", "event")
    assert ran.status == 2
    assert "did you mean 'events'?" in ran.stderr


@pytest.mark.usefixtures("full")
def test_while_a_relay_prunes_it_says_which(inbox: Inbox, engine: Engine) -> None:
    now = SystemClock().now()
    with engine.begin() as connection:
        connection.execute(
            insert(relay_node).values(id="r7", host="one", pid=42, version="1", started_at=now, heartbeat_at=now)
        )
    assert a_pruner(engine, "r7").take() is not None
    ran = inbox("--yes")
    assert ran.status == 1
    assert "the relay on one, process 42, prunes at the moment" in ran.stderr
    assert count(engine, "inbox") == 2000


@pytest.mark.usefixtures("full")
def test_clocks_that_differ_much_delete_nothing(inbox: Inbox, engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    wrong = SystemClock().now() - timedelta(days=365)
    monkeypatch.setattr("relay.cli.prune.SystemClock", lambda: _Standing(wrong))
    ran = inbox("--yes")
    assert ran.status == 2
    assert "set the wrong one right first" in ran.stderr
    assert count(engine, "inbox") == 2000


class _Standing:
    def __init__(self, at: datetime) -> None:
        self.at = at

    def now(self) -> datetime:
        return self.at


@pytest.mark.usefixtures("full")
def test_after_a_sleep_it_says_who_has_taken_over(
    inbox: Inbox, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    batch = LeasedPruner.batch

    def slept(pruner: LeasedPruner, *arguments: Any, **more: Any) -> Any:  # noqa: ANN401
        with engine.begin() as connection:
            connection.execute(text("UPDATE pruner SET held_by = 'r7'"))
        return batch(pruner, *arguments, **more)

    monkeypatch.setattr(LeasedPruner, "batch", slept)
    ran = inbox("--yes", "--kind", "events")
    assert ran.status == 1
    assert "r7 has taken over after 0 rows, and deletes the rest" in ran.stderr
    assert count(engine, "inbox") == 2000


@pytest.mark.usefixtures("full")
def test_an_interruption_keeps_what_is_done_and_the_command_goes_on(
    inbox: Inbox, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    batch, batches = LeasedPruner.batch, []

    def interrupted(pruner: LeasedPruner, *arguments: Any, **more: Any) -> Any:  # noqa: ANN401
        batches.append(1)
        if len(batches) == 3:
            raise KeyboardInterrupt
        return batch(pruner, *arguments, **more)

    with monkeypatch.context() as patch:
        patch.setattr(LeasedPruner, "batch", interrupted)
        ran = inbox("--yes", "--kind", "events")
    assert ran.status == 1
    assert "which stay deleted" in ran.stderr
    assert 1 < count(engine, "inbox") < 2000
    assert inbox("--yes", "--kind", "events").status == 0
    assert count(engine, "inbox") == 1
