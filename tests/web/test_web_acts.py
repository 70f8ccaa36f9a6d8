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

import pytest
import requests
from sqlalchemy import Engine, text

from inbox.config.model import Config
from inbox.db import engine as engines
from inbox.db import erasure
from relay.accounts import Actor
from relay.web import plans
from tests.helpers import databases
from tests.helpers.databases import ON_BOTH
from tests.helpers.page import OPERATOR, Page
from tests.helpers.relaying import DONE, Steps
from tests.helpers.storing import an_event
from tests.helpers.waiting import stand_still
from tests.web.acting import asked, carried_out, confirm, fill_with_dead, form_of, shown

OTHER = Actor("otto", "operator")
DELIVERED = "SELECT count(*) AS n FROM delivery_log WHERE kind = 'delivered'"


def count_of(html: str) -> str:
    """The number that a plan begins with."""
    return str(re.findall(r"<strong>([\d+]+)</strong>", html)[0])


@ON_BOTH
def test_a_bulk_replay_goes_from_the_filter_to_delivered(page: Page, steps: Steps) -> None:
    fill_with_dead(steps, 12)
    assert count_of(page.get("/acts/replay?route=strict").text) == "12"
    answer = confirm(page, "replay?route=strict", reason="the mapping is fixed")
    (row,) = asked(steps)
    assert [row[name] for name in ("kind", "asked_by", "reason", "matched")] == [
        "replay", "olga", "the mapping is fixed", 12,
    ]  # fmt: skip
    assert carried_out(steps, answer).affected == 12
    steps.until_nothing_is_due()
    assert (steps.states(), steps.rows(DELIVERED)[0]["n"]) == ([], 12)
    assert "12 of 12" in page.get(answer.headers["location"]).text


@pytest.mark.parametrize(
    "act",
    [
        "replay?route=strict",
        "replay?route=strict&until=2100-01-01",
        "cancel?route=strict&state=dead",
        "cancel?route=strict&state=dead&until=2100-01-01",
    ],
)
def test_a_delivery_that_dies_after_the_plan_is_left_alone(page: Page, steps: Steps, act: str) -> None:
    fill_with_dead(steps, 2)
    form = shown(page, act)
    steps.clock.advance(365 * 86_400)  # later than the moment of the plan
    fill_with_dead(steps, 3, first=3)
    assert carried_out(steps, page.post(f"/acts/{act.partition('?')[0]}", form)).affected == 2


def test_a_plan_that_has_grown_is_shown_again_and_nothing_is_done(page: Page, steps: Steps) -> None:
    fill_with_dead(steps, 2)
    form = shown(page, "cancel?route=strict&state=dead")
    fill_with_dead(steps, 3, first=3)  # at the same moment, so that no time tells them apart
    answer = page.post("/acts/cancel", form)
    assert (answer.status_code, count_of(answer.text), reason_of(answer)) == (409, "5", "fixed <b>")
    assert asked(steps) == []
    assert page.post("/acts/cancel", form_of(answer.text)).status_code == 303


UNZONED = base64.urlsafe_b64encode(b'{"digest": "x", "as_of": "2026-01-01T00:00:00"}').decode()


@pytest.mark.parametrize(
    "changed",
    [{"route": "latest"}, {"cause": "mapping"}, *({"plan": plan} for plan in ("", "x", "é", "eyJkaWdlc3QiOiAxfQ==", UNZONED))],
)  # fmt: skip
def test_a_form_with_another_selection_than_was_shown_does_nothing(
    page: Page, steps: Steps, changed: dict[str, str]
) -> None:
    fill_with_dead(steps, 2)
    assert confirm(page, "replay?route=strict", **changed).status_code == 409
    assert asked(steps) == []


@pytest.mark.parametrize("reason", ["", " \t\n", "…", "-?!", "x" * 2001])
def test_an_act_a_stop_and_a_reveal_need_a_reason_of_bounded_length(page: Page, steps: Steps, reason: str) -> None:
    fill_with_dead(steps, 2)
    number = carried_out(steps, confirm(page, "replay?seq=1")).id
    assert confirm(page, "replay?route=strict", reason=reason).status_code == 400
    for path, order in (("acts/replay", {"seq": 2}), ("acts/stop", {"command": number}), ("events/1/reveal", {})):
        assert page.post(f"/{path}", {**order, "reason": reason}).status_code == 400, path
        assert page.post(f"/api/v1/{path}", json={**order, "reason": reason}).status_code == 400, path
    assert len(asked(steps)) == 1
    assert steps.rows("SELECT * FROM payload_reveal") == []


@ON_BOTH
def test_one_plan_that_two_operators_send_twice_is_done_once(page: Page, steps: Steps) -> None:
    fill_with_dead(steps, 5)
    forms = {actor: shown(page, "replay?route=strict", actor) for actor in (OPERATOR, OTHER)}

    def send(actor: Actor) -> requests.Response:
        with contextlib.closing(Page(page.url)) as beside:
            return beside.post("/acts/replay", forms[actor], actor)

    with ThreadPoolExecutor(4) as threads:
        answers = list(threads.map(send, (OPERATOR, OTHER) * 2))
    assert sum(carried_out(steps, answer).affected for answer in answers) == 5
    assert send(OTHER).status_code == 409, "once it has been carried out"
    steps.until_nothing_is_due()
    assert steps.rows(DELIVERED)[0]["n"] == 5


def test_everything_has_to_be_confirmed(page: Page, steps: Steps) -> None:
    fill_with_dead(steps, 2)
    assert confirm(page, "replay").status_code == 400
    assert asked(steps) == []
    assert carried_out(steps, confirm(page, "replay", everything="true")).affected == 2


@pytest.mark.parametrize(
    ("path", "says"),
    [
        ("replay?route=strct", "there is no route"),
        ("replay?rout=strict", "there is no filter"),
        ("replay?seq=-1", "seq"),
        ("replay?backfill=true", "a backfill of which route"),
        ("replay?since=2026-02-01&until=2026-01-01", "swap the two"),
        ("replay?error_sha256=abc", "error_sha256"),
        ("pause?route=nothing", "there is no route"),
        ("pause", "name one of"),
        ("sweep?source=trivore", "has no sweeps"),
        ("sweep", "source"),
        ("prune?kinds=payload", "there is no kind"),
        ("erase?source=x&entity_type=USER&entity_id=u1", "there is no source"),
    ],
)
def test_a_selection_that_makes_no_sense_is_explained(page: Page, path: str, says: str) -> None:
    answer = page.get(f"/acts/{path}")
    assert (answer.status_code, says in unescape(answer.text)) == (400, True), answer.text


def test_pause_and_resume_say_what_they_hold_back(page: Page, steps: Steps) -> None:
    steps.arrive(*(an_event(n, f"u{n}") for n in range(1, 4)))
    assert "<dt>open deliveries behind it</dt><dd>3" in page.get("/acts/pause?destination=audit").text
    assert carried_out(steps, confirm(page, "pause?destination=audit", reason="maintenance")).answer == "paused"
    for act in ("pause?destination=audit", "cancel?route=strict"):
        assert "by olga: maintenance" in page.get(f"/acts/{act}").text
    assert carried_out(steps, confirm(page, "resume?destination=audit")).answer == "resumed"


def test_an_entity_is_erased_only_when_it_is_typed_again(page: Page, steps: Steps) -> None:
    steps.arrive(an_event(1, "u 1&x"))
    steps.attempt(DONE)
    path = "erase?source=trivore&entity_type=USER&entity_id=u+1%26x"
    assert "<dt>payloads</dt><dd>1" in page.get(f"/acts/{path}").text
    for typed in ({}, {"again": "u 1"}, {"again": "u 1&x", "reason": "asked for u 1&x"}):
        assert confirm(page, path, **typed).status_code == 400
    assert carried_out(steps, confirm(page, path, again="u 1&x")).state == "done"
    assert steps.rows("SELECT count(*) AS n FROM inbox_payload")[0]["n"] == 0


@ON_BOTH
def test_the_plan_of_an_erasure_is_of_the_newest_events_and_the_erasure_takes_all(
    page: Page, steps: Steps, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(erasure, "COUNTED_EVENTS", 2)
    steps.arrive(*(an_event(n) for n in range(1, 4)))
    for _ in range(3):
        steps.attempt(DONE)
    path = "erase?source=trivore&entity_type=USER&entity_id=u1"
    assert count_of(page.get(f"/acts/{path}").text) == "2+"
    assert carried_out(steps, confirm(page, path, again="u1")).affected == 3


def test_a_plan_over_many_deliveries_is_bounded(page: Page, steps: Steps, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plans, "MOST_COUNTED", 500)
    fill_with_dead(steps, 400)
    fill_with_dead(steps, 101, first=401)
    assert count_of(page.get("/acts/replay?route=strict").text) == "500+"
    answer = confirm(page, "replay?route=strict")
    assert asked(steps)[0]["matched"] is None  # nobody knows
    assert carried_out(steps, answer).affected == 501


def test_the_api_plans_and_asks(page: Page, steps: Steps) -> None:
    fill_with_dead(steps, 2)
    plan = page.json("/api/v1/acts/replay?route=strict")
    assert (plan["count"], plan["is_whole"], plan["groups"][0]["cause"]) == (2, True, "mapping")
    named = page.json(f"/api/v1/acts/replay?seq={plan['deliveries'][0]['seq']}")
    assert named["groups"][0]["cause"] == named["deliveries"][0]["cause"] == "mapping"
    assert named["deliveries"][0]["error"]
    body = {"route": "strict", "plan": plan["plan"], "reason": "by a script"}
    answers = [page.post("/api/v1/acts/replay", json=body) for _ in range(2)]
    assert answers[0].headers["location"] == answers[0].json()["href"] == "/api/v1/commands/1"
    assert page.json("/api/v1/commands/1")["command"]["reason"] == "by a script"
    assert [carried_out(steps, answer).affected for answer in answers] == [2, 0], "sent twice, it is done once"


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"[]",
        b"{",
        b'{"route": "strict"}',
        b'{"route": 7, "reason": "x"}',
        b'{"seq": "1", "reason": "x"}',
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
    answer = page.post("/api/v1/acts/replay", headers={"Accept": "application/json"}, data=body)
    assert (answer.status_code, answer.headers["content-type"]) == (400, "application/problem+json"), answer.text
    assert asked(steps) == []


def test_a_form_that_is_too_large_or_no_form_is_refused(page: Page) -> None:
    assert page.post("/acts/replay", {"reason": "x" * 300_000}).status_code == 413
    assert page.post("/acts/replay", json={"reason": "x"}).status_code == 400


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
@pytest.mark.usefixtures("soon_told")
def test_an_act_while_another_program_writes_is_told_in_time_and_keeps_its_form(page: Page, steps: Steps) -> None:
    fill_with_dead(steps, 2)
    form = shown(page, "replay?route=strict")
    with held_by_another(steps.database.engine):
        began = time.monotonic()
        answer = page.post("/acts/replay", form)
        assert time.monotonic() - began < 20, "it does not wait for the other"
    assert (answer.status_code, answer.headers["Retry-After"], reason_of(answer)) == (503, "5", "fixed <b>")
    assert asked(steps) == []
    assert page.post("/acts/replay", form_of(answer.text)).status_code == 303
    assert len(asked(steps)) == 1


@ON_BOTH
def test_an_act_on_a_database_that_is_gone_keeps_its_form(page: Page, steps: Steps, database_url: str) -> None:
    fill_with_dead(steps, 2)
    number = carried_out(steps, confirm(page, "replay?route=strict&seq=1")).id
    form = shown(page, "replay?seq=2")
    with databases.gone(database_url):
        answer = page.post("/acts/replay", form)
        assert (answer.status_code, answer.headers["Retry-After"], reason_of(answer)) == (503, "5", "fixed <b>")
        assert "tries again by itself" not in answer.text
        if databases.is_postgres(database_url):  # whoever has the SQLite file open still writes
            stop = page.post("/acts/stop", {"command": number, "reason": "wait <b>"})
            assert (stop.status_code, reason_of(stop)) == (503, "wait <b>")
            assert 'action="/acts/stop"' in stop.text
    steps.database.engine.dispose()  # its connections are broken
    assert len(asked(steps)) == 1
    assert form_of(answer.text)["plan"] == form["plan"]
    again = page.post("/acts/replay", form_of(answer.text))
    if again.status_code == 503:  # the connection that writes broke, too, and shows it at its next use
        again = page.post("/acts/replay", form_of(again.text))
    assert again.status_code == 303, again.text
    assert len(asked(steps)) == 2


def test_a_delivery_that_was_delivered_since_the_plan_is_not_cancelled(page: Page, steps: Steps) -> None:
    steps.arrive(*(an_event(n, f"u{n}") for n in range(1, 4)))
    form = shown(page, "cancel?route=strict")
    steps.record_all(steps.claim_due(1), DONE)
    assert carried_out(steps, page.post("/acts/cancel", form)).affected == 2
    assert page.post("/acts/cancel", form).status_code == 409, "there is nothing to cancel"


def test_a_replay_takes_up_nothing_that_has_ended_since_its_plan(page: Page, steps: Steps) -> None:
    fill_with_dead(steps, 2)
    form = shown(page, "replay?seqs=2,1&route=strict")
    assert carried_out(steps, confirm(page, "cancel?seq=2&state=dead")).affected == 1
    assert carried_out(steps, page.post("/acts/replay", form)).affected == 1, "what was cancelled stays"
    assert carried_out(steps, confirm(page, "replay?seqs=2,1&route=strict")).affected == 1


def test_a_replay_of_what_another_has_replayed_since_asks_again(page: Page, steps: Steps) -> None:
    steps.arrive(an_event(1, "u1"))
    steps.until_nothing_is_due()
    steps.clock.advance(1)
    mine, others = (shown(page, "replay?seq=1&route=strict") for _ in range(2))
    assert carried_out(steps, page.post("/acts/replay", others)).affected == 1
    steps.until_nothing_is_due()
    assert page.post("/acts/replay", mine).status_code == 409
