"""Acts: a plan is shown, confirmed with a reason, and becomes one command of exactly that, beside others who act, too."""

from __future__ import annotations

import base64
import contextlib
import re
import sqlite3
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from html import unescape
from typing import Any

import pytest
import requests
from sqlalchemy import Engine, text

from inbox.config.model import Config
from inbox.db import engine as engines
from inbox.db import erasure
from relay.accounts import Actor
from relay.delivery.outcome import Failed
from relay.delivery.policy import policies
from relay.store.database import Database
from relay.store.operator import commands, execution
from relay.store.operator.commands import Command
from relay.web import plans
from tests.helpers import databases
from tests.helpers.databases import ON_BOTH
from tests.helpers.page import OPERATOR, Page
from tests.helpers.relaying import CONFIG, DONE, HOPELESS, Steps, work_of
from tests.helpers.storing import an_event
from tests.helpers.waiting import stand_still


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


@pytest.mark.parametrize(
    "act", ["replay?route=strict", "replay?route=strict&until=2100-01-01", "cancel?route=strict&state=dead"]
)
def test_a_delivery_that_dies_after_the_plan_is_left_alone(page: Page, steps: Steps, act: str) -> None:
    fill_with_dead(steps, 2)
    form = shown(page, f"/acts/{act}")
    steps.clock.advance(365 * 86_400)  # later than the moment of the plan
    fill_with_dead(steps, 3, first=3)
    answer = page.post(f"/acts/{act.partition('?')[0]}", {**form, "reason": "fixed"})
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


@pytest.mark.parametrize("written", ["-", "é", '{"digest": 1}', '{"digest": "x", "as_of": "2026-01-01T00:00:00"}'])
def test_a_plan_that_was_not_written_here_is_none(written: str) -> None:
    """A time without its zone can't be compared with another."""
    sent = base64.urlsafe_b64encode(written.encode()).decode() if "{" in written else written
    assert plans.Agreed.parse(sent) is None


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


OTHER = Actor("otto", "operator")


def reason_of(answer: requests.Response) -> str:
    """The reason that the form on the page has."""
    found = re.search(
        r'<textarea name="reason"[^>]*>(.*?)</textarea>|<input name="reason" value="([^"]*)"', answer.text
    )
    assert found is not None, answer.text
    return unescape(found[1] or found[2])


@contextlib.contextmanager
def held_by_another(engine: Engine) -> Iterator[None]:
    """Another program writes, and does not end."""
    if engine.dialect.name == "postgresql":
        with engine.begin() as connection:
            stand_still(connection)
            connection.execute(text("LOCK TABLE relay_command IN EXCLUSIVE MODE"))
            yield
        return
    with contextlib.closing(sqlite3.connect(str(engine.url.database), isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        yield
        other.execute("ROLLBACK")


@pytest.fixture
def soon_told(page_config: Config, monkeypatch: pytest.MonkeyPatch) -> Config:
    """Waits for locks end at once."""
    monkeypatch.setitem(engines.PINNED, "lock_timeout", "50ms")
    monkeypatch.setattr(engines, "SQLITE_WAIT_SECONDS", 0.05)
    return page_config


@ON_BOTH
def test_two_operators_who_confirm_one_plan_replay_each_delivery_once(page: Page, steps: Steps) -> None:
    fill_with_dead(steps, 5)
    form = {**shown(page, "/acts/replay?route=strict"), "reason": "fixed"}
    other = {**form_of(page.get("/acts/replay?route=strict", actor=OTHER).text), "reason": "fixed"}
    with ThreadPoolExecutor(2) as threads:
        first = threads.submit(page.post, "/acts/replay", form, OPERATOR)
        with contextlib.closing(Page(page.url)) as beside:
            second = beside.post("/acts/replay", other, OTHER)
    numbers = [number_of(answer.headers["location"]) for answer in (first.result(), second)]
    assert sum(work(steps.database, number).affected for number in numbers) == 5
    steps.until_nothing_is_due()
    assert steps.rows("SELECT count(*) AS n FROM delivery_log WHERE kind = 'delivered'")[0]["n"] == 5


def test_a_delivery_made_after_the_plan_is_not_cancelled(page: Page, steps: Steps) -> None:
    steps.arrive(*(an_event(n, f"u{n}") for n in range(1, 4)))
    form = {**shown(page, "/acts/cancel?route=strict"), "reason": "not wanted"}
    steps.record_all(steps.claim_due(1), DONE)
    answer = page.post("/acts/cancel", form)
    assert answer.status_code == 303, answer.text
    assert work(steps.database, number_of(answer.headers["location"])).affected == 2
    nothing = page.post("/acts/cancel", form)
    assert (nothing.status_code, "nothing to cancel" in nothing.text) == (409, True)


@ON_BOTH
@pytest.mark.usefixtures("soon_told")
def test_an_act_while_another_program_writes_is_told_in_time_and_keeps_its_form(page: Page, steps: Steps) -> None:
    fill_with_dead(steps, 2)
    form = {**shown(page, "/acts/replay?route=strict"), "reason": "fixed <b>"}
    with held_by_another(steps.database.engine):
        began = time.monotonic()
        answer = page.post("/acts/replay", form)
        assert time.monotonic() - began < 20, "it does not wait for the other"
        assert (answer.status_code, answer.headers["Retry-After"]) == (503, "5")
    assert reason_of(answer) == "fixed <b>"
    assert asked(steps.database) == []
    again = page.post("/acts/replay", {**form_of(answer.text), "reason": reason_of(answer)})
    assert again.status_code == 303
    assert len(asked(steps.database)) == 1


@ON_BOTH
def test_an_act_on_a_database_that_is_gone_keeps_its_form(page: Page, steps: Steps, database_url: str) -> None:
    fill_with_dead(steps, 2)
    form = {**shown(page, "/acts/replay?route=strict"), "reason": "fixed <b>"}
    stopping = page.post("/acts/replay", form).headers["location"]
    form = {**shown(page, "/acts/replay?seq=2"), "reason": "fixed <b>"}
    with databases.gone(database_url):
        answer = page.post("/acts/replay", form)
        assert (answer.status_code, answer.headers["Retry-After"]) == (503, "5")
        assert "tries again by itself" not in answer.text
        assert "send the form again" in answer.text
        if databases.is_postgres(database_url):  # whoever has the SQLite file open still writes
            stop = page.post("/acts/stop", {"command": number_of(stopping), "reason": "wait <b>"})
            assert (stop.status_code, reason_of(stop)) == (503, "wait <b>")
            assert 'action="/acts/stop"' in stop.text
    steps.database.engine.dispose()  # its connections are broken
    assert len(asked(steps.database)) == 1
    kept = form_of(answer.text)
    assert (kept["plan"], reason_of(answer)) == (form["plan"], "fixed <b>")
    again = page.post("/acts/replay", {**kept, "reason": reason_of(answer)})
    if again.status_code == 503:  # the connection that writes broke, too, and shows it at its next use
        assert "send the form again" in again.text
        again = page.post("/acts/replay", {**form_of(again.text), "reason": reason_of(again)})
    assert again.status_code == 303, again.text
    assert len(asked(steps.database)) == 2


def test_a_replay_takes_up_nothing_that_has_ended_since_its_plan(page: Page, steps: Steps) -> None:
    fill_with_dead(steps, 2)
    form = {**shown(page, "/acts/replay?seqs=2,1&route=strict"), "reason": "fixed"}
    cancel = page.post("/acts/cancel", {**shown(page, "/acts/cancel?seq=2&state=dead"), "reason": "not this one"})
    assert work(steps.database, number_of(cancel.headers["location"])).affected == 1
    answer = page.post("/acts/replay", form)
    assert answer.status_code == 303
    assert work(steps.database, number_of(answer.headers["location"])).affected == 1, "what was cancelled stays"
    again = page.post("/acts/replay", {**shown(page, "/acts/replay?seqs=2,1&route=strict"), "reason": "this one, too"})
    assert work(steps.database, number_of(again.headers["location"])).affected == 1


def test_a_replay_of_what_another_has_replayed_since_asks_again(page: Page, steps: Steps) -> None:
    steps.arrive(an_event(1, "u1"))
    steps.until_nothing_is_due()
    steps.clock.advance(1)
    mine, others = ({**shown(page, "/acts/replay?seq=1&route=strict"), "reason": "lost there"} for _ in range(2))
    assert work(steps.database, number_of(page.post("/acts/replay", others).headers["location"])).affected == 1
    steps.until_nothing_is_due()
    assert page.post("/acts/replay", mine).status_code == 409
