"""A live page whose database is away or locked: it says so, and shows the list again by itself."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from sqlalchemy import Engine, text

from inbox.clock import SystemClock
from tests.helpers import databases
from tests.helpers.browser import Browser
from tests.helpers.databases import ON_POSTGRES, ON_SQLITE
from tests.helpers.page import Page, on_database, serving
from tests.helpers.storing import Intake, a_rejected
from tests.helpers.waiting import stand_still
from tests.helpers.worlds import NIGHT


@pytest.fixture
def live_page(database_url: str, browser: Browser) -> Iterator[Page]:
    """The list of rejected requests with one row, live."""
    now = SystemClock().now()
    Intake(database_url).reject(a_rejected(received_at=now, source="shop", status=401, reason="no key fits"))
    with serving(on_database(NIGHT, database_url), SystemClock()) as page:
        browser.site = page.url
        browser.open("/rejected?source=shop")
        browser.wait(lambda: browser.find("#live").text == "Live", "the page is live")
        assert "no key fits" in browser.text()
        browser.run("window.same = true")
        yield page
        browser.driver.get("about:blank")


def is_back(browser: Browser) -> bool:
    return "no key fits" in browser.text() and not browser.all("[role=alert]")


@ON_SQLITE
@pytest.mark.parametrize("is_opened_meanwhile", [True, False], ids=["opened meanwhile", "open before"])
def test_a_database_that_goes_away_and_comes_back(
    browser: Browser, live_page: Page, database_url: str, *, is_opened_meanwhile: bool
) -> None:
    assert live_page.url == browser.site
    with databases.gone(database_url):
        if is_opened_meanwhile:
            browser.open("/rejected?source=shop")
            browser.run("window.same = true")
        browser.wait(lambda: browser.all("[role=alert]"), "the page says it")
        assert browser.find("input[name=source]").get_attribute("value") == "shop"
    browser.wait(lambda: is_back(browser), "the list is back")
    assert browser.run("return window.same") is True


@ON_POSTGRES  # a lock of SQLite holds no reader up
def test_a_table_that_is_locked(browser: Browser, live_page: Page, engine: Engine) -> None:
    with engine.begin() as connection:
        stand_still(connection)
        connection.execute(text("LOCK TABLE rejected_request IN ACCESS EXCLUSIVE MODE"))
        browser.open("/rejected?source=shop")
        assert browser.find("[role=alert]").text
        assert browser.find("input[name=source]").get_attribute("value") == "shop"
        assert live_page.get("/commands").status_code == 200, "other screens work"
    browser.wait(lambda: is_back(browser), "the list is back")
