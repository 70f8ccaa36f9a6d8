"""Databases full of trouble, for pages and screenshots."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterator
from datetime import timedelta

import msgspec
from sqlalchemy import Engine

from inbox.clock import SystemClock
from inbox.db.dialect import rows_param
from inbox.db.intake import Rejected
from inbox.db.throughput import Tally, add_up
from inbox.events.event import Event
from inbox.events.timestamps import time_text
from relay.delivery.alerts import Alert
from relay.delivery.gates import Breaker, BreakerState, make_entity_key
from relay.delivery.outcome import Call, Failed, Outcome
from relay.delivery.policy import HoldRequest, policies
from relay.operations.asks import Selection
from relay.store import alerts, gates, nodes, sweeps
from relay.store.database import Database
from relay.store.operator import commands
from relay.store.operator.execution import OpenCommands
from tests.helpers.relaying import DONE, HOPELESS, FakeClock, Steps, prune, work_of
from tests.helpers.storing import START, a_rejected, an_event
from tests.helpers.webhooks import address_of, forwarding

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
