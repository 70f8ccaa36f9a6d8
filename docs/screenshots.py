"""Makes the pictures of the operator's page in `docs/web/`: `python -m docs.screenshots`.

It fills a database with a night of trouble, serves the page, and opens it in Chromium. No test runs this, as the times on the
pictures differ from run to run.
"""  # noqa: INP001  # a script beside pages

from __future__ import annotations

import json
import random
import tempfile
from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path
from typing import NamedTuple

import msgspec
from sqlalchemy import Engine

from inbox.clock import SystemClock
from inbox.db import engine as engines
from inbox.db import migrate
from inbox.db.throughput import REJECTED, SOURCE, STORED
from inbox.events.event import Enrolment, Event
from relay.delivery.outcome import Call, Delivered, Delivery, Failed, Outcome
from relay.delivery.policy import policies
from relay.operations.asks import Selection
from relay.store import alerts, gates, nodes, sweeps
from relay.store.alert_conditions import Watch
from relay.store.database import Database
from tests.helpers.browser import DESK, PHONE, Browser, Theme, browsing
from tests.helpers.page import OPERATOR, on_database, serving
from tests.helpers.relaying import FakeClock, Steps, carry_out
from tests.helpers.storing import a_rejected, an_event
from tests.helpers.webhooks import address_of, forwarding

FOLDER = Path(__file__).resolve().parent / "web"
MOST_BYTES = 150_000


class Shot(NamedTuple):
    """A picture of a page."""

    name: str
    path: str
    width: int
    height: int
    theme: Theme
    link: str | None = None
    """Selector of a link to follow first."""


SHOTS = (
    Shot("overview", "/?live=0", DESK, 900, "light"),
    Shot("overview-phone", "/?live=0", PHONE, 780, "dark"),
    Shot("deliveries", "/deliveries?state=dead&live=0", DESK, 600, "dark"),
    Shot("dead", "/dead?live=0", DESK, 450, "light"),
    Shot("plan", "/dead?live=0", DESK, 760, "light", 'tbody a[href^="/acts/replay"]'),
    Shot("event", "/dead?live=0", DESK, 780, "dark", 'tbody a[href^="/events/"]'),
)


def main() -> None:
    """Take all pictures."""
    FOLDER.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as folder, browsing() as browser:
        url = f"sqlite:///{folder}/inbox.db"
        engine = engines.connect(url, application="screenshots")
        migrate.upgrade(engine)
        the_night(engine)
        with serving(on_database(NIGHT, url), SystemClock()) as page:
            browser.site = page.url
            browser.act_as(OPERATOR)
            for shot in SHOTS:
                nodes.heartbeat(Database(engine), "relay-1")
                take(browser, shot)
        engine.dispose()


def take(browser: Browser, shot: Shot) -> None:
    """Take one picture.

    Raises:
        ValueError: it is too large for a repository.
    """
    browser.look(width=shot.width, height=shot.height, theme=shot.theme)
    browser.open(shot.path)
    if shot.link is not None:
        browser.find(shot.link).click()
        browser.wait(lambda: browser.location() != shot.path, "the link was followed")
    path = FOLDER / f"{shot.name}.png"
    browser.picture(path)
    if path.stat().st_size > MOST_BYTES:
        raise ValueError(f"{path.name} has {path.stat().st_size:,} bytes; choose a smaller part")


# --- The night

MINUTES = 75
"""Minutes from the beginning to the operator's visit."""
_ERP_WAS_DOWN = range(22, 37)
_CRM_REFUSES_FROM = 63
_PAUSED_FROM = 58
_ROUTES = {
    "orders-to-erp": ("shop", "erp"),
    "orders-to-warehouse": ("shop", "warehouse"),
    "people-to-crm": ("people", "crm"),
    "payments-to-ledger": ("payments", "ledger"),
}
_PEOPLE = """
silent_after = "2h"
[[sources.people.sweeps]]
api = "directory"
path = "/user"
params = { modifiedAfter = "{since}" }
items = "resources"
modified = "meta.lastModified"
entity_type = "USER"
event_type = "SWEPT"
every = "15m"
[apis.directory]
base_url = "https://people.example.com"
"""
NIGHT = forwarding(
    _ROUTES,
    {"sources.people": _PEOPLE, "destinations.erp": 'rate = "20/s"', "routes.people-to-crm": 'on_dead = "block"'},
)
_KINDS = {
    "shop": ("order", "ORDER_UPDATED"),
    "people": ("USER", "USER_UPDATED"),
    "payments": ("payment", "PAYMENT_SETTLED"),
}
_REPLAYS = {40: "the ERP is up again", 66: "those that were left, before the day begins"}


def the_night(engine: Engine) -> None:
    """Fill a database with the events of a night until now, as views compare with the database's clock."""
    moment = SystemClock().now()
    clock = FakeClock(moment - timedelta(minutes=MINUTES))
    steps = Steps(engine, policies(NIGHT), clock)
    steps.config = NIGHT
    rng = random.Random(16)  # noqa: S311  # no secret
    steps.node = "relay-1"
    nodes.describe(steps.work, "app-1.example.com", 4182, "1.0")
    watch = Watch(lambda: (clock.moment - moment).total_seconds())  # noqa: PLW0108  # the clock moves
    for minute in range(MINUTES):
        events = list(_events(minute, clock.moment, rng))
        steps.receive(*events)
        for event in events:
            steps.database.tally.add(SOURCE, event.source, STORED, size=len(event.body or b""))
        _operators(steps, minute)
        _rejections(steps, minute)
        _work(steps, minute, rng)
        nodes.heartbeat(steps.database, "relay-1")
        watch.check(steps.work)
        nodes.flush_figures(steps.database, NIGHT.routes)
        clock.advance(60)
    _work(steps, MINUTES, rng)
    nodes.flush_figures(steps.database, NIGHT.routes)
    alerts.take_unlogged(steps.work)
    nodes.heartbeat(steps.database, "relay-1")
    _last_arrivals(steps, rng)


def _events(minute: int, moment: datetime, rng: random.Random) -> Iterator[Event]:
    """Yield the events of one minute: a wave of orders, some people, some payments."""
    wave = 4 + int(3 * (1 + (minute % 20) / 10))
    for source, count in (
        ("shop", rng.randint(wave - 2, wave)),
        ("people", rng.randint(1, 3)),
        ("payments", rng.randint(1, 4)),
    ):
        entity_type = _KINDS[source][0]
        for number in range(count):
            entity_id = f"{entity_type[:2].lower()}-{rng.randint(10_400, 10_980)}"
            at = moment + timedelta(seconds=number, microseconds=rng.randint(0, 999_999))
            yield an_arrival(source, entity_id, at)


def an_arrival(source: str, entity_id: str, at: datetime) -> Event:
    """Make an event as the receiver stores it."""
    entity_type, event_type = _KINDS[source]
    told = {"id": entity_id, "type": event_type, "at": at.isoformat(), "customer": {"name": "Aino", "city": "Espoo"}}
    body = json.dumps({**told, "total": "129.90"}).encode()
    routes = [name for name, (begin, _) in _ROUTES.items() if begin == source]
    return msgspec.structs.replace(
        an_event(0, entity_id, body=body),
        source=source,
        dedup_key=f"{at:%Y%m%d%H%M%S%f}|{entity_id}|{event_type}",
        entity_type=entity_type,
        event_type=event_type,
        occurred_at=at,
        received_at=at + timedelta(milliseconds=180),
        enrolments=tuple(Enrolment(route, f"{entity_type}|{entity_id}") for route in routes),
        headers={"content-type": "application/json", "user-agent": "shop-webhooks/3.1"},
    )


def _work(steps: Steps, minute: int, rng: random.Random) -> None:
    """Deliver everything that is due."""
    steps.sequence()
    for most, routes in _turns(minute):
        claimed = steps.claim_due(most, *routes)
        steps.record([(delivery, _outcome(delivery, minute, rng)) for delivery in claimed])


def _turns(minute: int) -> Iterator[tuple[int, tuple[str, ...]]]:
    """Yield number and routes of deliveries to claim; one probe for an endpoint whose breaker is open."""
    routes = _open_routes(minute)
    if minute in _ERP_WAS_DOWN and minute > _ERP_WAS_DOWN.start:
        routes = tuple(route for route in routes if route != "orders-to-erp")
        yield 1, ("orders-to-erp",)
    yield 100, routes
    yield 100, routes


def _open_routes(minute: int) -> tuple[str, ...]:
    """Return the routes with open gates."""
    closed = {"payments-to-ledger"} if minute >= _PAUSED_FROM else set()
    closed |= {"people-to-crm"} if minute > _CRM_REFUSES_FROM else set()
    return tuple(name for name in _ROUTES if name not in closed)


def _outcome(delivery: Delivery, minute: int, rng: random.Random) -> Outcome:
    url = address_of(_ROUTES[delivery.route][1])
    milliseconds = round(rng.lognormvariate(4.4, 0.4), 1)

    def call(status: int, excerpt: str | None = None) -> tuple[Call, ...]:
        request = None if excerpt is None else (delivery.body or b"").decode()
        return (Call("forward", "POST", url, "answered", milliseconds, status, excerpt=excerpt, request=request),)

    last = int((delivery.entity_id or "0")[-2:])
    if delivery.route == "orders-to-erp" and minute in _ERP_WAS_DOWN:
        return Failed(call(503, '{"error": "the service is restarting"}'), "server_error", "forward answered 503")
    if delivery.route == "orders-to-erp" and last % 23 == 0:
        cause = "currency FIM is not configured for this company"
        excerpt = f'{{"error": "unknown_currency", "message": "{cause}"}}'
        return Failed(call(422, excerpt), "rejected", f"forward answered 422: {cause}")
    if delivery.route == "people-to-crm" and minute >= _CRM_REFUSES_FROM:
        return Failed(call(401, '{"error": "token expired"}'), "auth", "forward answered 401: token expired")
    if delivery.route == "people-to-crm" and last % 31 == 0:
        return Failed((), "mapping", "email: no value")
    return Delivered(call(200), "forwarded")


def _operators(steps: Steps, minute: int) -> None:
    if minute == _PAUSED_FROM:
        with steps.database.write() as transaction:
            transaction.take_order_lock()
            why = "the ledger moves to its new host until 04:00"
            gates.pause(transaction, ("route", "payments-to-ledger"), who="olga", why=why)
    if minute == _ERP_WAS_DOWN.stop:
        with steps.database.write() as transaction:
            gates.resume(transaction, ("destination", "erp"), transaction.take_order_lock())
    if minute in _REPLAYS:
        chosen = Selection(route="orders-to-erp", error="503")
        carry_out(steps.database, NIGHT, "replay", chosen, who="olga", why=_REPLAYS[minute])
    if minute % 15 == 10:  # noqa: PLR2004  # a sweep every quarter
        since = steps.clock.moment - timedelta(minutes=15)
        now, found = steps.clock.moment, minute % 2
        sweeps.finish(steps.work, sweeps.SweepFindings("people", "USER", since, now, 31 + minute, found, found))


def _rejections(steps: Steps, minute: int) -> None:
    if minute % 4 == 1:
        refused = {"status": 401, "cause": "signature", "field": None, "remote_address": f"203.0.113.{minute}"}
        reason = "no signature of the request fits any secret of the source"
        steps.intake.reject(a_rejected(received_at=steps.clock.moment, source="shop", reason=reason, **refused))
        steps.database.tally.add(SOURCE, "shop", REJECTED)


def _last_arrivals(steps: Steps, rng: random.Random) -> None:
    """Add a few recent events, one of them in flight."""
    steps.receive(*_events(MINUTES, steps.clock.moment - timedelta(seconds=20), rng))
    steps.sequence()
    steps.claim_due(1, "orders-to-warehouse")
    steps.receive(*_events(MINUTES + 1, steps.clock.moment - timedelta(seconds=5), rng))


if __name__ == "__main__":
    main()
