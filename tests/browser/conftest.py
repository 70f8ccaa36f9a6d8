"""One browser for each test process, and the page on a database with many incidents or on an empty one."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import pytest
from selenium.common.exceptions import InvalidSessionIdException, WebDriverException
from sqlalchemy import Engine

from inbox.clock import SystemClock
from tests.helpers.browser import MISSING, Browser, browsing, programs
from tests.helpers.databases import copy_sqlite, open_engine
from tests.helpers.page import OPERATOR, Page, lift_time_limits, on_database, serving
from tests.helpers.worlds import CONFIG, happen

CRASHES = (InvalidSessionIdException.__name__, "tab crashed")
"""Errors after a crash of the browser or of a tab, as on a machine that runs out of memory."""


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Rerun a test once if its browser crashed."""
    for item in items:
        if item.path.parent == Path(__file__).parent:
            item.add_marker(pytest.mark.flaky(reruns=1, only_rerun=list(CRASHES)))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Report in red that no browser was found."""
    if programs() is None:
        terminalreporter.write_line(MISSING, red=True, bold=True)


@pytest.fixture(scope="session")
def chromium() -> Iterator[Browser]:
    with browsing() as browser:
        yield browser


@pytest.fixture(autouse=True)
def _time_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    lift_time_limits(monkeypatch)


@pytest.fixture
def browser(chromium: Browser) -> Iterator[Browser]:
    """The browser with a desktop window, acting as an operator."""
    chromium.revive()
    chromium.allow_scripts(True)
    chromium.look()
    chromium.act_as(OPERATOR)
    yield chromium
    with contextlib.suppress(WebDriverException):  # a crashed browser is revived for the next test
        chromium.driver.get("about:blank")  # ends the stream of a live page


@pytest.fixture(scope="session")
def night_engine(sqlite_template: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    """A shared database with the incidents of a night."""
    with open_engine(copy_sqlite(sqlite_template, tmp_path_factory.mktemp("night"))) as engine:
        happen(engine)
        yield engine


@pytest.fixture(scope="session")
def night_page(night_engine: Engine) -> Iterator[Page]:
    with serving(on_database(CONFIG, str(night_engine.url)), SystemClock()) as page:
        yield page


@pytest.fixture
def own_page(sqlite_engine: Engine) -> Iterator[Page]:
    """The page of an empty database."""
    with serving(on_database(CONFIG, str(sqlite_engine.url)), SystemClock()) as page:
        yield page
