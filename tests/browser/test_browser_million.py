"""The page over a million events, and over a few hundred thousand on SQLite: every screen opens, counts are capped, links work."""

from __future__ import annotations

import re

import pytest
from sqlalchemy import Engine

from inbox.clock import SystemClock
from inbox.config.model import Config
from inbox.db.dialect import POSTGRES
from inbox.db.intake import Rejected
from inbox.loader.load import parse_config
from tests.browser import many_rows
from tests.helpers.browser import PHONE, Browser
from tests.helpers.page import on_database, serving
from tests.helpers.storing import Intake

CONFIG = f"""
[sources.trivore]
preset = "trivore"
auth = {{ kind = "header", name = "X-Webhook-Token", secrets = ["a-token-of-this-test"] }}
[destinations.downstream]
kind = "forward"
url = "https://erp.example.com/hooks"
[routes.everything]
source = "trivore"
destination = "downstream"
ordering = "strict"
{many_rows.ROUTES}
"""
_MANY = r"(At least [\d,]+|500\+) deliveries match"
"""A busy database counts fewer in its time; so does the plan of an act."""
SAID = {
    "/": "1,000 or more deliveries are dead",
    "/deliveries": _MANY,
    "/deliveries?state=dead&route=everything": _MANY,
    "/dead": "newest dead letters are grouped here",
    "/gates": "trivore USER/u199",
    "/rejected": "wrong secret 20000",
    "/commands": "benchmark 20000",
    "/alerts": "route 99",
    "/doctor": "a report is kept for a minute",
    "/events/{only}": "ONLY",
    "/entity?source=trivore&type=USER&id=large": "Lanes",
    "/acts/replay?route=everything": r"[\d,]+\+? deliveries",
}
"""Every screen, and a pattern of a text that its rows make."""


def config_of(url: str) -> Config:
    return on_database(parse_config(CONFIG), url)


@pytest.mark.long
def test_every_screen_works_over_many_rows(browser: Browser, engine: Engine, database_url: str) -> None:
    """One test, so that each database is filled once."""
    number = 1_000_000 if engine.dialect.name == POSTGRES else 200_000
    size = many_rows.Filled(number, number // 5)
    many_rows.fill(engine, size, SystemClock().now())
    with serving(config_of(database_url), SystemClock()) as page:
        browser.site = page.url
        for path, said in SAID.items():
            opened = path.format(only=size.only)
            browser.look()
            browser.open(opened + ("&" if "?" in opened else "?") + "live=0")
            assert re.search(said, browser.text()), f"{opened}: {browser.text()[:2000]}"
            assert not browser.all("[role=alert]"), (opened, browser.text()[:800])
            assert browser.errors() == []
            assert browser.overflow() <= 0
            browser.look(width=PHONE)
            assert browser.overflow() <= 0
        browser.look()
        _pages_and_the_back_button(browser, size)
        _a_filter_that_few_rows_match(browser, size)
        _news_appear(browser, database_url)
        browser.driver.get("about:blank")


def _pages_and_the_back_button(browser: Browser, size: many_rows.Filled) -> None:
    """A link from deep inside opens there; older and back go one page each way."""
    middle = size.events // 2
    browser.open(f"/deliveries?before={middle}&live=0")
    first = browser.find("tbody a").text
    assert int(first) < middle
    browser.find("a[rel=next]").click()
    browser.wait(lambda: f"before={middle}" not in browser.at(), "the next page")
    assert int(browser.find("tbody a").text) < int(first)
    browser.driver.back()
    browser.wait(lambda: browser.find("tbody a").text == first, "the page before")


def _a_filter_that_few_rows_match(browser: Browser, size: many_rows.Filled) -> None:
    """It finds the row, or says how far it looked; and it goes on from there."""
    browser.open("/deliveries?event_type=ONLY&live=0")
    assert browser.all(f"a[href='/events/{size.only}']") or "events were looked through" in browser.text()
    browser.open(f"/deliveries?event_type=ONLY&before={size.only + 100}&live=0")
    assert browser.find("tbody a").text == str(size.only)


def _news_appear(browser: Browser, database_url: str) -> None:
    browser.open("/rejected")
    browser.run("window.same = true")
    browser.wait(lambda: browser.find("#live").text == "Live", "the page is live")
    news = Rejected(
        SystemClock().now(),
        "trivore",
        401,
        "signature",
        "no signature fits",
        None,
        "203.0.113.9",
        b"\0" * 32,
        None,
        None,
    )
    Intake(database_url).reject(news)
    browser.wait(lambda: "no signature fits" in browser.text(), "the rejection appears")
    assert browser.run("return window.same") is True
