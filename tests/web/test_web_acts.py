"""Acts: a plan is shown, confirmed with a reason, and becomes exactly one command, even if others act at the same time."""

from __future__ import annotations

import base64
import contextlib
import re
import sqlite3
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from html import unescape

import pytest
import requests
from sqlalchemy import Engine, text

from inbox.clock import SystemClock
from inbox.config.model import Config
from inbox.db import engine as engines
from inbox.db import erasure
from relay.accounts import Actor
from relay.web import plans
from tests.helpers import databases
from tests.helpers.databases import ON_BOTH
from tests.helpers.page import OPERATOR, Page
from tests.helpers.relaying import DONE, HOPELESS, Steps
from tests.helpers.storing import an_event
from tests.helpers.waiting import stand_still
from tests.web.acting import confirm, execute, fill_with_dead, form_of, list_commands, open_plan

OTHER = Actor("otto", "operator")
DELIVERED = "SELECT count(*) AS n FROM delivery_log WHERE kind = 'delivered'"


def count_of(html: str) -> str:
    """Return the number at the beginning of a plan."""
    return str(re.findall(r"<strong>([\d+]+)</strong>", html)[0])


@ON_BOTH
def test_a_replay_reports_what_became_of_exactly_its_deliveries(page: Page, steps: Steps) -> None:
    steps.clock.moment = SystemClock().now() - timedelta(minutes=1)
    fill_with_dead(steps, 4)
    answer = confirm(page, "replay?seqs=1,2,3", reason="the mapping is fixed")
    (row,) = list_commands(steps)
    assert [row[name] for name in ("kind", "asked_by", "reason", "matched")] == [
        "replay", "olga", "the mapping is fixed", 3,
    ]  # fmt: skip
    steps.advance(120)
    execute(steps, answer)
    for outcome in (DONE, HOPELESS):
        steps.attempt(outcome)
    found = page.json("/commands/1.json")
    assert (found["says"], found["outcome"]) == (
        "1 delivered, 1 failed, 1 open",
        {"delivered": 1, "failed": 1, "open": 1, "other": {}},
    )
    assert [row["seq"] for row in page.json("/deliveries.json?command=1&state=dead")["rows"]] == [2]
    steps.arrive(an_event(5, "u5"))
    steps.attempt(DONE)
    assert [row["seq"] for row in page.json("/deliveries.json?command=1")["rows"]] == [3, 2, 1]


@pytest.mark.parametrize(
    "act",
    [
        "replay?route=strict",
        "replay?route=strict&until=2100-01-01",
        "cancel?route=strict&state=dead",
        "cancel?route=strict&state=dead&until=2100-01-01",
    ],
)
def test_a_delivery_that_dies_after_the_plan_is_skipped(page: Page, steps: Steps, act: str) -> None:
    fill_with_dead(steps, 2)
    form = open_plan(page, act)
    steps.clock.advance(365 * 86_400)  # later than the plan
    fill_with_dead(steps, 3, first=3)
    assert execute(steps, page.post(f"/acts/{act.partition('?')[0]}", form)).affected == 2


def test_a_plan_that_has_grown_is_shown_again_and_nothing_is_done(page: Page, steps: Steps) -> None:
    fill_with_dead(steps, 2)
    form = open_plan(page, "cancel?route=strict&state=dead")
    fill_with_dead(steps, 3, first=3)  # at the same time as the others
    answer = page.post("/acts/cancel", form)
    assert (answer.status_code, count_of(answer.text), reason_of(answer)) == (409, "5", "fixed <b>")
    assert list_commands(steps) == []
    assert page.post("/acts/cancel", form_of(answer.text)).status_code == 303


UNZONED = base64.urlsafe_b64encode(b'{"digest": "x", "as_of": "2026-01-01T00:00:00"}').decode()


@pytest.mark.parametrize(
    "changed",
    [{"route": "latest"}, {"cause": "mapping"}, *({"plan": plan} for plan in ("", "x", "é", "eyJkaWdlc3QiOiAxfQ==", UNZONED))],
)  # fmt: skip
def test_a_form_with_a_changed_selection_does_nothing(page: Page, steps: Steps, changed: dict[str, str]) -> None:
    fill_with_dead(steps, 2)
    assert confirm(page, "replay?route=strict", **changed).status_code == 409
    assert list_commands(steps) == []


@pytest.mark.parametrize("reason", ["", " \t\n", "…", "-?!", "x" * 2001])
def test_an_act_a_stop_and_a_reveal_need_a_reason_of_bounded_length(page: Page, steps: Steps, reason: str) -> None:
    fill_with_dead(steps, 2)
    number = execute(steps, confirm(page, "replay?seq=1")).id
    assert confirm(page, "replay?route=strict", reason=reason).status_code == 400
    for path, order in (("acts/replay", {"seq": 2}), ("acts/stop", {"command": number}), ("events/1/reveal", {})):
        assert page.post(f"/{path}", {**order, "reason": reason}).status_code == 400, path
        assert page.post(f"/api/v1/{path}", json={**order, "reason": reason}).status_code == 400, path
    assert len(list_commands(steps)) == 1
    assert steps.rows("SELECT * FROM payload_reveal") == []


@ON_BOTH
def test_one_plan_that_two_operators_send_twice_is_executed_once(page: Page, steps: Steps) -> None:
    fill_with_dead(steps, 5)
    forms = {actor: open_plan(page, "replay?route=strict", actor) for actor in (OPERATOR, OTHER)}

    def send(actor: Actor) -> requests.Response:
        with contextlib.closing(Page(page.url)) as beside:
            return beside.post("/acts/replay", forms[actor], actor)

    with ThreadPoolExecutor(4) as threads:
        answers = list(threads.map(send, (OPERATOR, OTHER) * 2))
    assert sum(execute(steps, answer).affected for answer in answers) == 5
    assert send(OTHER).status_code == 409, "it was executed"
    steps.until_nothing_is_due()
    assert steps.rows(DELIVERED)[0]["n"] == 5


def test_an_act_on_everything_needs_a_confirmation(page: Page, steps: Steps) -> None:
    fill_with_dead(steps, 2)
    assert confirm(page, "replay").status_code == 400
    assert list_commands(steps) == []
    assert execute(steps, confirm(page, "replay", everything="true")).affected == 2


@pytest.mark.parametrize(
    ("path", "says"),
    [
        ("replay?route=strct", "there is no route"),
        ("replay?rout=strict", "there is no field"),
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
def test_a_senseless_selection_is_explained(page: Page, path: str, says: str) -> None:
    answer = page.get(f"/acts/{path}")
    assert (answer.status_code, says in unescape(answer.text)) == (400, True), answer.text


def test_a_pause_shows_the_deliveries_behind_it(page: Page, steps: Steps) -> None:
    steps.arrive(*(an_event(n, f"u{n}") for n in range(1, 4)))
    assert "<dt>open deliveries behind it</dt><dd>3" in page.get("/acts/pause?destination=audit").text
    assert execute(steps, confirm(page, "pause?destination=audit", reason="maintenance")).answer == "paused"
    for act in ("pause?destination=audit", "cancel?route=strict"):
        assert "by olga: maintenance" in page.get(f"/acts/{act}").text
    assert execute(steps, confirm(page, "resume?destination=audit")).answer == "resumed"


def test_the_api_accepts_a_resume_right_after_a_pause_and_refuses_only_what_is_so(page: Page, steps: Steps) -> None:
    def send(kind: str) -> requests.Response:
        return page.post(f"/api/v1/acts/{kind}", json={"destination": "audit", "reason": "maintenance"})

    answers = [send(kind) for kind in ("pause", "resume", "pause")]
    assert [execute(steps, answer).answer for answer in answers] == ["paused", "resumed", "paused"]
    again = send("pause")
    assert (again.status_code, "already; destination audit was paused" in again.json()["detail"]) == (409, True)


def test_the_api_says_which_deliveries_a_replay_would_skip(page: Page, steps: Steps) -> None:
    steps.arrive(an_event(1), an_event(2))
    steps.attempt_each(HOPELESS, DONE)
    (skipped,) = page.json("/api/v1/acts/replay?seq=1")["skipped"]
    answer = page.post("/api/v1/acts/replay", json={"seq": 1, "reason": "by a script"})
    assert (skipped["why"], answer.status_code) == ("overtaken", 409)
    assert f"1 skipped: {skipped['text']}" in answer.json()["detail"]
    assert 'href="/acts/replay?force=true&amp;seq=1"' in page.get("/acts/replay?seq=1").text
    assert page.get("/api/v1/acts/replay?route=strct").json()["field"] == "route"
    assert 'name="entity_id"' in page.get("/acts/erase").text


def test_an_entity_is_erased_only_after_its_id_was_typed_again(page: Page, steps: Steps) -> None:
    steps.arrive(an_event(1, "u 1&x"))
    steps.attempt(DONE)
    path = "erase?source=trivore&entity_type=USER&entity_id=u+1%26x"
    assert "<dt>payloads</dt><dd>1" in page.get(f"/acts/{path}").text
    for typed in ({}, {"again": "u 1"}, {"again": "u 1&x", "reason": "asked for u 1&x"}):
        assert confirm(page, path, **typed).status_code == 400
    assert execute(steps, confirm(page, path, again="u 1&x")).state == "done"
    assert steps.rows("SELECT count(*) AS n FROM inbox_payload")[0]["n"] == 0


@ON_BOTH
def test_the_plan_of_an_erasure_counts_the_newest_events_and_the_erasure_takes_all(
    page: Page, steps: Steps, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(erasure, "COUNTED_EVENTS", 2)
    steps.arrive(*(an_event(n) for n in range(1, 4)))
    for _ in range(3):
        steps.attempt(DONE)
    path = "erase?source=trivore&entity_type=USER&entity_id=u1"
    assert count_of(page.get(f"/acts/{path}").text) == "2+"
    assert execute(steps, confirm(page, path, again="u1")).affected == 3


def test_a_plan_over_many_deliveries_is_bounded(page: Page, steps: Steps, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plans, "MOST_COUNTED", 500)
    fill_with_dead(steps, 400)
    fill_with_dead(steps, 101, first=401)
    assert count_of(page.get("/acts/replay?route=strict").text) == "500+"
    answer = confirm(page, "replay?route=strict")
    assert list_commands(steps)[0]["matched"] is None  # unknown
    assert execute(steps, answer).affected == 501


def test_the_api_plans_acts_and_accepts_commands(page: Page, steps: Steps) -> None:
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
    assert [execute(steps, answer).affected for answer in answers] == [2, 0], "the second has nothing to do"


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
    assert list_commands(steps) == []


def test_a_too_large_form_and_a_json_body_are_refused(page: Page) -> None:
    assert page.post("/acts/replay", {"reason": "x" * 300_000}).status_code == 413
    assert page.post("/acts/replay", json={"reason": "x"}).status_code == 400


def reason_of(answer: requests.Response) -> str:
    """Return the reason in the form on the page."""
    found = re.search(
        r'<textarea name="reason"[^>]*>(.*?)</textarea>|<input name="reason" value="([^"]*)"', answer.text
    )
    assert found is not None, answer.text
    return unescape(found[1] or found[2])


@contextlib.contextmanager
def lock_by_another(engine: Engine) -> Iterator[None]:
    """Let another program hold its write locks."""
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
def short_timeouts(page_config: Config, monkeypatch: pytest.MonkeyPatch) -> Config:
    """Configuration of a page with short lock timeouts."""
    monkeypatch.setitem(engines.PINNED, "lock_timeout", "50ms")
    monkeypatch.setattr(engines, "SQLITE_WAIT_SECONDS", 0.05)
    return page_config


@ON_BOTH
@pytest.mark.usefixtures("short_timeouts")
def test_an_act_while_another_program_writes_gets_503_and_keeps_its_form(page: Page, steps: Steps) -> None:
    fill_with_dead(steps, 2)
    form = open_plan(page, "replay?route=strict")
    with lock_by_another(steps.database.engine):
        began = time.monotonic()
        answer = page.post("/acts/replay", form)
        assert time.monotonic() - began < 20, "it does not wait"
    assert (answer.status_code, answer.headers["Retry-After"], reason_of(answer)) == (503, "5", "fixed <b>")
    assert list_commands(steps) == []
    assert page.post("/acts/replay", form_of(answer.text)).status_code == 303
    assert len(list_commands(steps)) == 1


@ON_BOTH
def test_an_act_on_a_database_that_is_gone_keeps_its_form(page: Page, steps: Steps, database_url: str) -> None:
    fill_with_dead(steps, 2)
    number = execute(steps, confirm(page, "replay?route=strict&seq=1")).id
    form = open_plan(page, "replay?seq=2")
    with databases.gone(database_url):
        answer = page.post("/acts/replay", form)
        assert (answer.status_code, answer.headers["Retry-After"], reason_of(answer)) == (503, "5", "fixed <b>")
        assert "tries again by itself" not in answer.text
        if databases.is_postgres(database_url):  # on SQLite, the open file can still be written
            stop = page.post("/acts/stop", {"command": number, "reason": "wait <b>"})
            assert (stop.status_code, reason_of(stop)) == (503, "wait <b>")
            assert 'action="/acts/stop"' in stop.text
    steps.database.engine.dispose()  # closes its broken connections
    assert len(list_commands(steps)) == 1
    assert form_of(answer.text)["plan"] == form["plan"]
    again = page.post("/acts/replay", form_of(answer.text))
    if again.status_code == 503:  # the writing connection broke as well, which shows at its next use
        again = page.post("/acts/replay", form_of(again.text))
    assert again.status_code == 303, again.text
    assert len(list_commands(steps)) == 2
