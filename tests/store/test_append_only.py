"""Constraints and triggers of the database itself; the append-only tables stay append-only."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime, timedelta
from itertools import product
from typing import Any

import msgspec
import pytest
import sqlalchemy as sa
from sqlalchemy import Engine, delete, insert, text, update
from sqlalchemy.exc import DBAPIError, IntegrityError

from inbox.clock import SystemClock
from inbox.db.columns import UtcDateTime
from inbox.db.dialect import Sql
from inbox.db.schema import delivery_log, inbox, inbox_payload, open_delivery, order_lock, write_probe
from inbox.events.states import OPEN_STATES, RETENTION_FLOOR_DAYS
from relay.delivery.lifecycle import HEADS, SCHEDULING, Step
from relay.delivery.outcome import Fact
from tests.helpers.databases import ON_POSTGRES
from tests.helpers.relaying import Steps
from tests.helpers.storing import START, an_event

# --- The append-only tables stay append-only, except for the changes that retention and erasure need


OTHERS: tuple[tuple[type, Any], ...] = (
    (UtcDateTime, START - timedelta(days=1000)),
    (sa.ARRAY, ["other"]),
    (sa.JSON, {"other": 1}),
    (sa.LargeBinary, b"\x00" * 32),
    (sa.Boolean, False),
    (sa.Integer, 99),
    (sa.Text, "other"),
)


def other(column: sa.Column[Any]) -> Any:  # noqa: ANN401  # of the column's type
    """Return a value that is not there."""
    allowed = {"state": "dead", "action": "delete", "kind": "cancelled"}
    kinds = (value for kind, value in OTHERS if isinstance(column.type, kind))
    return allowed.get(column.name) or (["other"] if column.name == "routes" else next(kinds))


UNSCHEDULED: dict[str, Any] = {"due_at": None, "lease_until": None, "lease_token": None, "relay_node": None}
SCHEDULED: dict[str, dict[str, Any]] = {
    "ready": {"due_at": START},
    "in_flight": {"lease_until": START, "lease_token": 1, "relay_node": "r1"},
}


ATTEMPTS = ("attempt_failed", "abandoned")
TABLES = (inbox, inbox_payload, delivery_log)


def run(engine: Engine, *statements: sa.Executable) -> None:
    with engine.begin() as connection:
        for statement in statements:
            connection.execute(statement)


def assert_refused(engine: Engine, statement: sa.Update | sa.Delete | sa.Executable) -> None:
    before = contents(engine)
    with pytest.raises(DBAPIError, match="append-only"):  # noqa: PT012  # so that a failure names the statement
        run(engine, statement)
        pytest.fail(f"let through: {statement}")
    assert contents(engine) == before


def contents(engine: Engine) -> list[Any]:
    with engine.connect() as connection:
        return [connection.execute(sa.select(table).order_by(*table.primary_key)).all() for table in TABLES]


def a_fact(engine: Engine, kind: str, at: datetime = START) -> None:
    run(
        engine,
        insert(delivery_log).values(
            at=at, seq=1, route="strict", kind=kind, state="ready", attempt=1, detail={"error": "503"}
        ),
    )


def walk_states(engine: Engine) -> Iterator[None]:
    """Let the open delivery be in each state in turn."""
    for state in OPEN_STATES:
        run(engine, update(open_delivery).values({**UNSCHEDULED, "state": state, **SCHEDULED.get(state, {})}))
        yield


def floor() -> datetime:
    """The time before which events and facts may be deleted."""
    return SystemClock().now() - timedelta(days=RETENTION_FLOOR_DAYS)


MINUTE = timedelta(minutes=1)
DETAIL = {"error": "503", "calls": [{"request": "about u1"}]}


@pytest.fixture
def old(engine: Engine, steps: Steps) -> Engine:
    """A database with one event that arrived long ago and is open."""
    assert steps.receive(msgspec.structs.replace(an_event(1), received_at=floor() - MINUTE)) == [1]
    return engine


def test_no_column_of_an_event_its_payload_or_a_fact_can_be_changed(old: Engine) -> None:
    a_fact(old, "attempt_failed")
    for is_open in (True, False):
        for column in (column for table in TABLES for column in table.c):
            assert_refused(old, update(column.table).values({column: other(column)}))
        if is_open:
            run(old, delete(open_delivery))


def test_a_payload_and_an_old_event_can_be_deleted_once_nothing_of_it_is_open(old: Engine) -> None:
    for _ in walk_states(old):
        assert_refused(old, delete(inbox_payload))
        assert_refused(old, delete(inbox))
    run(old, delete(open_delivery))
    run(old, delete(inbox_payload))
    events, payloads, _ = contents(old)
    assert (len(events), payloads) == (1, [])


def test_an_event_can_not_be_deleted_before_the_retention_floor(engine: Engine, steps: Steps) -> None:
    steps.receive(msgspec.structs.replace(an_event(1), received_at=floor() + MINUTE))
    run(engine, delete(open_delivery))
    assert_refused(engine, delete(inbox))


def test_an_old_event_with_nothing_open_can_be_deleted_and_then_its_facts(old: Engine) -> None:
    for kind in ("attempt_failed", "replayed", "delivered"):
        a_fact(old, kind)
    run(old, delete(open_delivery))
    run(old, delete(inbox).where(inbox.c.seq == 1), delete(delivery_log).where(delivery_log.c.seq == 1))
    assert contents(old) == [[], [], []], "its payload goes with it"


def test_a_fact_that_is_no_attempt_lives_as_long_as_its_event(old: Engine) -> None:
    run(old, delete(open_delivery))
    for kind in set(Step) - SCHEDULING - {Step.DEAD_BLOCKING, Step.DEAD_UNATTEMPTED, *ATTEMPTS}:
        a_fact(old, kind)
        assert_refused(old, delete(delivery_log).where(delivery_log.c.kind == kind))


def test_attempts_of_an_ended_delivery_can_be_pruned(old: Engine) -> None:
    for kind in (*ATTEMPTS, "delivered"):
        a_fact(old, kind)
    run(old, delete(open_delivery))
    for kind in ATTEMPTS:
        run(old, delete(delivery_log).where(delivery_log.c.kind == kind))
    assert len(contents(old)[2]) == 1


def test_attempts_can_not_be_pruned_before_the_retention_floor(old: Engine) -> None:
    run(old, delete(open_delivery))
    for kind in ATTEMPTS:
        a_fact(old, kind, at=floor() + MINUTE)
        assert_refused(old, delete(delivery_log).where(delivery_log.c.kind == kind))


def test_attempts_of_an_open_delivery_can_not_be_pruned(old: Engine) -> None:
    for kind in ATTEMPTS:
        a_fact(old, kind)
    for _ in walk_states(old):
        for kind in ATTEMPTS:
            assert_refused(old, delete(delivery_log).where(delivery_log.c.kind == kind))


def test_a_failed_fact_can_lose_its_calls_alone_and_only_once_its_delivery_has_ended(old: Engine) -> None:
    a_fact(old, "dead")
    run(old, insert(delivery_log).values({**A_FACT, "route": "strict", "kind": "delivered", "detail": DETAIL}))
    run(old, insert(delivery_log).values({**A_FACT, "route": "strict", "kind": "dead", "detail": DETAIL}))
    dead = update(delivery_log).where(delivery_log.c.kind == "dead", delivery_log.c.attempt == 0)
    without_calls = text(Sql(old.dialect.name).without("detail", "calls"))
    for _ in walk_states(old):
        assert_refused(old, dead.values(detail=without_calls))
    run(old, delete(open_delivery))
    assert_refused(old, dead.values(detail={"error": "504"}))
    assert_refused(old, update(delivery_log).where(delivery_log.c.kind == "delivered").values(detail=without_calls))
    run(old, dead.values(detail=without_calls))


@ON_POSTGRES
def test_on_postgres_they_can_not_be_truncated(engine: Engine) -> None:
    for tables in ("inbox", "inbox_payload", "delivery_log", "inbox, delivery_log", "inbox CASCADE"):
        assert_refused(engine, text(f"TRUNCATE {tables}"))


# --- Constraints that the database itself enforces, so that no bug of the relay can get past them


A_FACT = {"at": START, "seq": 1, "route": "r", "state": "ended", "attempt": 0, "detail": {}}


def open_row(engine: Engine, state: str, **values: object) -> None:
    row = {"seq": 1, "route": "r", "lane": "USER|u1", "occurred_at": START, "state": state}
    run(engine, insert(open_delivery).values({**row, **SCHEDULED.get(state, {}), **values}))


def assert_rejected(engine: Engine, state: str, **values: object) -> None:
    with pytest.raises(IntegrityError):  # noqa: PT012  # so that a failure names the row
        open_row(engine, state, **values)
        pytest.fail(f"let in: {state} with {values}")


def test_the_schema_takes_every_kind_of_fact(engine: Engine) -> None:
    with engine.begin() as connection:
        for fact in Fact.__subclasses__():
            kind = str(fact.__struct_config__.tag)
            connection.execute(insert(delivery_log).values({**A_FACT, "kind": kind}))
            assert kind in set(Step)


def test_a_lane_has_one_head_at_most(engine: Engine) -> None:
    for number, (first, second) in enumerate(product(sorted(HEADS), repeat=2)):
        lane, seq = f"lane {number}", 2 * number + 1
        open_row(engine, first, seq=2 * number, lane=lane)
        assert_rejected(engine, second, seq=seq, lane=lane)
        open_row(engine, "waiting", seq=seq, lane=lane)
        becomes = {"state": second.value, **SCHEDULED.get(second, {})}
        with pytest.raises(IntegrityError):
            run(engine, update(open_delivery).where(open_delivery.c.seq == seq).values(becomes))


def test_a_delivery_has_a_due_time_exactly_when_it_is_ready(engine: Engine) -> None:
    assert_rejected(engine, "ready", due_at=None)
    for state in set(OPEN_STATES) - {"ready"}:
        assert_rejected(engine, state, due_at=START)


def test_a_delivery_has_a_lease_exactly_when_it_is_in_flight(engine: Engine) -> None:
    for missing in ("lease_until", "lease_token", "relay_node"):
        assert_rejected(engine, "in_flight", **{missing: None})
    for state in set(OPEN_STATES) - {"in_flight"}:
        assert_rejected(engine, state, **SCHEDULED["in_flight"])


AN_EVENT = {
    **dict.fromkeys(("occurred_at", "received_at"), START),
    **dict.fromkeys(("source", "dedup_key", "event_type", "content_type"), "s"),
    "action": "explode",
    "routes": [],
    "body_bytes": 0,
    "body_sha256": b"",
}


NEVER: tuple[sa.Insert, ...] = (
    insert(delivery_log).values({**A_FACT, "kind": "lost"}),
    insert(delivery_log).values({**A_FACT, "kind": "dead", "state": "in_flight"}),
    insert(inbox).values(AN_EVENT),
    insert(order_lock).values(id=2),
    insert(write_probe).values(id=2, probed_at=START),
)
"""An unknown kind of fact, a fact that claims, an unknown action, a second order lock, a second probe."""


@pytest.mark.parametrize("statement", NEVER)
def test_a_row_that_may_not_be_there_is_refused(engine: Engine, statement: sa.Insert) -> None:
    with pytest.raises(IntegrityError):
        run(engine, statement)
