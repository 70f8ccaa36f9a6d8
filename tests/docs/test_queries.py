"""The queries that the pages give to DBAs run on both databases, and find what they are for."""

from __future__ import annotations

import asyncio
import hashlib
import re
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import Engine, text

from inbox.config.model import Config, Route
from inbox.config.retry import Retry
from inbox.db import engine as engines
from inbox.db.intake import STORES, Rejected
from inbox.events.event import Enrolment, Event
from relay.delivery.gates import Gate
from relay.delivery.outcome import Delivery, Failed, Outcome
from relay.delivery.policy import RoutePolicy, Schedule
from relay.store import throughput
from relay.store.claim import claim
from relay.store.database import Database
from relay.store.nodes import describe_routes, heartbeat, start_node
from relay.store.operator.commands import ask
from relay.store.operator.execution import work_on
from relay.store.record import record
from relay.store.sequence import sequence
from tests.docs.pages import PAGES, blocks

START = datetime(2026, 1, 1, tzinfo=UTC)
SCHEDULE = Schedule(Retry())
GATES = (("route", "crm"),)
POLICIES = {"crm": RoutePolicy("strict", blocks_on_death=False, schedule=SCHEDULE, gates=GATES)}
QUERIES = [b for b in blocks(PAGES["docs/reference/schema.md"]) if b.info == "sql"]


def event(number: int, entity: str, *, routed: bool = True, body: bytes = b"{}") -> Event:
    return Event(
        source="trivore",
        dedup_key=f"{number:08d}",
        entity_type="USER",
        entity_id=entity,
        event_type="UPDATE",
        action="update",
        event_id=None,
        occurred_at=START + timedelta(seconds=number),
        received_at=START + timedelta(seconds=number),
        enrolments=(Enrolment("crm", f"USER|{entity}"),) if routed else (),
        headers={},
        content_type="application/json",
        body=body,
        body_sha256=hashlib.sha256(body).digest(),
    )


REJECTED = Rejected(START, "trivore", 422, "invalid_event", "id is missing", "id", "192.0.2.1", b"\0" * 32, {}, b"{}")


async def take_in(url: str) -> None:
    """Events of four entities, one that no route takes, a repeat with another body, and a refusal."""
    engine = engines.connect_async(url, application="tests")
    store = STORES[engine.dialect.name]()
    async with engine.connect() as connection:
        entities = ("IDNUMBER1234", "hopeless", "retried", "retried", "working")
        await store.append(connection, [event(number, entity) for number, entity in enumerate(entities)])
        await store.append(connection, [event(9, "unrouted", routed=False)])
        await store.note_duplicates(connection, [event(0, "IDNUMBER1234", body=b'{"again": true}')])
        await store.reject(connection, [REJECTED])
    await engine.dispose()


async def take_in_one_more(url: str, number: int, entity: str) -> None:
    """An event that arrived long ago."""
    engine = engines.connect_async(url, application="tests")
    async with engine.connect() as connection:
        await STORES[engine.dialect.name]().append(connection, [event(number, entity)])
    await engine.dispose()


OUTCOMES: dict[str | None, Outcome] = {
    "hopeless": Failed((), "mapping", "email: no value"),
    "retried": Failed((), "server_error", "forward: answered 503"),
    "IDNUMBER1234": Failed((), "server_error", "forward: answered 503"),
}


@pytest.fixture
def filled(engine: Engine, database_url: str) -> Engine:
    """A database in which everything that the queries ask for has happened."""
    asyncio.run(take_in(database_url))
    database = Database(engine)
    start_node(database, "node-1", "host", 1, "0")
    describe_routes(database, "node-1", POLICIES)
    sequence(database, POLICIES, "node-1")
    claimed: list[Delivery] = claim(database, "node-1", [(["crm"], 10)])
    done = [(delivery, OUTCOMES[delivery.entity_id]) for delivery in claimed if delivery.entity_id in OUTCOMES]
    record(database, POLICIES, "node-1", done)
    asyncio.run(take_in_one_more(database_url, 8, "due"))
    sequence(database, POLICIES, "node-1")
    asyncio.run(take_in_one_more(database_url, 10, "unordered"))
    heartbeat(database, "node-1", {"claim": "ValueError: x"})
    number = ask(database, "pause", Gate(route="crm"), who="kim", why="odd")
    config = Config(routes={"crm": Route(name="crm", source="trivore", destination="crm")})
    work_on(database, config, POLICIES, number)
    throughput.flush(database, config.routes)
    return engine


def test_every_query_runs_and_finds_something(filled: Engine) -> None:
    assert len(QUERIES) > 6
    with filled.connect() as connection:
        for query in QUERIES:
            rows = connection.execute(text(query.text.strip().removesuffix(";"))).all()
            assert rows, f"docs/reference/schema.md:{query.line} finds nothing"


def test_every_query_says_what_it_is_for() -> None:
    question: Callable[[str], object] = re.compile(r"\?(\s|$)").search
    assert [query.line for query in QUERIES if not question(query.after)] == []
