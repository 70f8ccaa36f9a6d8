"""Values from outside in every field: markup, bidirectional text and 10,000 characters do nothing, on any screen."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from inbox.clock import SystemClock
from inbox.db import engine as engines
from inbox.db.intake import Rejected
from relay.delivery.alerts import Alert
from relay.delivery.outcome import Call, Failed
from relay.delivery.policy import policies
from relay.operations.asks import Selection
from relay.store import alerts, gates, nodes
from relay.store.operator import commands
from relay.web.screens import SCREENS
from tests.helpers.browser import DESK, PHONE, Browser
from tests.helpers.night import an_arrival, night_config
from tests.helpers.page import Page, on_database, serving
from tests.helpers.relaying import FakeClock, Steps, work_of

MARKUP = (
    "<script>window.hacked = 1</script><img src=x onerror='window.hacked = 2'>\"'--><b onmouseover=hacked(3)>{{ 7*7 }}"
)
BIDI = "admin\u202egnp.exe\u2066\u200b\u00ad\x1b[31m"
VALUES = {
    "markup": MARKUP,
    "bidi": BIDI,
    "long": "x" * 10_000,
    "words": "long words " * 900,
    "path": "../a/b?c=d#e&f=%2e%2e;",
}
LOOK_FOR_HARM = """
return [window.hacked ?? null, document.querySelectorAll('main script, main img, main b, main iframe').length,
        /[\\u200b\\u202a-\\u202e\\u2066-\\u2069\\u001b]/.test(document.body.innerText)]
"""
PATHS = sorted(screen.path for screen in SCREENS if screen.key)
PLACES = ("/commands/", "/entity?", "/events/")


@pytest.fixture(scope="module")
def hostile_page(sqlite_template: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    path = tmp_path_factory.mktemp("hostile") / "inbox.db"
    shutil.copy(sqlite_template, path)
    engine = engines.connect(f"sqlite:///{path}", application="tests")
    config = night_config()
    steps = Steps(engine, policies(config), FakeClock(SystemClock().now()))
    for value in VALUES.values():
        _fill(steps, value)
    engine.dispose()
    with serving(on_database(config, f"sqlite:///{path}"), SystemClock()) as page:
        yield page


def _fill(steps: Steps, value: str) -> None:
    """Put the value into every field that takes it."""
    event = an_arrival("shop", value, steps.clock.moment, **{value: value})
    given = {"entity_type": value, "event_type": value, "event_id": value, "headers": {"user-agent": value}}
    steps.arrive(msgspec.structs.replace(event, dedup_key=value, content_type=value[:200], **given))
    (delivery,) = steps.claim_due(1, "orders-to-erp")
    call = Call(
        "forward", "POST", f"https://erp.example.com/{value}"[:2000], "answered", 3.0, status=422, excerpt=value[:4000]
    )
    steps.record([(delivery, Failed((call,), "mapping", value))])
    steps.intake.reject(
        Rejected(
            received_at=steps.clock.moment,
            source=value[:500],
            status=422,
            cause="invalid_event",
            reason=value,
            field=value,
            remote_address=value[:100],
            body_sha256=hashlib.sha256(value.encode()).digest(),
            headers={"user-agent": value},
            body=value.encode(),
        )
    )
    with steps.database.write() as transaction:
        now = transaction.take_order_lock()
        gates.pause(transaction, ("route", "orders-to-warehouse"), who=value[:200], why=value[:2000])
        alerts.note(transaction, [Alert("step_failed", value[:200], firing=True, detail={"error": value})], now)
    commands.ask(steps.database, "replay", Selection(error=value[:1000]), who=value[:200], why=value[:2000])
    nodes.describe(work_of(steps.database, node=value[:100]), value[:100], 1, value[:50])


def _is_harmless(browser: Browser) -> None:
    assert browser.run(LOOK_FOR_HARM) == [None, 0, False]
    assert browser.errors() == []
    for width in (DESK, PHONE):
        browser.look(width=width)
        assert browser.overflow() <= 0, f"{browser.at()} is wider than {width} px"


@pytest.mark.parametrize("path", PATHS)
def test_hostile_values_are_shown_harmless(path: str, browser: Browser, hostile_page: Page) -> None:
    browser.site = hostile_page.url
    browser.open(f"{path}?live=0")
    _is_harmless(browser)


@pytest.mark.long
@pytest.mark.parametrize("place", PLACES)
def test_hostile_values_of_one_thing_are_shown_harmless(place: str, browser: Browser, hostile_page: Page) -> None:
    browser.site = hostile_page.url
    links = set[str]()
    for path in PATHS:
        browser.open(f"{path}?live=0")
        links |= set(browser.hrefs(f'main a[href^="{place}"]'))
    for link in sorted(links)[:8]:
        browser.look()
        browser.open(link)
        assert browser.find("h1").text
        assert "There is nothing here" not in browser.text()
        _is_harmless(browser)


@pytest.mark.parametrize("value", VALUES.values(), ids=list(VALUES))
def test_a_hostile_filter_stays_text_in_its_field(value: str, browser: Browser, hostile_page: Page) -> None:
    browser.site = hostile_page.url
    browser.open("/rejected")
    field = browser.find("input[name=error]")
    wanted = value[:900].replace("\x1b", "")
    browser.run("arguments[0].value = arguments[1]", field, wanted)
    browser.find("form.filters button").click()
    browser.wait(lambda: "error=" in browser.at(), "the filter is in the URL")
    assert browser.find("input[name=error]").get_attribute("value") == wanted.strip("\n")
    _is_harmless(browser)
