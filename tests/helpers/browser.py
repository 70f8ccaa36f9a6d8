"""A headless Chromium driven by WebDriver, with the actions of an operator."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, NamedTuple
from urllib.parse import quote

import pytest
from axe_core_python.base import AXE_SCRIPT as OLDER_AXE  # type: ignore[import-untyped]
from selenium import webdriver
from selenium.common.exceptions import StaleElementReferenceException, WebDriverException
from selenium.webdriver.chrome.options import Options
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.ui import WebDriverWait

from relay.accounts import Actor
from tests.helpers.processes import free_port
from tests.helpers.waiting import LONGEST_SECONDS

Theme = Literal["light", "dark"]
PHONE, TABLET, DESK = 360, 768, 1280
"""Widths in CSS pixels."""
_HEIGHT = 800
_NEWEST_AXE = Path(__file__).resolve().parents[1] / "browser/node_modules/axe-core/axe.min.js"
_GRAVE = ("serious", "critical")
MISSING = "NO BROWSER: tests/browser is skipped; .ci/browser installs chromium and chromedriver"


class Finding(NamedTuple):
    """A serious or critical finding of axe-core."""

    rule: str
    help: str
    places: tuple[str, ...]


class Browser:
    """One window. `site` is the page's URL; paths are relative to it."""

    def __init__(self, start: Callable[[], webdriver.Chrome]) -> None:
        self._start = start
        self.driver = start()
        self.site = ""

    def revive(self) -> None:
        """Restart it after a crash."""
        try:
            self.driver.execute_script("return 1")
        except WebDriverException:
            self.driver.quit()
            self.driver = self._start()

    def open(self, path: str) -> None:
        """Open a path, wait until it is loaded, and clear the console."""
        self._console()
        self.driver.get(self.site + path)

    def location(self) -> str:
        """Return path and query of the current page."""
        return self.driver.current_url.removeprefix(self.site)

    def act_as(self, actor: Actor | None) -> None:
        """Send each request as this person, to a page with the tests' access control."""
        headers = {} if actor is None else {"X-Test-Actor": f"{actor.role} {quote(actor.name)}"}
        self.driver.execute_cdp_cmd("Network.enable", {})
        self.driver.execute_cdp_cmd("Network.setExtraHTTPHeaders", {"headers": headers})

    def look(self, *, width: int = DESK, theme: Theme = "light", height: int = _HEIGHT) -> None:
        """Set the window size and the system theme."""
        metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
        feature = {"name": "prefers-color-scheme", "value": theme}
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [feature]})

    def allow_scripts(self, allowed: bool) -> None:
        """Turn scripts on or off from the next page on."""
        self.driver.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": not allowed})

    def find(self, selector: str) -> WebElement:
        """Wait for the first matching element and return it."""
        found: WebElement = self.wait(
            lambda: next(iter(self.all(selector)), None), f"no {selector} at {self.location()}"
        )
        return found

    def hrefs(self, selector: str) -> list[str]:
        """Return path and query of each link."""
        return [str(link.get_attribute("href")).removeprefix(self.site) for link in self.all(selector)]

    def all(self, selector: str) -> list[WebElement]:
        return self.driver.find_elements(By.CSS_SELECTOR, selector)

    def link(self, text: str) -> WebElement:
        """Wait for the first link or button that contains this text, and return it."""
        path = f"//a[contains(normalize-space(.), '{text}')] | //button[contains(normalize-space(.), '{text}')]"
        found: WebElement = self.wait(
            lambda: next(iter(self.driver.find_elements(By.XPATH, path)), None),
            f"no link {text!r} at {self.location()}",
        )
        return found

    def text(self) -> str:
        """Return the visible text of `<main>`."""
        return str(self.wait(lambda: [self.find("main").text], "the page is there")[0])

    def press(self, *keys: str) -> None:
        """Press keys one after another."""
        for key in keys:
            ActionChains(self.driver).send_keys(key).perform()

    def find_focused(self) -> WebElement:
        return self.driver.switch_to.active_element

    def wait(self, condition: Any, message: str) -> Any:  # noqa: ANN401  # as WebDriver's
        """Wait until `condition()` is true, and return its value."""
        replaced = [StaleElementReferenceException]  # the element is from the previous page
        waiting = WebDriverWait(self.driver, LONGEST_SECONDS, poll_frequency=0.05, ignored_exceptions=replaced)
        return waiting.until(lambda _: condition(), message)

    def run(self, script: str, *arguments: object) -> Any:  # noqa: ANN401  # any JSON
        return self.driver.execute_script(script, *arguments)

    def overflow(self) -> int:
        """Return the CSS pixels by which the page is wider than its window."""
        found: int = self.run("return document.documentElement.scrollWidth - window.innerWidth")
        return found

    def errors(self) -> list[str]:
        """Return the console errors since `open`: failed scripts, missing files, CSP violations."""
        return [entry["message"] for entry in self._console() if entry["level"] == "SEVERE"]

    def _console(self) -> list[dict[str, Any]]:
        """Read and empty the console's log."""
        read: list[dict[str, Any]] = self.driver.get_log("browser")  # type: ignore[no-untyped-call]
        return read

    def grave_findings(self) -> list[Finding]:
        """Run axe-core; the page's CSP does not restrict WebDriver's scripts."""
        self.run(_NEWEST_AXE.read_text() if _NEWEST_AXE.exists() else OLDER_AXE)
        done = self.driver.execute_async_script(
            "const done = arguments[arguments.length - 1];"
            "axe.run(document, {resultTypes: ['violations']}).then(done, error => done({error: String(error)}))"
        )
        assert "error" not in done, done["error"]
        return [
            Finding(each["id"], each["help"], tuple(node["html"][:200] for node in each["nodes"][:5]))
            for each in done["violations"]
            if each["impact"] in _GRAVE
        ]

    def picture(self, path: Path) -> None:
        """Save a screenshot as a PNG."""
        self.driver.save_screenshot(str(path))


def programs() -> tuple[str, str] | None:
    """Return the paths of Chromium and its driver, or None if one is missing."""
    found = shutil.which("chromium"), shutil.which("chromedriver")
    return None if None in found else found  # type: ignore[return-value]  # both are there


@contextmanager
def browsing() -> Iterator[Browser]:
    """Start a browser with a fresh profile. Without Chromium, tests are skipped, or fail with CI=true."""
    found = programs()
    if found is None:
        if os.environ.get("CI") == "true":
            pytest.fail(MISSING)
        pytest.skip(MISSING)
    options = Options()
    options.binary_location = found[0]
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    for argument in (
        *("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars"),
        *("--no-first-run", "--disable-background-networking", "--force-color-profile=srgb", "--lang=en"),
        "--no-proxy-server",
    ):
        options.add_argument(argument)

    def start() -> webdriver.Chrome:
        driver = webdriver.Chrome(options=options, service=Service(found[1], port=free_port()))
        driver.set_script_timeout(60)
        driver.set_page_load_timeout(60)
        return driver

    browser = Browser(start)
    try:
        browser.look()
        yield browser
    finally:
        browser.driver.quit()
