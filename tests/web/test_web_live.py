"""Live refresh: a page asks for what is new on it, and however many ask, the database answers few."""

from __future__ import annotations

import asyncio
import contextlib
import re
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import requests

from inbox.config.model import Config
from inbox.db.intake import Rejected
from relay.web import reading
from relay.web.reading import NotYourTurn, Readers
from tests.helpers import databases
from tests.helpers.databases import ON_BOTH
from tests.helpers.page import OPERATOR, VIEWER, Page
from tests.helpers.relaying import FakeClock, Monotonic, Steps
from tests.helpers.storing import START
from tests.helpers.tables import record_statements
from tests.helpers.waiting import until


def ask(page: Page, path: str, etag: str | None = None) -> requests.Response:
    known = {} if etag is None else {"If-None-Match": etag}
    return page.get(path, headers={"X-Refresh": "1", **known})


def refresh(page: Page, path: str, etag: str | None = None) -> requests.Response:
    """Ask until it is the page's turn."""
    answers: list[requests.Response] = []

    def is_answered() -> bool:
        answers.append(ask(page, path, etag))
        return answers[-1].status_code != 204

    until(is_answered, "it is the page's turn")
    return answers[-1]


def reject(steps: Steps, reason: str) -> None:
    steps.intake.reject(Rejected(START, "trivore", 400, "not_json", reason, None, None, b"x" * 32, None, None))


@pytest.fixture
def _hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """A turn comes soon."""
    monkeypatch.setattr(reading, "REFRESH_SECONDS", 0.0)


@pytest.mark.usefixtures("_hasty")
def test_a_changed_row_is_new_and_what_is_the_same_is_not_sent(page: Page, steps: Steps, clock: FakeClock) -> None:
    shown = page.get("/rejected?source=trivore")
    (version,) = re.findall(r'data-live="([^"]+)"', shown.text)
    assert shown.headers["ETag"] == f'"{version}"'
    clock.advance(60)
    same = refresh(page, "/rejected?source=trivore", shown.headers["ETag"])
    assert (same.status_code, same.text) == (304, "")
    reject(steps, "no <b>JSON</b>\r\n at all")
    changed = refresh(page, "/rejected?source=trivore", shown.headers["ETag"])
    assert (changed.status_code, "no &lt;b&gt;JSON&lt;/b&gt;" in changed.text) == (200, True)
    assert changed.headers["ETag"] != shown.headers["ETag"]
    assert refresh(page, "/rejected?source=trivore", changed.headers["ETag"]).status_code == 304
    assert refresh(page, "/rejected?source=trivore").status_code == 200, "for its relative times"


@ON_BOTH
@pytest.mark.usefixtures("_hasty")
def test_a_database_that_goes_away_is_told_and_the_next_refresh_has_its_page(page: Page, database_url: str) -> None:
    etag = page.get("/rejected").headers["ETag"]
    with databases.gone(database_url):
        away = refresh(page, "/rejected", etag)
        assert (away.status_code, 'data-live=""' in away.text) == (503, True), "it asks again"
    assert refresh(page, "/rejected").status_code == 200


def test_a_page_that_asks_for_no_refresh_has_none(page: Page) -> None:
    for path, status in (("/rejected?live=0", 200), ("/rejected?limit=0", 400)):
        answer = page.get(path)
        assert (answer.status_code, "data-live" in answer.text) == (status, False)
    assert page.get("/rejected", actor=None, headers={"X-Refresh": "1"}).status_code == 401, (
        "and a stranger none at all"
    )
    assert page.json("/rejected.json?live=0") == page.json("/rejected.json")


def test_a_hundred_refreshes_at_once_cost_the_database_one_read(page: Page) -> None:
    """And a person who opens a page waits for none of them."""

    def refreshed(number: int) -> int:
        with contextlib.closing(Page(page.url)) as browser:
            return ask(browser, f"/rejected?error=s{number}").status_code

    with ThreadPoolExecutor(8) as threads, record_statements() as seen:
        answers = list(threads.map(refreshed, range(100)))
        assert page.get("/rejected").status_code == 200
    assert set(answers) == {200, 204}
    assert answers.count(200) <= 10
    assert len(seen) <= 20 * answers.count(200)


def test_a_slow_page_is_refreshed_for_at_most_half_of_the_time(page_config: Config, clock: FakeClock) -> None:
    now, go_on = Monotonic(1000.0), threading.Event()

    async def scenario(readers: Readers) -> None:
        slow = asyncio.create_task(readers.refresh(OPERATOR, lambda _: go_on.wait(30)))
        await asyncio.sleep(0)
        with pytest.raises(NotYourTurn):
            await readers.refresh(VIEWER, lambda _: None)
        now.seconds += 5
        go_on.set()
        await slow
        now.seconds += 4.9
        with pytest.raises(NotYourTurn):
            await readers.refresh(VIEWER, lambda _: None)
        now.seconds += 0.1
        assert await readers.refresh(VIEWER, lambda _: "read") == "read"

    with contextlib.closing(Readers(page_config, clock, now)) as readers:
        asyncio.run(scenario(readers))
