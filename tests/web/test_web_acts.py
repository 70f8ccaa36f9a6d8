"""Acts: a plan is shown, confirmed with a reason, and becomes one command of exactly that."""

from __future__ import annotations

import re
from concurrent.futures import ThreadPoolExecutor
from html import unescape
from typing import Any

import pytest

from inbox.config.model import Config
from inbox.db import erasure
from relay.delivery.outcome import Failed
from relay.delivery.policy import policies
from relay.store.database import Database
from relay.store.operator import commands, execution
from relay.store.operator.commands import Command
from relay.web import plans
from tests.helpers.kinds import ON_BOTH
from tests.helpers.page import OPERATOR, Page
from tests.helpers.relaying import CONFIG, DONE, HOPELESS, Steps, work_of
from tests.helpers.storing import an_event


def form_of(html: str) -> dict[str, str]:
    """Fields of the plan's form, as a browser sends them when nothing is filled in."""
    form = re.search(r'<form class="stacked" method="post".*?</form>', html, re.DOTALL)
    assert form is not None, html
    hidden = re.findall(r'<input type="hidden" name="([^"]*)" value="([^"]*)">', form[0])
    return {name: unescape(value) for name, value in hidden}


def shown(page: Page, path: str) -> dict[str, str]:
    answer = page.get(path)
    assert answer.status_code == 200, answer.text
    return form_of(answer.text)


def fill_with_dead(steps: Steps, number: int, outcome: Failed = HOPELESS, *, first: int = 1) -> None:
    steps.arrive(*(an_event(n, f"u{n}") for n in range(first, first + number)))
    steps.record_all(steps.claim_due(number), outcome)


def asked(database: Database) -> list[dict[str, Any]]:
    from inbox.db import listing  # noqa: PLC0415

    return list(reversed(listing.read_rows(database.engine, "commands", {}, 100)))


def work(database: Database, number: int, config: Config = CONFIG) -> Command:
    """Have a relay carry the command out to its end."""
    while (progress := commands.progress(database, number)) and not progress.has_ended:
        execution.work_on(work_of(database, policies(config), config=config), number)
    assert progress is not None
    return progress


def number_of(location: str) -> int:
    assert location.startswith("/commands/")
    return int(location.rpartition("/")[2])


@ON_BOTH
def test_a_bulk_replay_goes_from_the_filter_to_delivered(page: Page, steps: Steps) -> None:
    fill_with_dead(steps, 12)
    html = page.get("/acts/replay?route=strict").text
    assert "<strong>12</strong> deliveries" in html
    assert "Each goes back to its place in its lane" in html
    answer = page.post("/acts/replay", {**form_of(html), "reason": "the mapping is fixed"})
    assert answer.status_code == 303, answer.text
    number = number_of(answer.headers["location"])
    (row,) = asked(steps.database)
    assert (row["kind"], row["asked_by"], row["reason"], row["matched"]) == (
        "replay",
        "olga",
        "the mapping is fixed",
        12,
    )
    assert "asked" in page.get(f"/commands/{number}").text
    assert work(steps.database, number).affected == 12
    steps.until_nothing_is_due()
    assert steps.states() == []
    assert steps.rows("SELECT count(*) AS n FROM delivery_log WHERE kind = 'delivered'")[0]["n"] == 12
    assert "12 of 12" in page.get(f"/commands/{number}").text


@pytest.mark.parametrize("until", ["", "&until=2100-01-01"])
def test_a_delivery_that_dies_after_the_plan_is_left_alone(page: Page, steps: Steps, until: str) -> None:
    fill_with_dead(steps, 2)
    form = shown(page, f"/acts/replay?route=strict{until}")
    steps.clock.advance(365 * 86_400)  # later than the moment of the plan
    fill_with_dead(steps, 3, first=3)
    answer = page.post("/acts/replay", {**form, "reason": "fixed"})
    assert answer.status_code == 303
    assert work(steps.database, number_of(answer.headers["location"])).affected == 2


def test_a_plan_that_has_grown_is_shown_again_and_nothing_is_done(page: Page, steps: Steps) -> None:
    fill_with_dead(steps, 2)
    form = shown(page, "/acts/cancel?route=strict&state=dead")
    fill_with_dead(steps, 3, first=3)  # at the same moment, so that no time tells them apart
    answer = page.post("/acts/cancel", {**form, "reason": "fixed <b>now</b>"})
    assert answer.status_code == 409
    assert "<strong>5</strong> deliveries" in answer.text
    assert "fixed &lt;b&gt;now&lt;/b&gt;</textarea>" in answer.text
    assert asked(steps.database) == []
    again = page.post("/acts/cancel", {**form_of(answer.text), "reason": "fixed"})
    assert again.status_code == 303


def test_a_plan_that_has_shrunk_was_agreed_to(page: Page, steps: Steps) -> None:
    fill_with_dead(steps, 3)
    form = shown(page, "/acts/replay?route=strict")
    one = page.post("/acts/replay", {**shown(page, "/acts/replay?seq=1"), "reason": "this one first"})
    work(steps.database, number_of(one.headers["location"]))
    answer = page.post("/acts/replay", {**form, "reason": "fixed"})
    assert answer.status_code == 303
    assert work(steps.database, number_of(answer.headers["location"])).affected == 2


@pytest.mark.parametrize("changed", [{"route": "latest"}, {"plan": ""}, {"plan": "x"}, {"cause": "mapping"}])
def test_a_form_with_another_selection_than_was_shown_does_nothing(
    page: Page, steps: Steps, changed: dict[str, str]
) -> None:
    fill_with_dead(steps, 2)
    form = shown(page, "/acts/replay?route=strict")
    assert page.post("/acts/replay", {**form, "reason": "fixed", **changed}).status_code == 409
    assert asked(steps.database) == []


@pytest.mark.parametrize("reason", ["", " \t\n", "…", "-?!", "x" * 2001])
def test_an_act_needs_a_reason_of_bounded_length(page: Page, steps: Steps, reason: str) -> None:
    fill_with_dead(steps, 1)
    html = page.get("/acts/replay?route=strict").text
    assert "<strong>1</strong> delivery<" in html
    assert page.post("/acts/replay", {**form_of(html), "reason": reason}).status_code == 400
    assert asked(steps.database) == []


@ON_BOTH
def test_the_same_form_sent_twice_is_done_once(page: Page, steps: Steps) -> None:
    fill_with_dead(steps, 2)
    form = {**shown(page, "/acts/replay?route=strict"), "reason": "fixed"}
    with ThreadPoolExecutor(4) as threads:
        answers = list(threads.map(lambda _: page.post("/acts/replay", form), range(4)))
    numbers = [number_of(answer.headers["location"]) for answer in answers]
    assert sum(work(steps.database, number).affected for number in numbers) == 2
    assert page.post("/acts/replay", form).status_code == 409  # once it has been carried out


def test_everything_has_to_be_confirmed(page: Page, steps: Steps) -> None:
    fill_with_dead(steps, 2)
    html = page.get("/acts/replay").text
    assert "I mean everything" in html
    form = {**form_of(html), "reason": "fixed"}
    assert page.post("/acts/replay", form).status_code == 400
    assert asked(steps.database) == []
    answer = page.post("/acts/replay", {**form, "everything": "true"})
    assert answer.status_code == 303
    assert work(steps.database, number_of(answer.headers["location"])).affected == 2


@pytest.mark.parametrize(
    ("path", "says"),
    [
        ("/acts/replay?route=strct", "there is no route"),
        ("/acts/replay?rout=strict", "there is no filter"),
        ("/acts/replay?seq=-1", "seq"),
        ("/acts/replay?backfill=true", "a backfill of which route"),
        ("/acts/replay?since=2026-02-01&until=2026-01-01", "exchange the two"),
        ("/acts/replay?error_sha256=abc", "error_sha256"),
        ("/acts/pause?route=nothing", "there is no route"),
        ("/acts/pause", "name one of"),
        ("/acts/sweep?source=trivore", "has no sweeps"),
        ("/acts/sweep", "source"),
        ("/acts/prune?kinds=payload", "there is no kind"),
        ("/acts/erase?source=x&entity_type=USER&entity_id=u1", "there is no source"),
    ],
)
def test_a_selection_that_makes_no_sense_is_explained(page: Page, path: str, says: str) -> None:
    answer = page.get(path)
    assert answer.status_code == 400
    assert says in unescape(answer.text)


def test_pause_and_resume_say_what_they_hold_back(page: Page, steps: Steps) -> None:
    steps.arrive(*(an_event(n, f"u{n}") for n in range(1, 4)))
    html = page.get("/acts/pause?destination=audit").text
    assert "<dt>open deliveries behind it</dt><dd>3" in html
    form = {**form_of(html), "reason": "maintenance"}
    answer = page.post("/acts/pause", form)
    assert work(steps.database, number_of(answer.headers["location"])).answer == "paused"
    assert "by olga: maintenance" in page.get("/acts/pause?destination=audit").text
    assert "by olga: maintenance" in page.get("/acts/cancel?route=strict").text
    answer = page.post("/acts/resume", {**shown(page, "/acts/resume?destination=audit"), "reason": "over"})
    assert work(steps.database, number_of(answer.headers["location"])).answer == "resumed"
    assert page.post("/acts/pause", form).status_code == 303


def test_an_entity_is_erased_only_when_it_is_typed_again(page: Page, steps: Steps) -> None:
    steps.arrive(an_event(1, "u 1&x"))
    steps.attempt(DONE)
    path = "/acts/erase?source=trivore&entity_type=USER&entity_id=u+1%26x"
    html = page.get(path).text
    assert "<dt>payloads</dt><dd>1" in html
    form = {**form_of(html), "reason": "a request of the person"}
    assert page.post("/acts/erase", form).status_code == 400
    assert page.post("/acts/erase", {**form, "again": "u 1"}).status_code == 400
    assert page.post("/acts/erase", {**form, "again": "u 1&x", "reason": "asked for u 1&x"}).status_code == 400
    answer = page.post("/acts/erase", {**form, "again": "u 1&x"})
    assert answer.status_code == 303, answer.text
    assert work(steps.database, number_of(answer.headers["location"])).state == "done"
    assert steps.rows("SELECT count(*) AS n FROM inbox_payload")[0]["n"] == 0


@ON_BOTH
def test_the_plan_of_an_erasure_is_of_the_newest_events_and_the_erasure_takes_all(
    page: Page, steps: Steps, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(erasure, "COUNTED_EVENTS", 2)
    steps.arrive(*(an_event(n) for n in range(1, 4)))
    for _ in range(3):
        steps.attempt(DONE)
    html = page.get("/acts/erase?source=trivore&entity_type=USER&entity_id=u1").text
    assert "<strong>2+</strong>" in html
    assert "newest events" in html
    answer = page.post("/acts/erase", {**form_of(html), "reason": "asked by the person", "again": "u1"})
    assert answer.status_code == 303, answer.text
    (row,) = asked(steps.database)
    assert work(steps.database, row["id"]).affected == 3


def test_a_plan_over_many_deliveries_is_bounded(page: Page, steps: Steps, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plans, "MOST_COUNTED", 500)
    fill_with_dead(steps, 400)
    fill_with_dead(steps, 300, first=401)
    html = page.get("/acts/replay?route=strict").text
    assert "<strong>500+</strong>" in html
    answer = page.post("/acts/replay", {**form_of(html), "reason": "fixed"})
    assert answer.status_code == 303
    (row,) = asked(steps.database)
    assert row["matched"] is None  # nobody knows
    assert work(steps.database, row["id"]).affected == 700


def test_the_api_plans_and_asks(page: Page, steps: Steps) -> None:
    fill_with_dead(steps, 2)
    plan = page.json("/api/v1/acts/replay?route=strict")
    assert (plan["count"], plan["is_whole"], plan["groups"][0]["cause"]) == (2, True, "mapping")
    body = {"route": "strict", "plan": plan["plan"], "reason": "by a script"}
    answer = page.post("/api/v1/acts/replay", json=body)
    assert answer.status_code == 202, answer.text
    assert answer.headers["location"] == answer.json()["href"] == f"/api/v1/commands/{answer.json()['id']}"
    again = page.post("/api/v1/acts/replay", json=body)
    assert page.json(answer.headers["location"])["command"]["reason"] == "by a script"
    numbers = [each.json()["id"] for each in (answer, again)]
    assert [work(steps.database, number).affected for number in numbers] == [2, 0], "sent twice, it is done once"


def test_a_plan_of_named_events_has_their_causes_and_errors(page: Page, steps: Steps) -> None:
    fill_with_dead(steps, 1)
    seq = page.json("/api/v1/acts/replay?route=strict")["deliveries"][0]["seq"]
    named = page.json(f"/api/v1/acts/replay?seq={seq}")
    assert named["groups"][0]["cause"] == named["deliveries"][0]["cause"] == "mapping"
    assert named["deliveries"][0]["error"]


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"[]",
        b"{",
        b'"x"',
        b'{"route": "strict"}',
        b'{"route": "strict", "reason": ""}',
        b'{"route": "strict", "reason": "  "}',
        b'{"route": 7, "reason": "x"}',
        b'{"seq": "1", "reason": "x"}',
        b'{"since": 5, "reason": "x"}',
        b'{"since": "soon", "reason": "x"}',
        b'{"rout": "strict", "reason": "x"}',
        b'{"route": "str\\u0000ict", "reason": "x"}',
        b'{"route": "strict", "reason": "a\\u0000b"}',
        b'{"reason": "no condition"}',
        b'{"route": "strict", "reason": "\xff"}',
        pytest.param(b"[" * 30_000, id="nested too deeply"),
    ],
)
def test_a_wrong_body_is_a_problem_and_no_command(page: Page, steps: Steps, body: bytes) -> None:
    fill_with_dead(steps, 1)
    answer = page._send("POST", "/api/v1/acts/replay", OPERATOR, {"Accept": "application/json"}, {"data": body})
    assert answer.status_code == 400, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    assert asked(steps.database) == []


def test_a_form_that_is_too_large_or_no_form_is_refused(page: Page) -> None:
    assert page.post("/acts/replay", {"reason": "x" * 300_000}).status_code == 413
    assert page.post("/acts/replay", json={"reason": "x"}).status_code == 400
