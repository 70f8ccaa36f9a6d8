"""Acts of operators on the page, from a filter to its end, with a real relay; and what a viewer can't do."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import Engine

from inbox.clock import SystemClock
from tests.helpers.browser import Browser
from tests.helpers.daemon import make_config, running
from tests.helpers.page import Page, on_database, serving
from tests.helpers.relaying import give_up
from tests.helpers.traffic import serving as downstream_serving

EVENTS = [(f"u{number}", f"2026-01-01T00:00:0{number}Z") for number in range(5)]


@pytest.fixture
def own_page(sqlite_engine: Engine) -> Iterator[Page]:
    config = make_config("http://127.0.0.1:9/")
    with serving(on_database(config, str(sqlite_engine.url)), SystemClock()) as page:
        yield page


def test_a_bulk_replay_goes_from_the_filter_to_delivered(
    browser: Browser, own_page: Page, sqlite_engine: Engine, tmp_path: Path
) -> None:
    browser.site = own_page.url
    seqs = give_up(sqlite_engine, str(sqlite_engine.url), EVENTS)
    browser.open("/deliveries?state=dead&route=everything&live=0")
    browser.link("Replay all that match").click()
    browser.wait(lambda: "/acts/replay" in browser.location(), "the plan")
    assert "5 deliveries" in browser.text()
    assert browser.grave_findings() == []
    browser.find("textarea[name=reason]").send_keys("the map is mended")
    browser.find("main form button").click()
    browser.wait(lambda: "/commands/" in browser.location(), "the command")
    assert "the map is mended" in browser.text()
    with downstream_serving(tmp_path / "ledger") as downstream, running(sqlite_engine, downstream):
        browser.wait(lambda: browser.all(".state-done"), "the command ends, and the page shows it by itself")
        browser.wait(lambda: downstream.events == set(seqs), "all are delivered")
    browser.open("/deliveries?state=dead&live=0")
    assert "No delivery matches" in browser.text()
    browser.open("/deliveries?state=delivered&live=0")
    browser.wait(lambda: len(browser.all("tbody tr")) == len(EVENTS), "all are shown as delivered")
