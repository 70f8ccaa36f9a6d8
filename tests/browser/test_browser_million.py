"""The page over a million events: every screen opens, counts are capped, links work."""

from __future__ import annotations

import re

import pytest

from inbox.clock import SystemClock
from inbox.config.model import Config
from inbox.loader.load import parse_config
from tests.helpers.browser import PHONE, Browser
from tests.helpers.databases import connect_postgres
from tests.helpers.page import on_database, serving

CONFIG = """
[sources.trivore]
preset = "trivore"
auth = { kind = "header", name = "X-Webhook-Token", secrets = ["a-token-of-this-test"] }
[destinations.downstream]
kind = "forward"
url = "https://erp.example.com/hooks"
[routes.everything]
source = "trivore"
destination = "downstream"
ordering = "strict"
"""
EVENTS, ONLY = 1_000_000, 333_333
"""Number of events, and the seq of the only one of its type."""
_LOG = "INSERT INTO delivery_log (at, seq, route, kind, state, attempt, relay_node, detail)"
_AT = f"now() - make_interval(secs => ({EVENTS} - n) * 2.6)"
_ENTITY = "CASE WHEN n % 10 = 3 THEN 'large' ELSE 'u' || (n / 10) END"
_STATE = """CASE WHEN n > 980000 THEN 'received' WHEN n % 20 = 11 THEN 'dead' WHEN n % 10 = 0 THEN 'ready'
            ELSE 'waiting' END"""
_FAILURE = """jsonb_build_object('cause', 'server_error', 'error_class', 'server_error', 'calls', '[]'::jsonb,
              'error', 'HTTP 503 from downstream: kind ' || (n % 40))"""
ROWS = f"""
INSERT INTO inbox (seq, source, dedup_key, entity_type, entity_id, event_type, action, occurred_at, received_at, routes,
                   content_type, body_bytes, body_sha256)
SELECT n, 'trivore', 'key ' || n, 'USER', {_ENTITY}, CASE WHEN n = {ONLY} THEN 'ONLY' ELSE 'UPDATE' END, 'update', {_AT}, {_AT},
       '{{everything}}', 'application/json', 2, '\\x00' FROM generate_series(1, {EVENTS}) n;
SELECT setval('inbox_seq_seq', {EVENTS});
INSERT INTO open_delivery (seq, route, lane, occurred_at, state, attempt, due_at)
SELECT n, 'everything', 'USER|' || {_ENTITY}, {_AT}, {_STATE}, CASE WHEN {_STATE} = 'dead' THEN 2 ELSE 0 END,
       CASE WHEN {_STATE} = 'ready' THEN now() END FROM generate_series(800001, {EVENTS}) n;
{_LOG} SELECT {_AT}, n, 'everything', 'delivered', 'ended', 1, 'relay', '{{"did": "forwarded", "calls": []}}'
FROM generate_series(1, 800000) n;
{_LOG} SELECT {_AT}, n, 'everything', 'dead', 'dead', 2, 'relay', {_FAILURE} FROM generate_series(800001, {EVENTS}) n
WHERE {_STATE} = 'dead';
INSERT INTO rejected_request (received_at, source, status, cause, reason, body_sha256)
SELECT now(), 'trivore', 401, 'auth', 'wrong secret ' || n, '\\x00' FROM generate_series(1, 20000) n;
INSERT INTO relay_command (kind, selection, reason, asked_by, asked_at, state, finished_at)
SELECT 'replay', '{{}}', 'benchmark ' || n, 'olga', now(), 'done', now() FROM generate_series(1, 20000) n;
INSERT INTO alert (at, kind, subject, firing, detail)
SELECT now(), 'delivery_dead', 'route ' || (n % 100), n % 200 < 100, '{{}}' FROM generate_series(1, 20000) n;
INSERT INTO gate (kind, name, paused_at, paused_by, pause_reason)
SELECT 'entity', 'trivore|USER|u' || n, now(), 'olga', 'benchmark' FROM generate_series(1, 200) n
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


@pytest.mark.nightly
@pytest.mark.alone
def test_every_screen_works_over_a_million_events(browser: Browser, postgres_database_url: str) -> None:
    """One test, so that the database is filled once."""
    with connect_postgres(postgres_database_url) as connection:
        for statement in ROWS.split(";\n"):
            connection.execute(statement)
        connection.execute("VACUUM ANALYZE")
    with serving(config_of(postgres_database_url), SystemClock()) as page:
        browser.site = page.url
        for path, said in SAID.items():
            opened = path.format(only=ONLY)
            browser.look()
            browser.open(opened + ("&" if "?" in opened else "?") + "live=0")
            assert re.search(said, browser.text()), f"{opened}: {browser.text()[:2000]}"
            assert not browser.all("[role=alert]"), (opened, browser.text()[:800])
            assert browser.errors() == []
            assert browser.overflow() <= 0
            browser.look(width=PHONE)
            assert browser.overflow() <= 0
        browser.look()
        _pages_and_the_back_button(browser)
        _a_filter_that_few_rows_match(browser)
        browser.driver.get("about:blank")


def _pages_and_the_back_button(browser: Browser) -> None:
    """A link from deep inside opens there; older and back go one page each way."""
    middle = EVENTS // 2
    browser.open(f"/deliveries?before={middle}&live=0")
    first = browser.find("tbody a").text
    assert int(first) < middle
    browser.find("a[rel=next]").click()
    browser.wait(lambda: f"before={middle}" not in browser.at(), "the next page")
    assert int(browser.find("tbody a").text) < int(first)
    browser.driver.back()
    browser.wait(lambda: browser.find("tbody a").text == first, "the page before")


def _a_filter_that_few_rows_match(browser: Browser) -> None:
    """It finds the row, or says how far it looked; and it goes on from there."""
    browser.open("/deliveries?event_type=ONLY&live=0")
    assert browser.all(f"a[href='/events/{ONLY}']") or "events were looked through" in browser.text()
    browser.open(f"/deliveries?event_type=ONLY&before={ONLY + 100}&live=0")
    assert browser.find("tbody a").text == str(ONLY)
