"""Each screen in a real browser, with data and without: nothing fails, nothing is wider than the window, all is accessible.

axe-core examines it. `.ci/browser` installs its newest version where npm is, otherwise an older one comes with a wheel.
"""

from __future__ import annotations

import pytest

from relay.web.screens import SCREENS
from tests.helpers.browser import DESK, PHONE, TABLET, Browser, Theme
from tests.helpers.page import Page

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
