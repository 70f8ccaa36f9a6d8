"""The screen of commands: who asked for what, why, and how far it is."""

from __future__ import annotations

import pytest

from relay.operations.asks import Selection
from relay.store.operator import commands, execution
from tests.helpers.page import Page
from tests.helpers.relaying import HOPELESS, Steps
from tests.helpers.storing import an_event


def ask(steps: Steps, number: int = 1) -> list[int]:
    return [
        commands.ask(steps.database, "replay", Selection(route="strict"), who="kim", why=f"reason {n}", planned=250)
        for n in range(number)
    ]


def test_a_command_says_how_far_it_is(page: Page, steps: Steps) -> None:
    steps.arrive(*(an_event(n, f"u{n}") for n in range(1, 251)))
    steps.record_all(steps.claim_due(250), HOPELESS)
    (number,) = ask(steps)
    execution.work_on(steps.work, number)
    assert "200 of 250 changed so far" in page.get(f"/commands/{number}").text
    assert '<progress class="" aria-label="progress" max="250" value="200">' in page.get(f"/commands/{number}").text


def test_a_command_is_stopped_by_name_and_goes_on(page: Page, steps: Steps) -> None:
    (number,) = ask(steps)
    assert "Stop</button>" in page.get(f"/commands/{number}").text
    why = {"command": number, "reason": " the wrong route "}
    answer = page.post("/acts/stop", why)
    assert (answer.status_code, answer.headers["location"]) == (303, f"/commands/{number}")
    stopped = page.json(f"/commands/{number}.json")["command"]
    assert (stopped["state"], stopped["answer"]) == ("cancelled", "stopped by olga: the wrong route")
    assert "Continue</button>" in page.get(f"/commands/{number}").text
    assert page.post("/acts/continue", why).status_code == 303
    assert page.json(f"/api/v1/commands/{number}")["command"]["state"] == "running"
    again = page.post("/acts/continue", why)
    assert again.status_code == 409
    assert "only one that was stopped goes on" in again.text
    assert "> the wrong route </textarea>" in again.text
    rows = page.json("/commands.json")["rows"]
    assert [(row["kind"], row["asked_by"], row["reason"]) for row in rows[:2]] == [
        ("continue", "olga", "the wrong route"),
        ("stop", "olga", "the wrong route"),
    ]


@pytest.mark.parametrize("reason", ["", " ", "…", "?!", "x" * 2001])
def test_a_stop_needs_a_reason(page: Page, steps: Steps, reason: str) -> None:
    (number,) = ask(steps)
    assert page.post("/acts/stop", {"command": number, "reason": reason}).status_code == 400
    assert page.post("/api/v1/acts/stop", json={"command": number, "reason": reason}).status_code == 400
    assert page.json(f"/commands/{number}.json")["command"]["state"] == "asked"


def test_the_api_stops_what_is_there_and_open(page: Page, steps: Steps) -> None:
    (number,) = ask(steps)
    order = {"command": number, "reason": "the wrong route"}
    for act in ("stop", "continue"):
        answer = page.post(f"/api/v1/acts/{act}", json=order)
        assert (answer.status_code, answer.headers["location"]) == (202, f"/api/v1/commands/{number}")
    execution.work_on(steps.work, number)
    ended = page.post("/api/v1/acts/stop", json=order)
    assert (ended.status_code, "has ended" in ended.json()["detail"]) == (409, True)
    missing = page.post("/api/v1/acts/stop", json={**order, "command": 99})
    assert (missing.status_code, missing.json()["detail"]) == (404, "there is no command 99")


def test_a_number_that_is_none_is_not_there(page: Page) -> None:
    for path in ("/commands/7", "/commands/x", "/commands/99999999999999999999"):
        assert page.get(path).status_code == 404, path
    assert page.post("/acts/stop", {"command": 7, "reason": "x y"}).status_code == 404
