"""A relay's view of an empty database, and a receiver's way to fill it."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import Engine, text

from inbox.config.retry import Retry
from inbox.db import engine as engines
from inbox.db.intake import STORES
from inbox.db.reads import Row, plain
from inbox.events.event import Enrolment, Event
from relay.delivery.outcome import Delivery, Outcome
from relay.delivery.policy import RoutePolicy, Schedule
from relay.store.claim import claim
from relay.store.database import Database
from relay.store.record import record
from relay.store.sequence import sequence
from tests.helpers.agreement import facts_agree

START = datetime(2026, 1, 1, tzinfo=UTC)


class FakeClock:
    """Stands until it is advanced."""

    def __init__(self) -> None:
        self.moment = START

    def __call__(self) -> datetime:
        return self.moment

    def now(self) -> datetime:
        return self.moment

    def advance(self, seconds: float) -> None:
        self.moment += timedelta(seconds=seconds)


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def database(engine: Engine, clock: FakeClock) -> Database:
    return Database(engine, clock)


POLICIES = {
    "strict": RoutePolicy("strict", blocks_on_death=False, schedule=Schedule(Retry(jitter=0))),
    "blocking": RoutePolicy("strict", blocks_on_death=True, schedule=Schedule(Retry(jitter=0))),
    "latest": RoutePolicy("latest", blocks_on_death=False, schedule=Schedule(Retry(jitter=0))),
}


def an_event(
    number: int, entity: str = "u1", *, second: int | None = None, routes: Sequence[str] = ("strict",)
) -> Event:
    """The event of this number, which happened in second `second` (its number, unless told otherwise)."""
    body = b'{"n": %d}' % number
    return Event(
        source="trivore",
        dedup_key=f"{number:08d}|{entity}",
        entity_type="USER",
        entity_id=entity,
        event_type="UPDATE",
        action="update",
        event_id=None,
        occurred_at=START + timedelta(seconds=number if second is None else second),
        received_at=START,
        enrolments=tuple(Enrolment(route, f"USER|{entity}") for route in routes),
        headers={"content-type": "application/json"},
        content_type="application/json",
        body=body,
        body_sha256=hashlib.sha256(body).digest(),
    )


@pytest.fixture
def receive(database_url: str) -> Callable[..., list[int | None]]:
    """Store events as the receiver does; gives their seqs, None for a key that was there."""

    def _receive(*events: Event) -> list[int | None]:
        async def _append() -> list[int | None]:
            engine = engines.connect_async(database_url, application="tests")
            async with engine.connect() as connection:
                seqs = await STORES[engine.dialect.name]().append(connection, events)
            await engine.dispose()
            return seqs

        return asyncio.run(_append())

    return _receive


class Steps:
    """The relay's cycle, one attempt at a time, and what the database says then."""

    def __init__(self, database: Database, receive: Callable[..., list[int | None]]) -> None:
        self.database = database
        self._receive = receive

    def arrive(self, *events: Event) -> None:
        """Receive these events and give each its place in its lanes."""
        self._receive(*events)
        sequence(self.database, POLICIES, "r1")

    def claim(self, route: str = "strict") -> Delivery:
        """Claim the delivery of the route that has been due longest."""
        (delivery,) = claim(self.database, "r1", [([route], 1)])
        return delivery

    def attempt(self, outcome: Outcome, route: str = "strict") -> Delivery:
        """Make the next attempt of the route, with this outcome."""
        delivery = self.claim(route)
        record(self.database, POLICIES, "r1", [(delivery, outcome)])
        return delivery

    def rows(self, statement: str, **parameters: object) -> list[Row]:
        """Rows of a table or view as Python values."""
        with self.database.read() as transaction:
            found = transaction.connection.execute(text(statement), parameters)
            return [plain(row) for row in found.mappings()]

    def states(self) -> list[tuple[int, str, str]]:
        """seq, route and state of all that is open."""
        return [
            (row["seq"], row["route"], row["state"])
            for row in self.rows("SELECT seq, route, state FROM open_delivery ORDER BY seq, route")
        ]

    def kinds(self) -> list[tuple[int, str]]:
        """The seq and kind of every fact, in the order of their ids."""
        return [(row["seq"], row["kind"]) for row in self.rows("SELECT seq, kind FROM delivery_log ORDER BY id")]

    def facts_agree(self) -> None:
        """Assert that the log folds to the work table, and that every lane with waiting deliveries has one head."""
        facts_agree(self.database.engine)


@pytest.fixture
def steps(database: Database, receive: Callable[..., list[int | None]]) -> Steps:
    return Steps(database, receive)
