"""`inbox erase`: the plan first, then the erasure, and every way in which it is refused."""

from __future__ import annotations

import json
import shlex

import pytest
from sqlalchemy import Engine

from inbox.db import erasure
from inbox.db.erasure import StepDone
from tests.helpers.planted import ID, live, traces_in
from tests.helpers.processes import Ended, Site
from tests.helpers.relaying import Steps, give_up
from tests.helpers.tables import count, rows
from tests.helpers.webhooks import moment

KIM = {"LOGNAME": "kim"}
NAMED = ("--source", "trivore", "--entity", f"USER/{ID}")


def erase(place: Site, *arguments: str) -> Ended:
    return place.invoke("inbox", "erase", *arguments, **KIM)


def test_it_shows_its_plan_and_erases_when_it_is_told_to(place: Site, engine: Engine) -> None:
    live(Steps(engine))
    plan = erase(place, *NAMED)
    assert plan.status == 0, plan.stderr
    assert plan.stdout.splitlines()[:2] == ["events: 5", "payloads: 5 (no replay is possible any more)"]
    assert plan.stderr.startswith("Nothing brings it back. ")
    assert plan.stderr.endswith("5 events would be erased; --reason '…' --yes does it\n")
    document = json.loads(erase(place, *NAMED, "--json").stdout)
    figures = {each["name"]: each["count"] for each in document["figures"]}
    assert (document["count"], figures["payloads"]) == (5, 5)
    assert traces_in(engine)

    done = erase(place, *NAMED, "--reason", "request 2026-17", "--yes")
    assert done.status == 0, done.stderr
    assert done.stderr.endswith("5 events erased\n")
    assert traces_in(engine) == []
    (command,) = rows(engine, "SELECT asked_by, state, affected FROM relay_command WHERE kind = 'erase'")
    assert command == {"asked_by": "kim", "state": "done", "affected": 5}
    again = erase(place, *NAMED, "--reason", "request 2026-17", "--yes")
    assert again.status == 1
    assert "nothing to erase" in again.stderr
    assert "5 left out: events of it were erased before" in again.stderr


def test_open_deliveries_are_refused_with_the_command_that_ends_them(
    place: Site, database_url: str, engine: Engine
) -> None:
    give_up(engine, database_url, [("u1", moment(1))])
    of_u1 = ("--source", "trivore", "--entity", "USER/u1", "--reason", "asked", "--yes")
    refused = erase(place, *of_u1)
    assert refused.status == 1
    assert "its deliveries have to end first, such as seq 1 on route everything, which is dead" in refused.stderr
    command = shlex.split(refused.stderr[refused.stderr.index("relay cancel") :])
    assert command == ["relay", "cancel", "--source", "trivore", "--entity", "USER/u1", "--reason", "…", "--yes"]
    assert count(engine, "relay_command") == 0
    assert place.invoke("relay", *command[1:], **KIM).status == 2, "the reason is still to be written"
    command[command.index("…")] = "asked"
    assert place.invoke("relay", *command[1:], **KIM).status == 0
    assert erase(place, *of_u1).status == 0


def test_wrong_use_is_refused_and_says_what_would_be_right(sqlite_place: Site) -> None:
    for arguments, status, said in (
        (("--source", "trivor", "--entity", f"USER/{ID}"), 2, "there is no source 'trivor'; did you mean 'trivore'?"),
        (("--source", "trivore", "--entity", "USER"), 2, "--entity must be TYPE/ID"),
        (("--source", "trivore", "--entity", "USER/nobody"), 1, "nothing to erase"),
        ((*NAMED, "--reason", "…", "--yes"), 2, "--reason: say why"),
        ((*NAMED, "--reason", f"{ID} asked", "--yes"), 2, "the reason names the entity"),
    ):
        ended = erase(sqlite_place, *arguments)
        assert (ended.status, said in ended.stderr) == (status, True), ended.stderr


def test_after_an_interrupt_it_exits_with_1_and_goes_on_when_it_is_resumed(
    sqlite_place: Site, sqlite_engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    live(Steps(sqlite_engine))
    monkeypatch.setattr(erasure, "EVENTS_OF_A_STEP", 2)
    act = erasure.act
    acts = 0

    def interrupted(*arguments: object, **named: object) -> StepDone:
        nonlocal acts
        acts += 1
        if acts == 2:
            raise KeyboardInterrupt
        return act(*arguments, **named)  # type: ignore[arg-type]  # passed on

    with monkeypatch.context() as patch:
        patch.setattr(erasure, "act", interrupted)
        stopped = erase(sqlite_place, *NAMED, "--reason", "asked", "--yes")
    assert stopped.status == 1
    assert stopped.stderr.endswith("stopped after 2; `relay continue --command 2` goes on\n")
    assert rows(sqlite_engine, "SELECT state FROM relay_command WHERE kind = 'erase'") == [{"state": "cancelled"}]
    resumed = sqlite_place.invoke("relay", "continue", "--command", "2", "--reason", "asked", "--yes", **KIM)
    assert (resumed.status, resumed.stderr) == (0, "command 2 (erase) is cancelled\n5 events erased\n")
    assert traces_in(sqlite_engine) == []
