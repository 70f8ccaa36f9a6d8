"""Acts beside others: another operator, a relay that delivers, a database that is locked or gone when the form is sent."""

from __future__ import annotations

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
from relay.accounts import Actor
from tests.helpers import outage
from tests.helpers.kinds import ON_BOTH
from tests.helpers.page import OPERATOR, Page
from tests.helpers.patience import stand_still
from tests.helpers.relaying import DONE, Steps
from tests.helpers.storing import an_event
from tests.web.test_web_acts import asked, fill_with_dead, form_of, number_of, shown, work

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
    with outage.gone(database_url):
        answer = page.post("/acts/replay", form)
        assert (answer.status_code, answer.headers["Retry-After"]) == (503, "5")
        assert "tries again by itself" not in answer.text
        assert "send the form again" in answer.text
        if outage.is_postgres(database_url):  # whoever has the SQLite file open still writes
            stop = page.post("/acts/stop", {"command": number_of(stopping), "reason": "wait <b>"})
            assert (stop.status_code, reason_of(stop)) == (503, "wait <b>")
            assert 'action="/acts/stop"' in stop.text
    steps.database.engine.dispose()  # its connections are broken
    assert len(asked(steps.database)) == 1
    kept = form_of(answer.text)
    assert (kept["plan"], reason_of(answer)) == (form["plan"], "fixed <b>")
    again = page.post("/acts/replay", {**kept, "reason": reason_of(answer)})
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
