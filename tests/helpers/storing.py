"""Events, and the receiver's statements that store them."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, TypeVar

from sqlalchemy import Engine, text

from inbox.db import intake
from inbox.db.dialect import Sql
from inbox.db.intake import Rejected
from inbox.db.link import link_to
from inbox.events.event import Enrolment, Event
from inbox.events.timestamps import time_text

START = datetime(2026, 1, 1, tzinfo=UTC)
T = TypeVar("T")


def an_event(
    number: int,
    entity: str = "u1",
    *,
    second: int | None = None,
    routes: Sequence[str] = ("strict",),
    body: bytes | None = None,
) -> Event:
    """Make the event of this number, which happened in second `second` (by default its number)."""
    body = b'{"n": %d}' % number if body is None else body
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


def a_rejected(**changed: Any) -> Rejected:  # noqa: ANN401  # its fields
    """Make a rejected request with other fields."""
    usual = {"received_at": START, "source": "trivore", "status": 422, "cause": "invalid_event", "reason": "no id"}
    more = {"field": "id", "remote_address": "192.0.2.1", "body_sha256": b"h" * 32, "headers": None, "body": None}
    return Rejected(**{**usual, **more, **changed})


class Intake:
    """The receiver's statements on a database, each on a new connection."""

    def __init__(self, url: str) -> None:
        self._url = url

    def append(self, *events: Event) -> list[int | None]:
        """Store events and return their seqs, None for duplicates."""
        return self._run(intake.append, events)

    def repeat(self, *events: Event) -> list[int | None]:
        """Note duplicates and return the seqs of their events, None for unknown keys."""
        return self._run(intake.note_duplicates, events)

    def reject(self, *rows: Rejected) -> None:
        """Keep rejected requests."""
        self._run(intake.reject, rows)

    def probe(self, now: datetime) -> None:
        """Write a probe."""
        self._run(intake.probe, now)

    def _run(self, function: Callable[..., T], given: object) -> T:
        async def _call() -> T:
            link = link_to(self._url, application="tests")
            await link.open()
            try:
                return await link.write(function, given)
            finally:
                await link.drop()

        return asyncio.run(_call())


_OPEN_AFTER = {
    "attempt_failed": "ready", "abandoned": "ready", "took_over": "ready", "rescheduled": "ready", "replayed": "received",
    "rearmed": "received", "dead": "dead", "unblocked": "dead",
}  # fmt: skip


def a_fact(
    kind: str,
    seq: int = 1,
    route: str = "strict",
    attempt: int = 1,
    *,
    run: int = 0,
    crashes: int = 0,
    at: datetime = START,
    **detail: object,
) -> str:
    """Return a statement that adds a fact by hand."""
    state = _OPEN_AFTER.get(kind, "ended")
    return (
        "INSERT INTO delivery_log (at, seq, route, kind, state, attempt, run, crashes, detail)"
        f" VALUES ('{time_text(at)}', {seq}, '{route}', '{kind}', '{state}', {attempt}, {run}, {crashes},"
        f" '{json.dumps(detail)}')"
    )


def a_row(seq: int, route: str = "strict", lane: str = "USER|u1", state: str = "received") -> str:
    """Return a statement that adds an open delivery by hand."""
    return (
        "INSERT INTO open_delivery (seq, route, lane, occurred_at, state)"
        f" VALUES ({seq}, '{route}', '{lane}', '2026-01-01 00:00:00.000000Z', '{state}')"
    )


def drop_checks(engine: Engine, table: str, *columns: str) -> None:
    """Allow any value in these columns, as a newer version may. On SQLite this turns off all checks."""
    with engine.begin() as connection:
        if Sql(engine.dialect.name).is_postgres:
            for column in columns:
                connection.execute(text(f"ALTER TABLE {table} DROP CONSTRAINT ck_{table}_{column}"))
        else:
            connection.execute(text("PRAGMA ignore_check_constraints = ON"))
