"""A database with rows of every kind that the page shows, and a word of its own in everything that a viewer must not see."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterator

import msgspec

from inbox.db.intake import Rejected
from relay.delivery.gates import entity_key
from relay.delivery.outcome import Call, Failed
from relay.operations.asks import Selection
from relay.store import alerts, gates, nodes
from relay.store.operator import commands
from tests.helpers.relaying import DONE, Steps, work_of
from tests.helpers.storing import START, an_event

WORDS = {
    "body": "sesame-of-a-body",
    "header": "sesame-of-a-header",
    "duplicate": "sesame-of-a-duplicate",
    "rejected body": "sesame-of-a-rejected-body",
    "rejected header": "sesame-of-a-rejected-header",
    "excerpt": "sesame-of-an-excerpt",
}
"""Words that stand nowhere but in the part of this name."""
PAYLOADS = tuple(part for part in WORDS if part != "excerpt")
"""Parts that nobody sees without saying why."""


def fill_page(steps: Steps) -> None:
    """Store events that are delivered, dead, blocked, retrying and waiting, and what else the page lists."""
    nodes.describe(work_of(steps.database, steps.policies, node=steps.node), "host", 1, "0.1.0")
    bodies = [f'{{"n": {number}, "word": "{WORDS["body"]}"}}'.encode() for number in range(1, 6)]
    routes = (("strict",), ("blocking",), ("strict", "latest"), ("strict",), ())
    events = [
        msgspec.structs.replace(
            an_event(number, f"u{min(number, 3)}", routes=routes[number - 1]),
            body=body,
            body_sha256=hashlib.sha256(body).digest(),
            headers={"content-type": "application/json", "x-request-id": WORDS["header"]},
        )
        for number, body in enumerate(bodies, 1)
    ]
    steps.arrive(*events)
    other = f'{{"word": "{WORDS["duplicate"]}"}}'.encode()
    steps.intake.repeat(msgspec.structs.replace(events[0], body=other, body_sha256=hashlib.sha256(other).digest()))
    call = Call("forward", "POST", "https://audit.example.com/", "answered", 12.5, 422, excerpt=WORDS["excerpt"])
    steps.attempt(DONE)
    steps.attempt(Failed((call,), "mapping", "forward: answered 422 Unprocessable Entity"))
    steps.attempt(Failed((call,), "mapping", "forward: answered 422 Unprocessable Entity"), "blocking")
    steps.attempt(Failed((call,), "server_error", "forward: answered 503", retry_after=3600), "latest")
    kept = WORDS["rejected body"].encode()
    rejected = Rejected(
        START, "trivore", 422, "invalid_event", "no id", "id", "192.0.2.1", hashlib.sha256(kept).digest(),
        {"x-request-id": WORDS["rejected header"]}, kept,
    )  # fmt: skip
    steps.intake.reject(rejected, msgspec.structs.replace(rejected, headers=None, body=None))
    with steps.database.write() as transaction:
        gates.pause(transaction, ("destination", "audit"), who="olga", why="a move")
    alerts.step_failed(steps.work, "prune", "no space left")
    steps.do(
        "INSERT INTO relay_command (kind, selection, reason) VALUES ('replay', '{\"route\": \"strict\"}', 'after a fix')",
        "INSERT INTO relay_command (kind, selection, reason, dry_run)"
        " VALUES ('cancel', '{\"seq\": 2}', 'a look', true)",
    )


HOSTILE = "<script>alert(1)</script>\u202e'\"&"


def fill_hostile(steps: Steps, value: str = HOSTILE) -> None:
    """Store rows that have a hostile text wherever a stranger or another program writes one."""
    short = value[:200]
    event = msgspec.structs.replace(
        an_event(1, value), entity_type=value, event_type=value, event_id=value, content_type=short, dedup_key=value,
        traceparent=short, headers={value: value}, body=value.encode(),
    )  # fmt: skip
    steps.arrive(event, msgspec.structs.replace(event, dedup_key=f"{value}2"))
    call = Call("forward", "POST", value[:2000], "answered", 12.5, 422, error=value, excerpt=value[:4000])
    steps.attempt(Failed((call,), "mapping", f"{value} {'x' * 10_000}"))
    steps.attempt(Failed((call,), "server_error", value))
    steps.intake.reject(Rejected(START, short, 422, short, value + "y" * 5000, short, short, b"", None, None))
    nodes.describe(work_of(steps.database, node=short), short, 1, short)
    nodes.heartbeat(steps.database, short, {"claim": value})
    with steps.database.write() as transaction:
        for gate in (("destination", "audit"), entity_key("trivore", short, short)):
            gates.pause(transaction, gate, who=short, why=value[:2000])
    alerts.step_failed(steps.work, short, value)
    commands.ask(steps.database, "replay", Selection(route=short), who=short, why=value[:2000])


def forms_of(word: str) -> Iterator[str]:
    """Yield the forms in which an answer may hold a word: as it is, in hex, and in base64 wherever it begins."""
    yield word
    yield word.encode().hex()
    for shift in range(3):
        whole = base64.b64encode(b"\0" * shift + word.encode()).decode()
        yield whole[4 if shift else 0 : len(whole) - 4]
