"""Signing in and out with the real access, by keys alone; and each way in which somebody is turned away."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import get_args

import pytest
from selenium.webdriver.common.keys import Keys
from sqlalchemy import Engine

from tests.helpers.browser import PHONE, Browser, Theme
from tests.helpers.page import PASSWORD, Entrance, entrance, on_database
from tests.helpers.worlds import NIGHT

A_DAY = 86_400


@pytest.fixture
def door(sqlite_engine: Engine, tmp_path: Path, browser: Browser) -> Iterator[Entrance]:
    browser.act_as(None)
    with entrance(on_database(NIGHT, str(sqlite_engine.url)), tmp_path) as made:
        browser.site = made.url
        browser.driver.delete_all_cookies()
        yield made
        browser.driver.get("about:blank")


def sign_in(browser: Browser, name: str, password: str) -> None:
    """Fill in the form that is shown, by keys from its first field."""
    browser.find("input[name=name]").clear()
    browser.find("input[name=name]").send_keys(name, Keys.TAB)
    assert browser.find_focused().get_attribute("name") == "password"
    form = browser.find(".sign-in form")
    browser.press(password, Keys.ENTER)
    browser.wait(lambda: is_gone(browser, form.id), "the next page")


def is_gone(browser: Browser, element: str) -> bool:
    return element not in {each.id for each in browser.all(".sign-in form")}


@pytest.mark.usefixtures("door")
def test_a_person_signs_in_and_out_by_keys_alone(browser: Browser) -> None:
    browser.open("/deliveries?state=dead&live=0")
    assert browser.location().startswith("/sign-in?next=")
    assert browser.find_focused().get_attribute("name") == "name"
    sign_in(browser, "anna", PASSWORD)
    assert browser.location() == "/deliveries?state=dead&live=0"
    assert browser.find(".who").text.startswith("anna operator")
    button = browser.link("Sign out")
    while browser.find_focused() != button:
        browser.press(Keys.TAB)
        assert browser.find_focused().tag_name != "main", "the button comes before the content"
    browser.press(Keys.ENTER)
    browser.wait(lambda: browser.location().startswith("/sign-in"), "signed out")
    browser.driver.back()
    browser.wait(lambda: browser.all("input[name=password]"), "going back shows nothing")
    assert not browser.all(".who")


@pytest.mark.usefixtures("door")
def test_without_scripts_nothing_of_a_session_is_shown_after_its_end(browser: Browser) -> None:
    browser.allow_scripts(False)
    browser.open("/rejected?source=shop")
    sign_in(browser, "anna", PASSWORD)
    browser.find('nav a[href="/commands"]').click()
    browser.wait(lambda: browser.location().startswith("/commands"), "another screen")
    browser.link("Sign out").click()
    browser.wait(lambda: browser.location().startswith("/sign-in"), "signed out")
    for _ in range(2):
        browser.driver.back()
        browser.wait(lambda: browser.all("input[name=password]"), "going back shows the form")
        assert not browser.all(".who")


@pytest.mark.usefixtures("door")
def test_the_form_is_accessible_in_both_themes_and_on_a_phone(browser: Browser) -> None:
    for theme in get_args(Theme):
        browser.look(theme=theme, width=PHONE)
        browser.open("/sign-in")
        assert browser.grave_findings() == []
        assert browser.overflow() <= 0
    assert browser.errors() == []


def test_a_wrong_password_and_too_many_of_them_are_explained(browser: Browser, door: Entrance) -> None:
    browser.open("/rejected")
    sign_in(browser, "anna", "wrong")
    assert browser.find("[role=alert]").text.startswith("The name or the password is wrong.")
    assert browser.find("input[name=name]").get_attribute("value") == "anna"
    assert browser.find("input[name=password]").get_attribute("value") == ""
    assert browser.find_focused().get_attribute("name") == "password"
    assert browser.grave_findings() == []
    for _ in range(9):
        door.sign_in("anna", "wrong")
    sign_in(browser, "anna", PASSWORD)
    assert browser.find("[role=alert]").text.startswith("Too many attempts to sign in. wait 30 s")
    door.later(30)
    sign_in(browser, "anna", PASSWORD)
    assert browser.location() == "/rejected"


def test_a_session_that_ends_leads_to_the_form_and_back(browser: Browser, door: Entrance) -> None:
    browser.open("/rejected?source=shop")
    sign_in(browser, "anna", PASSWORD)
    browser.wait(lambda: browser.find("#live").text == "Live", "the page is live")
    door.later(A_DAY)
    browser.wait(lambda: "signed out" in browser.find("#live").text, "the open page says so")
    browser.link("Filter").click()
    browser.wait(lambda: browser.location().startswith("/sign-in?next="), "the form")
    sign_in(browser, "anna", PASSWORD)
    assert browser.find("input[name=source]").get_attribute("value") == "shop"
