"""Values from outside in every field: markup, bidirectional text and 10,000 characters do nothing, on any screen."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path

import pytest

from inbox.clock import SystemClock
from relay.web.screens import SCREENS
from tests.helpers.browser import DESK, PHONE, Browser
from tests.helpers.databases import copy_sqlite, open_engine
from tests.helpers.page import Page, on_database, serving
from tests.helpers.relaying import CONFIG, FakeClock, Steps
from tests.helpers.worlds import fill_hostile

MARKUP = (
    "<script>window.hacked = 1</script><img src=x onerror='window.hacked = 2'>\"'--><b onmouseover=hacked(3)>{{ 7*7 }}"
)
BIDI = "admin\u202egnp.exe\u2066\u200b\u00ad\x1b[31m"
VALUES = {
    "markup": MARKUP,
    "bidi": BIDI,
    "long": "x" * 10_000,
    "path": "../a/b?c=d#e&f=%2e%2e;",
}
LOOK_FOR_HARM = """
return [window.hacked ?? null, document.querySelectorAll('main script, main img, main b, main iframe').length,
        /[\\u200b\\u202a-\\u202e\\u2066-\\u2069\\u001b]/.test(document.body.innerText)]
"""
PATHS = sorted(screen.path for screen in SCREENS if screen.key)


@pytest.fixture(scope="module")
def hostile_page(sqlite_template: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    url = copy_sqlite(sqlite_template, tmp_path_factory.mktemp("hostile"))
    with open_engine(url) as engine:
        steps = Steps(engine, clock=FakeClock(SystemClock().now()))
        for value in VALUES.values():
            fill_hostile(steps, value)
    with serving(on_database(CONFIG, url), SystemClock()) as page:
        yield page


def _is_harmless(browser: Browser) -> None:
    assert browser.run(LOOK_FOR_HARM) == [None, 0, False]
    assert browser.errors() == []
    for width in (DESK, PHONE):
        browser.look(width=width)
        assert browser.overflow() <= 0, f"{browser.location()} is wider than {width} px"


@pytest.mark.parametrize("path", PATHS)
def test_hostile_values_are_shown_harmless(path: str, browser: Browser, hostile_page: Page) -> None:
    """On a list, and on the screens of one thing that its first links lead to."""
    browser.site = hostile_page.url
    browser.open(f"{path}?live=0")
    links = {place: browser.hrefs(f'main a[href^="{place}"]')[:1] for place in ("/commands/", "/entity?", "/events/")}
    _is_harmless(browser)
    for link in itertools.chain(*links.values()):
        browser.look()
        browser.open(link)
        assert browser.find("h1").text
        _is_harmless(browser)


@pytest.mark.parametrize("value", VALUES.values(), ids=VALUES)
def test_a_hostile_filter_stays_text_in_its_field(value: str, browser: Browser, hostile_page: Page) -> None:
    browser.site = hostile_page.url
    browser.open("/rejected")
    field = browser.find("input[name=error]")
    wanted = value[:900].replace("\x1b", "")
    browser.run("arguments[0].value = arguments[1]", field, wanted)
    browser.find("form.filters button").click()
    browser.wait(lambda: "error=" in browser.location(), "the filter is in the URL")
    assert browser.find("input[name=error]").get_attribute("value") == wanted.strip("\n")
    _is_harmless(browser)
