"""Databases full of trouble, for pages and screenshots."""

from __future__ import annotations

import base64
import hashlib
import json
import random
from collections.abc import Iterator
from datetime import datetime, timedelta

import msgspec
from sqlalchemy import Engine

from inbox.clock import SystemClock
from inbox.db.dialect import rows_param
from inbox.db.intake import Rejected
from inbox.db.throughput import REJECTED, SOURCE, STORED, Tally, add_up
from inbox.events.event import Enrolment, Event
from inbox.events.timestamps import time_text
from relay.delivery.alerts import Alert
from relay.delivery.gates import Breaker, BreakerState, make_entity_key
from relay.delivery.outcome import Call, Delivered, Delivery, Failed, Outcome
from relay.delivery.policy import HoldRequest, policies
from relay.operations.asks import Selection
from relay.store import alerts, gates, nodes, sweeps
from relay.store.alert_conditions import Watch
from relay.store.database import Database
from relay.store.operator import commands
from relay.store.operator.execution import OpenCommands
from tests.helpers.relaying import DONE, HOPELESS, FakeClock, Steps, carry_out, prune, work_of
from tests.helpers.storing import START, a_rejected, an_event
from tests.helpers.webhooks import address_of, forwarding

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


def the_night(engine: Engine, moment: datetime, minutes: int = MINUTES) -> Steps:
    """Fill a database with a night's events until `moment`, which must be now: views compare with the database's clock.

    Fewer minutes omit the beginning. The clock of the returned steps stands at `moment`.
    """
    clock = FakeClock(moment - timedelta(minutes=minutes))
    steps = Steps(engine, policies(NIGHT), clock)
    steps.config = NIGHT
    rng = random.Random(16)
    steps.node = "relay-1"
    nodes.describe(steps.work, "app-1.example.com", 4182, "1.0")
    watch = Watch(lambda: (clock.moment - moment).total_seconds())  # noqa: PLW0108  # the clock moves
    for minute in range(MINUTES - minutes, MINUTES):
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
    return steps


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


def an_arrival(source: str, entity_id: str, at: datetime, **said: object) -> Event:
    """Make an event as the receiver stores it; `said` is added to its body."""
    entity_type, event_type = _KINDS[source]
    told = {"id": entity_id, "type": event_type, "at": at.isoformat(), "customer": {"name": "Aino", "city": "Espoo"}}
    body = json.dumps({**told, "total": "129.90", **said}).encode()
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
    if minute % 15 == 10:
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


WORDS = {
    "body": "sesame-of-a-body",
    "header": "sesame-of-a-header",
    "duplicate": "sesame-of-a-duplicate",
    "rejected body": "sesame-of-a-rejected-body",
    "rejected header": "sesame-of-a-rejected-header",
    "excerpt": "sesame-of-an-excerpt",
    "request": "sesame-of-a-request",
}
"""Words that occur only in the part of this name."""
PAYLOADS = tuple(part for part in WORDS if part not in {"excerpt", "request"})
"""Parts shown only for a stated reason."""


def fill_page(steps: Steps) -> None:
    """Fill every list of the page, with delivered, dead, blocked, retrying and waiting events."""
    nodes.describe(work_of(steps.database, steps.policies, node=steps.node), "host", 1, "0.1.0")
    routes = (("strict",), ("blocking",), ("strict", "latest"), ("strict",), ())
    headers = {"content-type": "application/json", "x-request-id": WORDS["header"]}
    events = [
        msgspec.structs.replace(
            an_event(n, f"u{min(n, 3)}", routes=of, body=f'{{"n": {n}, "word": "{WORDS["body"]}"}}'.encode()),
            headers=headers,
        )
        for n, of in enumerate(routes, 1)
    ]
    steps.arrive(*events)
    other = f'{{"word": "{WORDS["duplicate"]}"}}'.encode()
    steps.intake.repeat(msgspec.structs.replace(events[0], body=other, body_sha256=hashlib.sha256(other).digest()))
    call = Call(
        "forward",
        "POST",
        "https://audit.example.com/",
        "answered",
        12.5,
        422,
        None,
        WORDS["excerpt"],
        None,
        WORDS["request"],
    )
    steps.attempt(DONE)
    for route in ("strict", "blocking"):
        steps.attempt(Failed((call,), "mapping", "forward: answered 422 Unprocessable Entity"), route)
    steps.attempt(Failed((call,), "server_error", "forward: answered 503", retry_after=3600), "latest")
    steps.intake.reject(
        a_rejected(headers={"x-request-id": WORDS["rejected header"]}, body=WORDS["rejected body"].encode()),
        a_rejected(),
    )
    with steps.database.write() as transaction:
        gates.pause(transaction, ("destination", "audit"), who="olga", why="a move")
    alerts.alert_failing_step(steps.work, "prune", "no space left")
    steps.do(
        "INSERT INTO relay_command (kind, selection, reason) VALUES ('replay', '{\"route\": \"strict\"}', 'after a fix')",
        "INSERT INTO relay_command (kind, selection, reason, dry_run)"
        " VALUES ('cancel', '{\"seq\": 2}', 'a look', true)",
    )


HOSTILE = "<script>alert(1)</script>\u202e'\"&"


def fill_hostile(steps: Steps, value: str = HOSTILE) -> None:
    """Store rows with a hostile text in every column that outsiders or other programs write."""
    short = value[:200]
    event = msgspec.structs.replace(
        an_event(1, value), entity_type=value, event_type=value, event_id=value, content_type=short, dedup_key=value,
        traceparent=short, headers={value: value}, body=value.encode(),
    )  # fmt: skip
    steps.arrive(event, msgspec.structs.replace(event, dedup_key=f"{value}2"))
    call = Call(
        "forward", "POST", value[:2000], "answered", 12.5, 422, error=value, excerpt=value[:4000], request=value[:1000]
    )
    steps.attempt(Failed((call,), "mapping", f"{value} {'x' * 10_000}"))
    steps.attempt(Failed((call,), "server_error", value))
    steps.intake.reject(Rejected(START, short, 422, short, value + "y" * 5000, short, short, b"", None, None))
    nodes.describe(work_of(steps.database, node=short), short, 1, short)
    nodes.heartbeat(steps.database, short, {"claim": value})
    with steps.database.write() as transaction:
        for gate in (("destination", "audit"), make_entity_key("trivore", short, short)):
            gates.pause(transaction, gate, who=short, why=value[:2000])
    alerts.alert_failing_step(steps.work, short, value)
    commands.ask(steps.database, "replay", Selection(route=short), who=short, why=value[:2000])


def forms_of(word: str) -> Iterator[str]:
    """Yield the forms of a word in a response: as is, in hex, and in base64 at any offset."""
    yield word
    yield word.encode().hex()
    for shift in range(3):
        whole = base64.b64encode(b"\0" * shift + word.encode()).decode()
        yield whole[4 if shift else 0 : len(whole) - 4]


# --- An installation after a bad night, with data for every query of docs/reference/dba.md.
# Events have fixed times on 2026-01-01. Facts are 15 minutes old, so that "in the last hour" finds them.


CONFIG = forwarding(
    {"to-crm": ("trivore", "crm"), "to-erp": ("shop", "erp"), "to-search": ("trivore", "search")},
    {
        "routes.to-crm": 'ordering = "strict"\non_dead = "continue"',
        "routes.to-erp": 'ordering = "strict"\non_dead = "block"',
        "routes.to-search": 'ordering = "latest"',
    },
)
POLICIES = policies(CONFIG)
_CALL = Call("forward", "POST", address_of("crm"), "answered", 0.2, status=503)
UNWELL = Failed((_CALL,), "server_error", "forward answered 503")


def event(number: int, entity: str, *routes: str, source: str = "trivore", kind: str = "UPDATE") -> Event:
    """Make the event of this number."""
    made = an_event(number, entity, routes=routes)
    return msgspec.structs.replace(made, source=source, event_type=kind, received_at=made.occurred_at)


class Night(Steps):
    """The relay's steps in that night, on a clock 15 minutes behind."""

    def __init__(self, engine: Engine) -> None:
        began = SystemClock().now().replace(second=0, microsecond=0) - timedelta(minutes=15)
        super().__init__(engine, POLICIES, FakeClock(began))
        self.config = CONFIG
        self.live = Database(engine)
        """The database with its own clock."""
        self.node = "relay-1"

    def command(self, kind: str, selection: str, why: str, who: str = "kim") -> None:
        """Give a command and carry it out."""
        self.do(
            "INSERT INTO relay_command (kind, selection, reason, asked_by)"
            f" VALUES ('{kind}', '{selection}', '{why}', '{who}')"
        )
        self.operate()

    def operate(self) -> None:
        """Carry out every open command."""
        working = OpenCommands()
        while working.work(self.work):
            pass
        working.work(self.work)

    def beat(self) -> None:
        """Send a heartbeat of the running relay, whose claims fail."""
        nodes.heartbeat(self.live, self.node, {"claim": "OperationalError: out of memory"})

    def attempts(self, **outcomes: Outcome) -> None:
        """Claim all due deliveries and record the outcomes of these entities; the others stay in flight."""
        self.advance(1)
        self.record([(one, outcomes[one.entity_id]) for one in self.claim_due() if one.entity_id in outcomes])


def happen(engine: Engine) -> Night:
    """Run the whole night."""
    night = Night(engine)
    _start_relays(night)
    _deliver(night)
    _give_up(night)
    _operate(night)
    _wait(night)
    _turn_away(night)
    _watch(night)
    return night


def _start_relays(night: Night) -> None:
    an_hour_ago = FakeClock(night.clock.moment - timedelta(hours=1))
    before = work_of(Database(night.database.engine, an_hour_ago), POLICIES, node="relay-0", config=CONFIG)
    nodes.describe(before, "host-a", 40, "1.0")
    nodes.describe(work_of(night.live, POLICIES, node=night.node, config=CONFIG), "host-b", 41, "1.0")


def _deliver(night: Night) -> None:
    """Deliver two events of alice, the first after a failure, and the newer of two of kate."""
    night.arrive(event(1, "alice", "to-crm"), event(2, "alice", "to-crm"))
    night.attempts(alice=UNWELL)
    night.advance(120)
    night.attempts(alice=DONE)
    night.attempts(alice=DONE)
    night.arrive(event(3, "kate", "to-search"), event(4, "kate", "to-search"))
    night.attempts(kate=DONE)


def _give_up(night: Night) -> None:
    """Let three events die of a mapping error, and an order block the next one."""
    night.arrive(*(event(number, who, "to-crm") for number, who in enumerate(("bob", "carol", "dave"), 5)))
    night.arrive(*(event(number, "order-1", "to-erp", source="shop") for number in (8, 9)))
    night.attempts(bob=HOPELESS, carol=HOPELESS, dave=HOPELESS, **{"order-1": HOPELESS})


def _operate(night: Night) -> None:
    """Replay the event of bob, erase judy, and pause the ERP."""
    night.command("replay", '{"seq": 5}', "the mapping is fixed")
    night.sequence()
    night.attempts(bob=DONE)
    night.arrive(event(10, "judy", "to-crm"))
    night.attempts(judy=DONE)
    night.command("erase", '{"source": "trivore", "entity_type": "USER", "entity_id": "judy"}', "request 4711", "ann")
    night.command("pause", '{"destination": "erp"}', "maintenance until 14:00")
    nodes.flush_figures(night.database, CONFIG.routes)


def _wait(night: Night) -> None:
    """Leave deliveries open in every state; one is suspected of crashing two relays."""
    night.arrive(event(11, "gus", "to-crm"))
    for _ in range(2):
        night.advance(60)
        night.attempts()
        night.advance(20)
        night.rescue()
    night.arrive(*(event(number, "erin", "to-crm") for number in (12, 13, 14)))
    night.attempts(erin=msgspec.structs.replace(UNWELL, retry_after=7200))
    night.arrive(event(15, "frank", "to-crm"))
    night.attempts()
    night.arrive(event(16, "heidi", "to-crm"), event(17, "order-2", "to-erp", source="shop"))
    night.receive(event(18, "gina", kind="LOGIN"), event(19, "ivan", "to-crm"))


def _turn_away(night: Night) -> None:
    """Add duplicates, and rejected requests with wrong credentials and with an invalid body."""
    again = event(2, "alice", "to-crm")
    other = msgspec.structs.replace(event(12, "erin", "to-crm"), body=b"{}", body_sha256=hashlib.sha256(b"{}").digest())
    night.intake.repeat(again, again, other)
    unknown = {"status": 401, "cause": "unauthenticated", "reason": "the secret is wrong", "field": None}
    stranger = a_rejected(remote_address="192.0.2.7", **unknown)
    night.intake.reject(
        stranger, stranger, a_rejected(source="shop", reason="id is missing", body=b"{}", headers={"a": "b"})
    )


def _watch(night: Night) -> None:
    """Write figures, alerts, the result of a sweep, an open breaker, and the progress of retention."""
    nodes.flush_figures(night.database, CONFIG.routes)
    received = Tally()
    for source, outcome, count in (
        ("trivore", "stored", 16),
        ("trivore", "duplicate", 2),
        ("trivore", "rejected", 2),
        ("shop", "stored", 3),
        ("shop", "rejected", 1),
    ):
        received.add("source", source, outcome, count=count, size=8 * count if outcome == "stored" else 0)
    later = night.clock.moment + timedelta(minutes=1)
    with night.database.write() as transaction, received.take() as figures:
        transaction.execute(add_up(transaction.sql), figures=rows_param(figures), now=time_text(later))
    with night.database.write() as transaction:
        now = transaction.take_order_lock()
        alerts.store_alerts(transaction, [Alert("source_silent", "shop", True, {"silent_seconds": 7200})], now)
        opened = Breaker(BreakerState.OPEN, now + timedelta(hours=1), "503 from the last 10 calls", 1)
        gates.store_breakers(transaction, {("destination", "search"): opened})
    gates.hold(night.live, HoldRequest(("api", "trivore-id"), timedelta(hours=1), "Retry-After of an answer 429"))
    sweeps.finish(night.work, sweeps.SweepFindings("trivore", "USER", START, START + timedelta(days=1), 120, 2, 2))
    night.do("DELETE FROM inbox_payload WHERE seq = 1")
    prune(night.database.engine, "attempts", "duplicates")
    night.do("ANALYZE")
    night.beat()
