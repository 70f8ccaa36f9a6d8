"""The append-only tables stay append-only, whoever asks; what retention and erasure need is let through."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime, timedelta
from typing import Any

import msgspec
import pytest
from sqlalchemy import Delete, Engine, Executable, Update, delete, insert, select, text, update
from sqlalchemy.exc import DBAPIError

from inbox.clock import SystemClock
from inbox.db.schema import delivery_log, inbox, inbox_payload, open_delivery
from inbox.events.states import OPEN_STATES, RETENTION_FLOOR_DAYS
from relay.delivery.lifecycle import SCHEDULING, Step
from tests.helpers.kinds import ON_POSTGRES
from tests.helpers.relaying import Steps
from tests.helpers.storing import START, an_event

OTHER: dict[str, Any] = {
    "seq": 99,
    "state": "dead",
    "run": 9,
    "crashes": 9,
    "source": "other",
    "dedup_key": "other",
    "entity_type": None,
    "entity_id": "other",
    "event_type": "other",
    "action": "delete",
    "event_id": "other",
    "occurred_at": START + timedelta(days=1),
    "received_at": START - timedelta(days=1000),
    "routes": ["other"],
    "headers": {"other": "value"},
    "content_type": "text/plain",
    "body_bytes": 99,
    "body": b"other",
    "body_is_text": False,
    "body_sha256": b"\x00" * 32,
    "traceparent": "other",
    "erased_at": START,
    "id": 99,
    "at": START + timedelta(days=1),
    "route": "other",
    "kind": "cancelled",
    "attempt": 99,
    "relay_node": "other",
    "detail": {"other": 1},
}
"""For each column something that is not there."""

UNSCHEDULED: dict[str, Any] = {"due_at": None, "lease_until": None, "lease_token": None, "relay_node": None}
SCHEDULED: dict[str, dict[str, Any]] = {
    "ready": {"due_at": START},
    "in_flight": {"lease_until": START, "lease_token": 1, "relay_node": "r1"},
}


ATTEMPTS = ("attempt_failed", "abandoned")
TABLES = (inbox, inbox_payload, delivery_log)


def run(engine: Engine, *statements: Executable) -> None:
    with engine.begin() as connection:
        for statement in statements:
            connection.execute(statement)


def refused(engine: Engine, statement: Update | Delete | Executable) -> None:
    before = contents(engine)
    with pytest.raises(DBAPIError, match="append-only"):  # noqa: PT012  # so that a failure names the statement
        run(engine, statement)
        pytest.fail(f"let through: {statement}")
    assert contents(engine) == before


def contents(engine: Engine) -> list[Any]:
    with engine.connect() as connection:
        return [connection.execute(select(table).order_by(*table.primary_key)).all() for table in TABLES]


def a_fact(engine: Engine, kind: str, at: datetime = START) -> None:
    run(
        engine,
        insert(delivery_log).values(
            at=at, seq=1, route="strict", kind=kind, state="ready", attempt=1, detail={"error": "503"}
        ),
    )


def end(engine: Engine) -> None:
    run(engine, delete(open_delivery))


def in_each_state(engine: Engine) -> Iterator[None]:
    """Let the open delivery be in each state in turn."""
    for state in OPEN_STATES:
        run(engine, update(open_delivery).values({**UNSCHEDULED, "state": state, **SCHEDULED.get(state, {})}))
        yield


def floor() -> datetime:
    """The time before which events and facts may be deleted."""
    return SystemClock().now() - timedelta(days=RETENTION_FLOOR_DAYS)


MINUTE = timedelta(minutes=1)


@pytest.fixture
def old(engine: Engine, steps: Steps) -> Engine:
    """A database with one event that arrived long ago and is open."""
    assert steps.receive(msgspec.structs.replace(an_event(1), received_at=floor() - MINUTE)) == [1]
    return engine


def test_no_column_of_an_event_can_be_changed(old: Engine) -> None:
    for column in inbox.c:
        refused(old, update(inbox).values({column: OTHER[column.name]}))


def test_no_column_of_a_payload_can_be_changed(old: Engine) -> None:
    for column in inbox_payload.c:
        refused(old, update(inbox_payload).values({column: OTHER[column.name]}))


def test_a_payload_can_be_deleted_once_nothing_of_its_event_is_open(old: Engine) -> None:
    for _ in in_each_state(old):
        refused(old, delete(inbox_payload))
    end(old)
    run(old, delete(inbox_payload))
    events, payloads, _ = contents(old)
    assert (len(events), payloads) == (1, [])


def test_an_event_can_not_be_deleted_before_the_retention_floor(engine: Engine, steps: Steps) -> None:
    steps.receive(msgspec.structs.replace(an_event(1), received_at=floor() + MINUTE))
    end(engine)
    refused(engine, delete(inbox))


def test_an_old_event_with_nothing_open_can_be_deleted_and_then_its_facts(old: Engine) -> None:
    for kind in ("attempt_failed", "replayed", "delivered"):
        a_fact(old, kind)
    end(old)
    run(old, delete(inbox).where(inbox.c.seq == 1), delete(delivery_log).where(delivery_log.c.seq == 1))
    assert contents(old) == [[], [], []], "its payload goes with it"


def test_an_old_event_can_not_be_deleted_while_something_of_it_is_open(old: Engine) -> None:
    for _ in in_each_state(old):
        refused(old, delete(inbox))


def test_deleting_everything_stops_at_the_first_event_that_has_to_stay(old: Engine, steps: Steps) -> None:
    steps.receive(msgspec.structs.replace(an_event(2), received_at=SystemClock().now()))
    end(old)
    refused(old, text("DELETE FROM inbox"))


def test_no_column_of_a_fact_can_be_changed(old: Engine) -> None:
    a_fact(old, "attempt_failed")
    end(old)
    for column in delivery_log.c:
        refused(old, update(delivery_log).values({column: OTHER[column.name]}))


def test_a_fact_that_is_no_attempt_lives_as_long_as_its_event(old: Engine) -> None:
    end(old)
    for kind in set(Step) - SCHEDULING - {Step.DEAD_BLOCKING, Step.DEAD_UNATTEMPTED, *ATTEMPTS}:
        a_fact(old, kind)
        refused(old, delete(delivery_log).where(delivery_log.c.kind == kind))


def test_attempts_of_an_ended_delivery_can_be_pruned(old: Engine) -> None:
    for kind in (*ATTEMPTS, "delivered"):
        a_fact(old, kind)
    end(old)
    for kind in ATTEMPTS:
        run(old, delete(delivery_log).where(delivery_log.c.kind == kind))
    assert len(contents(old)[2]) == 1


def test_attempts_can_not_be_pruned_before_the_retention_floor(old: Engine) -> None:
    end(old)
    for kind in ATTEMPTS:
        a_fact(old, kind, at=floor() + MINUTE)
        refused(old, delete(delivery_log).where(delivery_log.c.kind == kind))


def test_attempts_of_an_open_delivery_can_not_be_pruned(old: Engine) -> None:
    for kind in ATTEMPTS:
        a_fact(old, kind)
    for _ in in_each_state(old):
        for kind in ATTEMPTS:
            refused(old, delete(delivery_log).where(delivery_log.c.kind == kind))


@ON_POSTGRES
def test_on_postgres_they_can_not_be_truncated(engine: Engine) -> None:
    for tables in ("inbox", "inbox_payload", "delivery_log", "inbox, delivery_log", "inbox CASCADE"):
        refused(engine, text(f"TRUNCATE {tables}"))
