"""Each screen in a real browser, with data and without: nothing fails, nothing is wider than the window, all is accessible."""

from __future__ import annotations

import re
from typing import get_args

import pytest

from relay.web.screens import SCREENS
from relay.web.screens.problems import KINDS
from tests.helpers.browser import PHONE, Browser, Theme
from tests.helpers.page import Page

PATHS = sorted(screen.path for screen in SCREENS if "{" not in screen.path)
WITHOUT_LISTS = {"problem": f"/problems/{next(iter(KINDS))}"}
"""Screens of one thing that no list links to."""
OF_ONE = {screen.name: re.sub(r"{.*?}", "", screen.path.split("{")[0]) for screen in SCREENS if "{" in screen.path}
"""Screens of one thing: links to them begin so."""


@pytest.mark.parametrize("path", PATHS)
def test_a_screen_with_data_is_accessible_in_both_themes_and_fits_a_phone(
    path: str, browser: Browser, night_page: Page
) -> None:
    browser.site = night_page.url
    for theme in get_args(Theme):
        browser.look(theme=theme)
        browser.open(f"{path}?live=0")
        assert browser.find("h1").text
        assert browser.grave_findings() == []
        assert browser.errors() == []
    browser.look(width=PHONE)
    assert browser.overflow() <= 0


@pytest.mark.long
@pytest.mark.parametrize("path", PATHS)
def test_a_screen_without_data_says_so(path: str, browser: Browser, empty_page: Page) -> None:
    browser.site = empty_page.url
    browser.open(f"{path}?live=0")
    assert browser.find("h1").text
    assert len(browser.text()) > len(browser.find("h1").text)
    assert browser.grave_findings() == []
    assert browser.errors() == []


@pytest.mark.parametrize("name", OF_ONE)
def test_a_screen_of_one_thing_is_accessible_and_fits_a_phone(name: str, browser: Browser, night_page: Page) -> None:
    browser.site = night_page.url
    path = WITHOUT_LISTS.get(name) or _first_link(browser, OF_ONE[name])
    for width in (1280, PHONE):
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
