"""The page in a browser: keys, scripts, live refresh, acts, accessibility, outages, sign-in, and hostile values."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

import pytest
from selenium.webdriver.common.keys import Keys
from sqlalchemy import Engine

from inbox.clock import SystemClock
from inbox.db.intake import Rejected
from relay.web.screens import SCREENS
from tests.helpers import databases, worlds
from tests.helpers.browser import DESK, PHONE, TABLET, Browser, Theme
from tests.helpers.daemon import make_config, running
from tests.helpers.databases import ON_SQLITE, copy_sqlite, open_engine
from tests.helpers.page import PASSWORD, Entrance, Page, entrance, on_database, serving
from tests.helpers.relaying import CONFIG, FakeClock, Steps, give_up
from tests.helpers.storing import Intake, a_rejected
from tests.helpers.traffic import serving as downstream_serving


def store_rejection(engine: Engine, reason: str) -> None:
    Intake(str(engine.url)).reject(
        Rejected(SystemClock().now(), "shop", 401, "signature", reason, None, "203.0.113.9", b"\0" * 32, None, None)
    )


def test_filters_are_in_the_url_and_the_back_button_undoes_them(browser: Browser, night_page: Page) -> None:
    browser.site = night_page.url
    browser.open("/rejected?source=shop")
    assert browser.find("input[name=source]").get_attribute("value") == "shop"
    field = browser.find("input[name=source]")
    field.clear()
    field.send_keys("trivore", Keys.ENTER)
    browser.wait(lambda: "source=trivore" in browser.location(), "the filter is in the URL")
    assert "id is missing" not in browser.text()
    browser.driver.back()
    browser.wait(lambda: browser.location().endswith("source=shop"), "back")
    assert browser.find("input[name=source]").get_attribute("value") == "shop"
    assert "id is missing" in browser.text()


def test_the_page_can_be_used_by_keyboard(browser: Browser, night_page: Page) -> None:
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


def test_the_page_works_without_scripts(browser: Browser, night_page: Page) -> None:
    browser.site = night_page.url
    browser.allow_scripts(allowed=False)
    browser.open("/rejected")
    browser.find("input[name=source]").send_keys("shop")
    browser.find("form.filters button").click()
    browser.wait(lambda: "source=shop" in browser.location(), "the filter is in the URL")
    assert "id is missing" in browser.text()
    browser.allow_scripts(allowed=True)


def test_new_rows_appear_without_a_reload(browser: Browser, own_page: Page, sqlite_engine: Engine) -> None:
    browser.site = own_page.url
    browser.open("/rejected")
    browser.run("window.same = true")
    browser.wait(lambda: browser.find("#live").text == "Live", "the page is live")
    store_rejection(sqlite_engine, "no signature fits")
    browser.wait(lambda: "no signature fits" in browser.text(), "the rejection appears")
    assert browser.run("return window.same") is True
    browser.find("#live").click()
    browser.wait(lambda: browser.find("#live").text == "Paused", "the page is paused")


# --- Acts, with a real relay


EVENTS = [(f"u{number}", f"2026-01-01T00:00:0{number}Z") for number in range(5)]


@pytest.fixture
def replay_page(sqlite_engine: Engine) -> Iterator[Page]:
    config = make_config("http://127.0.0.1:9/")
    with serving(on_database(config, str(sqlite_engine.url)), SystemClock()) as page:
        yield page


def test_a_bulk_replay_goes_from_the_filter_to_delivered(
    browser: Browser, replay_page: Page, sqlite_engine: Engine, tmp_path: Path
) -> None:
    browser.site = replay_page.url
    seqs = give_up(sqlite_engine, str(sqlite_engine.url), EVENTS)
    browser.open("/deliveries?state=dead&route=everything&live=0")
    browser.find("th [data-all]").click()
    assert browser.find("#chosen").text == "5 of 5 chosen"
    browser.link("Replay all 5 that match").click()
    browser.wait(lambda: "/acts/replay" in browser.location(), "the plan")
    assert "5 deliveries" in browser.text()
    assert browser.grave_findings() == []
    browser.find("textarea[name=reason]").send_keys("the map is fixed")
    browser.find("main form button").click()
    browser.wait(lambda: "/commands/" in browser.location(), "the command")
    assert "the map is fixed" in browser.text()
    with downstream_serving(tmp_path / "ledger") as downstream, running(sqlite_engine, downstream):
        browser.wait(lambda: browser.all(".state-done"), "the command ends, and the page shows it by itself")
        browser.wait(lambda: downstream.events == set(seqs), "all are delivered")
        browser.wait(lambda: "5 delivered, 0 failed" in browser.text(), "the command says so by itself")
    browser.link("Show exactly these deliveries").click()
    browser.wait(lambda: len(browser.all("tbody tr")) == len(EVENTS), "the list has exactly these")
    browser.open("/deliveries?state=dead&live=0")
    assert "No delivery matches" in browser.text()
    browser.open("/deliveries?state=delivered&live=0")
    browser.wait(lambda: len(browser.all("tbody tr")) == len(EVENTS), "all are shown as delivered")


# --- Screens are accessible and fit the window, with data and without


PATHS = sorted(screen.path for screen in SCREENS if screen.key)
OF_ONE = {"event": "/events/", "entity": "/entity?", "command": "/commands/", "route": "/route?"}
"""Maps screens of one thing to the beginning of their links."""


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


def test_the_menu_fits_a_desktop_window(browser: Browser, night_page: Page) -> None:
    browser.site = night_page.url
    browser.look(width=DESK)
    browser.open("/alerts")  # a live page shows more beside the menu
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
    path = find_first_link(browser, OF_ONE[name])
    for width in (DESK, PHONE):
        browser.look(width=width, theme="light" if width == PHONE else "dark")
        browser.open(path)
        assert browser.grave_findings() == []
        assert browser.errors() == []
        assert browser.overflow() <= 0


def find_first_link(browser: Browser, start: str) -> str:
    """Return the first link on a list that begins with `start`."""
    for path in PATHS:
        browser.open(f"{path}?live=0")
        for link in browser.hrefs(f'main a[href^="{start}"]'):
            return link
    pytest.fail(f"no list has a link to {start}")


# --- A live page without its database


@pytest.fixture
def live_page(database_url: str, browser: Browser) -> Iterator[Page]:
    """The live list of rejected requests with one row."""
    now = SystemClock().now()
    Intake(database_url).reject(a_rejected(received_at=now, source="shop", status=401, reason="no key fits"))
    with serving(on_database(worlds.CONFIG, database_url), SystemClock()) as page:
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
def test_a_page_reports_a_lost_database_and_recovers_by_itself(
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


# --- Signing in and out


A_DAY = 86_400


@pytest.fixture
def door(sqlite_engine: Engine, tmp_path: Path, browser: Browser) -> Iterator[Entrance]:
    browser.act_as(None)
    with entrance(on_database(worlds.CONFIG, str(sqlite_engine.url)), tmp_path) as made:
        browser.site = made.url
        browser.driver.delete_all_cookies()
        yield made
        browser.driver.get("about:blank")


def sign_in(browser: Browser, name: str, password: str) -> None:
    """Fill in and send the form by keyboard."""
    browser.find("input[name=name]").clear()
    browser.find("input[name=name]").send_keys(name, Keys.TAB)
    assert browser.find_focused().get_attribute("name") == "password"
    form = browser.find(".sign-in form")
    browser.press(password, Keys.ENTER)
    browser.wait(lambda: is_gone(browser, form.id), "the next page")


def is_gone(browser: Browser, element: str) -> bool:
    return element not in {each.id for each in browser.all(".sign-in form")}


@pytest.mark.usefixtures("door")
def test_a_person_signs_in_and_out_by_keyboard(browser: Browser) -> None:
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
def test_without_scripts_going_back_after_a_sign_out_shows_the_form(browser: Browser) -> None:
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


def test_an_expired_session_leads_to_the_form_and_back(browser: Browser, door: Entrance) -> None:
    browser.open("/rejected?source=shop")
    sign_in(browser, "anna", PASSWORD)
    browser.wait(lambda: browser.find("#live").text == "Live", "the page is live")
    door.later(A_DAY)
    browser.wait(lambda: "signed out" in browser.find("#live").text, "the open page says so")
    browser.link("Filter").click()
    browser.wait(lambda: browser.location().startswith("/sign-in?next="), "the form")
    sign_in(browser, "anna", PASSWORD)
    assert browser.find("input[name=source]").get_attribute("value") == "shop"


# --- Hostile values


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
FIND_HARM = """
return [window.hacked ?? null, document.querySelectorAll('main script, main img, main b, main iframe').length,
        /[\\u200b\\u202a-\\u202e\\u2066-\\u2069\\u001b]/.test(document.body.innerText)]
"""


@pytest.fixture(scope="module")
def hostile_page(sqlite_template: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    url = copy_sqlite(sqlite_template, tmp_path_factory.mktemp("hostile"))
    with open_engine(url) as engine:
        steps = Steps(engine, clock=FakeClock(SystemClock().now()))
        for value in VALUES.values():
            worlds.fill_hostile(steps, value)
    with serving(on_database(CONFIG, url), SystemClock()) as page:
        yield page


def assert_harmless(browser: Browser) -> None:
    assert browser.run(FIND_HARM) == [None, 0, False]
    assert browser.errors() == []
    for width in (DESK, PHONE):
        browser.look(width=width)
        assert browser.overflow() <= 0, f"{browser.location()} is wider than {width} px"


@pytest.mark.parametrize("path", PATHS)
def test_hostile_values_are_escaped(path: str, browser: Browser, hostile_page: Page) -> None:
    """Visit a list, and the screens of one thing that its first links lead to."""
    browser.site = hostile_page.url
    browser.open(f"{path}?live=0")
    links = {place: browser.hrefs(f'main a[href^="{place}"]')[:1] for place in ("/commands/", "/entity?", "/events/")}
    assert_harmless(browser)
    for link in itertools.chain(*links.values()):
        browser.look()
        browser.open(link)
        assert browser.find("h1").text
        assert_harmless(browser)
