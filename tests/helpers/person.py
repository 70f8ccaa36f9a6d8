"""A person whose data is in every table that an erasure empties, beside another one who stays."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import msgspec
from sqlalchemy import Engine, Table, insert, select

from inbox.db.erasure import ErasureSubject
from inbox.db.schema import gate, metadata, relay_command
from inbox.events.event import Event
from relay.delivery.outcome import Call, Delivered, Failed, Outcome, Skipped, Unchanged
from tests.helpers.relaying import DONE, Steps
from tests.helpers.storing import START, an_event

ID = "IDNUMBER4711"
PERSON = ErasureSubject("trivore", "USER", ID)
TRACES = (
    ID,
    "maria.meier@example.com",
    "Maria Meier",
    "maria-header",
    "0af7651916cd43dd8448eb211c80319c",
)
"""Texts of the person. None may be left anywhere."""
BODY = json.dumps({"id": ID, "email": "maria.meier@example.com", "name": "Maria Meier"}).encode()
OTHER = "IDNUMBER4712"


def of_person(number: int, *routes: str, body: bytes = BODY) -> Event:
    """An event of the person."""
    return msgspec.structs.replace(
        an_event(number, ID, routes=routes or ("strict", "latest")),
        dedup_key=f"{number:08d}",  # as inbox.events.event.dedup_key makes it: without the id
        event_id=f"evt-{ID}-{number}",
        headers={"content-type": "application/json", "x-note": "maria-header"},
        body=body,
        body_sha256=hashlib.sha256(body).digest(),
        traceparent="00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
    )


def _call(status: int, *, excerpt: str | None = None) -> Call:
    url = f"https://crm.example.com/contacts/{ID}"
    return Call("update", "PATCH", url, "answered", 12.5, status, excerpt=excerpt)


DELIVERED = Delivered((_call(200),), "updated", START, START, b"\x01" * 32)
FAILED = Failed((_call(503, excerpt="no maria.meier@example.com"),), "server_error", f"{ID}: answered 503")
UNCHANGED = Unchanged((_call(200),))
SKIPPED = Skipped((_call(404),), f"{ID} is missing")


def live(steps: Steps) -> None:
    """Fill the tables. Every delivery of the person has ended; one of the other still waits.

    Seqs: 1 to 4 and 7 are the person's, and 7 takes no route; 5, 6 and 8 are the other's, and 8 is open.
    """
    steps.arrive(
        *(of_person(number) for number in range(1, 5)), an_event(5, OTHER), an_event(6, OTHER, routes=["latest"])
    )
    steps.receive(msgspec.structs.replace(of_person(7), enrolments=()))
    for outcome in (DELIVERED, FAILED, SKIPPED, UNCHANGED, DELIVERED):
        _attempt(steps, outcome, "strict")
    for outcome in (FAILED, DELIVERED):
        _attempt(steps, outcome, "latest")
    changed = BODY.replace(b"Maria", b"Marie Maria")
    again = msgspec.structs.replace(of_person(1), body=changed, body_sha256=hashlib.sha256(changed).digest())
    steps.intake.repeat(again, of_person(2))
    _plant(steps.database.engine)
    steps.arrive(an_event(8, OTHER))


def _attempt(steps: Steps, outcome: Outcome, route: str) -> None:
    """Make an attempt of each lane: of the person's with this outcome, of the other's with success."""
    steps.record([(one, outcome if one.entity_id == ID else DONE) for one in steps.claim_due(100, route)])
    steps.advance(3600)


def _plant(engine: Engine) -> None:
    """Add what only hands and other parts of the product write."""
    paused = {"paused_at": START, "paused_by": "kim", "breaker": "closed"}
    selection = {"source": "trivore", "entity_type": "USER", "entity_id": ID}
    ended = {"asked_by": "kim", "asked_at": START, "state": "done", "finished_at": START}
    rows: list[tuple[Table, dict[str, Any]]] = [
        (gate, {"kind": "entity", "name": PERSON.gate, "pause_reason": "Maria Meier called", **paused}),
        (
            relay_command,
            {"kind": "replay", "selection": selection, "reason": "asked", "sample": {"first": ID}, **ended},
        ),
    ]
    with engine.begin() as connection:
        for table, values in rows:
            connection.execute(insert(table).values(values))


def contents(engine: Engine) -> dict[str, list[str]]:
    """All rows of all tables, as text."""
    with engine.connect() as connection:
        return {
            table.name: [_text(row) for row in connection.execute(select(table).order_by(*table.primary_key))]
            for table in metadata.sorted_tables
        }


def _text(row: Any) -> str:  # noqa: ANN401  # a result row
    return repr([value.decode("utf-8", "backslashreplace") if isinstance(value, bytes) else value for value in row])


def traces_in(engine: Engine) -> list[tuple[str, str]]:
    """Return table and row of every trace of the person."""
    return [
        (table, row)
        for table, rows in contents(engine).items()
        for row in rows
        if any(trace in row for trace in TRACES)
    ]
