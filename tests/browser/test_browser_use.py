"""The page as people use it: links, the back button, keys alone, without scripts, and live."""

from __future__ import annotations

from selenium.webdriver.common.keys import Keys
from sqlalchemy import Engine

from inbox.clock import SystemClock
from inbox.db.intake import Rejected
from tests.helpers.browser import Browser
from tests.helpers.page import Page
from tests.helpers.storing import Intake


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
    browser.wait(lambda: "source=people" in browser.location(), "the filter is in the URL")
    assert "No request was rejected" in browser.text()
    browser.driver.back()
    browser.wait(lambda: browser.location().endswith("source=shop"), "back")
    assert browser.find("input[name=source]").get_attribute("value") == "shop"
    assert "203.0.113." in browser.text()


def test_the_page_is_used_by_keys_alone(browser: Browser, night_page: Page) -> None:
    browser.site = night_page.url
    browser.open("/rejected?live=0")
    browser.press(Keys.TAB)
    assert browser.find_focused().text == "Skip to content"
    browser.press(Keys.ENTER)
    browser.wait(lambda: browser.find_focused().tag_name == "main", "the content has the focus")
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
    browser.wait(lambda: browser.find_focused().get_attribute("name") == "source", "the first filter has the focus")
    browser.press("shop", Keys.ENTER)
    browser.wait(lambda: "source=shop" in browser.location(), "the filter is in the URL")


def test_an_element_that_has_the_focus_shows_it(browser: Browser, night_page: Page) -> None:
    browser.site = night_page.url
    browser.open("/rejected?live=0")
    for _ in range(12):
        browser.press(Keys.TAB)
        outline = browser.run("return getComputedStyle(document.activeElement).outlineWidth")
        assert outline != "0px", browser.find_focused().get_attribute("outerHTML")


def test_the_page_works_without_scripts(browser: Browser, night_page: Page) -> None:
    browser.site = night_page.url
    browser.allow_scripts(allowed=False)
    browser.open("/rejected")
    browser.find("input[name=source]").send_keys("shop")
    browser.find("form.filters button").click()
    browser.wait(lambda: "source=shop" in browser.location(), "the filter is in the URL")
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
