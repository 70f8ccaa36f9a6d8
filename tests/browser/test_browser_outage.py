"""A live page whose database is away or locked, on both databases: it says so, and shows the list again by itself."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from sqlalchemy import Engine, create_engine, text

from inbox.clock import SystemClock
from inbox.db.dialect import POSTGRES
from inbox.db.intake import Rejected
from tests.helpers.browser import Browser
from tests.helpers.night import night_config
from tests.helpers.page import Page, on_database, serving
from tests.helpers.storing import Intake


@pytest.fixture
def live_page(database_url: str, browser: Browser) -> Iterator[Page]:
    """The list of rejected requests with one row, live."""
    Intake(database_url).reject(
        Rejected(
            SystemClock().now(), "shop", 401, "signature", "no key fits", None, "203.0.113.9", b"\0" * 32, None, None
        )
    )
    with serving(on_database(night_config(), database_url), SystemClock()) as page:
        browser.site = page.url
        browser.open("/rejected?source=shop")
        browser.wait(lambda: browser.find("#live").text == "Live", "the page is live")
        assert "no key fits" in browser.text()
        browser.run("window.same = true")
        yield page
        browser.driver.get("about:blank")


@contextmanager
def away(engine: Engine) -> Iterator[None]:
    """No connection lives, and none can be made."""
    if engine.dialect.name == POSTGRES:
        name = engine.url.database
        server = create_engine(engine.url.set(database="postgres"), isolation_level="AUTOCOMMIT")
        with server.connect() as connection:
            connection.execute(text(f"ALTER DATABASE {name} ALLOW_CONNECTIONS false"))
            try:
                end = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = :name"
                connection.execute(text(end), {"name": name})
                yield
            finally:
                connection.execute(text(f"ALTER DATABASE {name} ALLOW_CONNECTIONS true"))
        server.dispose()
        return
    engine.dispose()
    file = Path(str(engine.url.database))
    moved = file.rename(file.with_suffix(".away"))
    file.mkdir()  # SQLite would make a new file
    try:
        yield
    finally:
        file.rmdir()
        moved.rename(file)


def is_back(browser: Browser) -> bool:
    return "no key fits" in browser.text() and not browser.all("[role=alert]")


@pytest.mark.parametrize("is_opened_meanwhile", [True, False], ids=["opened meanwhile", "open before"])
def test_a_database_that_goes_away_and_comes_back(
    browser: Browser, live_page: Page, engine: Engine, *, is_opened_meanwhile: bool
) -> None:
    assert live_page.url == browser.site
    with away(engine):
        if is_opened_meanwhile:
            browser.open("/rejected?source=shop")
            browser.run("window.same = true")
        browser.wait(lambda: browser.all("[role=alert]"), "the page says it")
        assert browser.find("input[name=source]").get_attribute("value") == "shop"
    browser.wait(lambda: is_back(browser), "the list is back")
    assert browser.run("return window.same") is True


@pytest.mark.parametrize("database_url", ["postgres"], indirect=True)  # a lock of SQLite holds no reader up
def test_a_table_that_is_locked(browser: Browser, live_page: Page, engine: Engine) -> None:
    with engine.begin() as connection:
        connection.execute(text("LOCK TABLE rejected_request IN ACCESS EXCLUSIVE MODE"))
        browser.open("/rejected?source=shop")
        assert browser.find("[role=alert]").text
        assert browser.find("input[name=source]").get_attribute("value") == "shop"
        assert live_page.get("/commands").status_code == 200, "other screens work"
    browser.wait(lambda: is_back(browser), "the list is back")
