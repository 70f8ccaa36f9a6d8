"""The page as people use it: links, the back button, keys alone, without scripts, and live."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from selenium.webdriver.common.keys import Keys
from sqlalchemy import Engine, text

from inbox.clock import SystemClock
from inbox.db.intake import Rejected
from relay.web.screens import SCREENS
from tests.helpers import databases
from tests.helpers.browser import DESK, PHONE, TABLET, Browser, Theme
from tests.helpers.daemon import configured, running
from tests.helpers.databases import ON_POSTGRES, ON_SQLITE
from tests.helpers.page import Page, on_database, serving
from tests.helpers.relaying import give_up
from tests.helpers.storing import Intake, a_rejected
from tests.helpers.traffic import serving as downstream_serving
from tests.helpers.waiting import stand_still
from tests.helpers.worlds import NIGHT


def a_rejection(engine: Engine, reason: str) -> None:
    Intake(str(engine.url)).reject(
        Rejected(SystemClock().now(), "shop", 401, "signature", reason, None, "203.0.113.9", b"\0" * 32, None, None)
    )


def test_filters_are_in_the_url_and_the_back_button_undoes_them(browser: Browser, night_page: Page) -> None:
    browser.site = night_page.url
    browser.open("/rejected?source=shop")
    assert browser.find("input[name=source]").get_attribute("value") == "shop"
    field = browser.find("input[name=source]")
    field.clear()
    field.send_keys("people", Keys.ENTER)
    browser.wait(lambda: "source=people" in browser.at(), "the filter is in the URL")
    assert "No request was rejected" in browser.text()
    browser.driver.back()
    browser.wait(lambda: browser.at().endswith("source=shop"), "back")
    assert browser.find("input[name=source]").get_attribute("value") == "shop"
    assert "203.0.113." in browser.text()


def test_the_page_is_used_by_keys_alone(browser: Browser, night_page: Page) -> None:
    browser.site = night_page.url
    browser.open("/rejected?live=0")
    browser.press(Keys.TAB)
    assert browser.focused().text == "Skip to content"
    browser.press(Keys.ENTER)
    browser.wait(lambda: browser.focused().tag_name == "main", "the content has the focus")
    browser.press("j", "j")
    rows = browser.all("tbody tr")
    assert [row.get_attribute("class") for row in rows[:3]] == ["", "here", ""]
    browser.press("k")
    assert browser.all("tbody tr")[0].get_attribute("class") == "here"
    browser.press("?")
    browser.wait(lambda: browser.all("dialog[open]"), "the help of keys")
    assert browser.grave_findings() == []
    browser.press(Keys.ESCAPE)
    browser.wait(lambda: not browser.all("dialog[open]"), "the help is closed")
    browser.press("/")
    browser.wait(lambda: browser.focused().get_attribute("name") == "source", "the first filter has the focus")
    browser.press("shop", Keys.ENTER)
    browser.wait(lambda: "source=shop" in browser.at(), "the filter is in the URL")


def test_an_element_that_has_the_focus_shows_it(browser: Browser, night_page: Page) -> None:
    browser.site = night_page.url
    browser.open("/rejected?live=0")
    for _ in range(12):
        browser.press(Keys.TAB)
        outline = browser.run("return getComputedStyle(document.activeElement).outlineWidth")
        assert outline != "0px", browser.focused().get_attribute("outerHTML")


def test_the_page_works_without_scripts(browser: Browser, night_page: Page) -> None:
    browser.site = night_page.url
    browser.allow_scripts(allowed=False)
    browser.open("/rejected")
    browser.find("input[name=source]").send_keys("shop")
    browser.find("form.filters button").click()
    browser.wait(lambda: "source=shop" in browser.at(), "the filter is in the URL")
    assert "203.0.113." in browser.text()
    browser.allow_scripts(allowed=True)


def test_news_appear_without_a_reload(browser: Browser, own_page: Page, sqlite_engine: Engine) -> None:
    browser.site = own_page.url
    browser.open("/rejected")
    browser.run("window.same = true")
    browser.wait(lambda: browser.find("#live").text == "Live", "the page is live")
    a_rejection(sqlite_engine, "no signature fits")
    browser.wait(lambda: "no signature fits" in browser.text(), "the rejection appears")
    assert browser.run("return window.same") is True
    browser.find("#live").click()
    browser.wait(lambda: browser.find("#live").text == "Paused", "the page is paused")


# --- Acts of operators on the page, from a filter to its end, with a real relay; and what a viewer can't do


EVENTS = [(f"u{number}", f"2026-01-01T00:00:0{number}Z") for number in range(5)]


@pytest.fixture
def own_page(sqlite_engine: Engine) -> Iterator[Page]:
    config = configured("http://127.0.0.1:9/")
    with serving(on_database(config, str(sqlite_engine.url)), SystemClock()) as page:
        yield page


def test_a_bulk_replay_goes_from_the_filter_to_delivered(
    browser: Browser, own_page: Page, sqlite_engine: Engine, tmp_path: Path
) -> None:
    browser.site = own_page.url
    seqs = give_up(sqlite_engine, str(sqlite_engine.url), EVENTS)
    browser.open("/deliveries?state=dead&route=everything&live=0")
    browser.link("Replay all that match").click()
    browser.wait(lambda: "/acts/replay" in browser.at(), "the plan")
    assert "5 deliveries" in browser.text()
    assert browser.grave_findings() == []
    browser.find("textarea[name=reason]").send_keys("the map is mended")
    browser.find("main form button").click()
    browser.wait(lambda: "/commands/" in browser.at(), "the command")
    assert "the map is mended" in browser.text()
    with downstream_serving(tmp_path / "ledger") as downstream, running(sqlite_engine, downstream):
        browser.wait(lambda: browser.all(".state-done"), "the command ends, and the page shows it by itself")
        browser.wait(lambda: downstream.events == set(seqs), "all are delivered")
    browser.open("/deliveries?state=dead&live=0")
    assert "No delivery matches" in browser.text()
    browser.open("/deliveries?state=delivered&live=0")
    browser.wait(lambda: len(browser.all("tbody tr")) == len(EVENTS), "all are shown as delivered")


# --- Each screen in a real browser, with data and without: nothing fails, nothing is wider than the window, all is accessible


PATHS = sorted(screen.path for screen in SCREENS if screen.key)
OF_ONE = {"event": "/events/", "entity": "/entity?", "command": "/commands/"}
"""Screens of one thing: links to them begin so."""


@pytest.mark.parametrize("path", PATHS)
def test_a_screen_with_data_is_accessible_in_both_themes_and_fits_every_window(
    path: str, browser: Browser, night_page: Page
) -> None:
    browser.site = night_page.url
    looks: tuple[tuple[Theme, int], ...] = (("light", DESK), ("dark", TABLET), ("light", PHONE))
    for theme, width in looks:
        browser.look(theme=theme, width=width)
        browser.open(f"{path}?live=0")
        assert browser.find("h1").text
        assert browser.grave_findings() == []
        assert browser.errors() == []
    for width in (PHONE, TABLET, 1024, 1216, DESK):
        browser.look(width=width)
        assert browser.overflow() <= 0, f"{path} is wider than {width} px"


def test_no_item_of_the_menu_is_cut_in_a_desk_s_window(browser: Browser, night_page: Page) -> None:
    browser.site = night_page.url
    browser.look(width=DESK)
    browser.open("/alerts")  # which is live, as the word beside the menu says
    for width in (1024, 1216, DESK, 1439, 1440):
        browser.look(width=width)
        cut = browser.run(
            "const menu = document.querySelector('header nav'); return menu.scrollWidth - menu.clientWidth"
        )
        assert cut <= 0, f"the menu lacks {cut} of {width} px"


@pytest.mark.long
def test_a_screen_without_data_says_so(browser: Browser, own_page: Page) -> None:
    browser.site = own_page.url
    for path in PATHS:
        browser.open(f"{path}?live=0")
        assert len(browser.text()) > len(browser.find("h1").text) > 0, path
        assert browser.grave_findings() == [], path
        assert browser.errors() == [], path


@pytest.mark.parametrize("name", OF_ONE)
def test_a_screen_of_one_thing_is_accessible_and_fits_a_phone(name: str, browser: Browser, night_page: Page) -> None:
    browser.site = night_page.url
    path = _first_link(browser, OF_ONE[name])
    for width in (DESK, PHONE):
        browser.look(width=width, theme="light" if width == PHONE else "dark")
        browser.open(path)
        assert browser.grave_findings() == []
        assert browser.errors() == []
        assert browser.overflow() <= 0


def _first_link(browser: Browser, start: str) -> str:
    """A link to a screen of one thing, found as a person does: on a list."""
    for path in PATHS:
        browser.open(f"{path}?live=0")
        for link in browser.hrefs(f'main a[href^="{start}"]'):
            return link
    pytest.fail(f"no list has a link to {start}")


# --- A live page whose database is away or locked: it says so, and shows the list again by itself


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
