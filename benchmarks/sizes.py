"""Bytes on disk and of WAL for each event, by the size of its body, with the product's own statements.

    python -m benchmarks.sizes --database postgres --events 20000

Each event takes one route and is delivered by the first attempt. Bodies are random and so not compressible; five events
share an entity. `open_delivery` counts separately, as its space is reused.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
from collections.abc import Mapping
from datetime import timedelta
from typing import Annotated

import msgspec
import typer
from sqlalchemy import Engine, text

from benchmarks.filling import EVENTS_OF_AN_ENTITY, store
from benchmarks.harness import AsJson, Kind, OnDatabase, databases, start, tell
from inbox.clock import SystemClock
from inbox.db import engine as engines
from inbox.db.dialect import POSTGRES
from inbox.db.engine import checkpoint
from inbox.events.event import Enrolment, Event
from inbox.loader.load import parse_config
from relay.delivery.outcome import Delivered
from relay.delivery.policy import policies
from relay.store import claim, record, sequence
from relay.store.database import Database
from relay.store.work import Work

_BATCH = 100
_CONFIG = parse_config("""
[sources.shop]
preset = "trivore"
auth = { kind = "none" }
[destinations.crm]
kind = "forward"
url = "https://crm.example.com/hook"
[routes.to-crm]
source = "shop"
destination = "crm"
""")
_POLICIES = policies(_CONFIG)
_WHILE_OPEN = "open_delivery"
_LEAST_BYTES = 8.0
"""Least growth for each event in bytes; smaller parts are single pages."""


class Sizes(msgspec.Struct, frozen=True):
    """Bytes for each event, with bodies of one size."""

    body_bytes: int
    events: int
    parts: Mapping[str, float]
    """Bytes of each growing table and index."""
    wal_received: float
    wal_delivered: float

    @property
    def disk(self) -> float:
        """Bytes that stay on disk after the delivery."""
        return sum(size for name, size in self.parts.items() if _WHILE_OPEN not in name)

    @property
    def while_open(self) -> float:
        """Extra bytes until the delivery."""
        return sum(size for name, size in self.parts.items() if _WHILE_OPEN in name)


def an_event(number: int, size: int) -> Event:
    """Make an event with a body of this size."""
    body = json.dumps({"id": f"{number:08d}", "data": os.urandom(size // 2 + 1).hex()}).encode()[: size - 2] + b'"}'
    at = SystemClock().now()
    entity = f"IDNUMBER{number // EVENTS_OF_AN_ENTITY:08d}"
    return Event(
        source="shop",
        dedup_key=f"{at.isoformat()}|UPDATE|{number:08d}",
        entity_type="USER",
        entity_id=entity,
        event_type="UPDATE",
        action="update",
        event_id=f"{number:08d}",
        occurred_at=at + timedelta(microseconds=number),
        received_at=at,
        enrolments=(Enrolment("to-crm", f"USER|{entity}"),),
        headers={"content-type": "application/json", "user-agent": "shop/1.0"},
        content_type="application/json",
        body=body,
        body_sha256=hashlib.sha256(body).digest(),
    )


def _deliver(database: Database) -> None:
    work = Work(database, _CONFIG, _POLICIES, "r1")
    while sequence.sequence(work):
        pass
    while claimed := claim.claim(work, [claim.FreeCapacity(["to-crm"], _BATCH)]):
        list(record.record(work, [(one, Delivered((), "forwarded")) for one in claimed]))


def measure(url: str, events: int, size: int) -> Sizes:
    """Receive and deliver events with bodies of this size."""
    engine = engines.connect(url, application="benchmarks")
    _settle(engine)
    before, began = _parts(engine), _wal(engine)
    asyncio.run(store(url, (an_event(number, size) for number in range(events))))
    received = _wal(engine)
    _deliver(Database(engine))
    delivered = _wal(engine)
    _settle(engine)
    after = _parts(engine)
    engine.dispose()
    grown = {name: (bytes_after - before.get(name, 0)) / events for name, bytes_after in after.items()}
    return Sizes(
        size,
        events,
        {name: grown[name] for name in sorted(grown) if grown[name] >= _LEAST_BYTES},
        (received - began) / events,
        (delivered - received) / events,
    )


def _wal(engine: Engine) -> int:
    """Return all bytes of WAL ever written, or 0 on SQLite, which overwrites its WAL."""
    if engine.dialect.name != POSTGRES:
        return 0
    with engine.connect() as connection:
        return int(connection.execute(text("SELECT pg_current_wal_insert_lsn() - '0/0'")).scalar_one())


def _settle(engine: Engine) -> None:
    """Remove dead rows, as autovacuum does in time; on SQLite copy the WAL into the file."""
    if engine.dialect.name != POSTGRES:
        checkpoint(engine)
        return
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(text("VACUUM"))


_POSTGRES_PARTS = """
SELECT coalesce(p.relname, c.relname) AS name, sum(pg_table_size(c.oid)) AS bytes
FROM pg_class c
LEFT JOIN pg_inherits h ON h.inhrelid = c.oid
LEFT JOIN pg_class p ON p.oid = h.inhparent
WHERE c.relkind IN ('r', 'i') AND c.relnamespace = current_schema()::regnamespace
GROUP BY 1
"""
_SQLITE_PARTS = "SELECT name, sum(pgsize) AS bytes FROM dbstat GROUP BY name"


def _parts(engine: Engine) -> dict[str, int]:
    """Return the bytes of each table without indexes, and of each index."""
    statement = _POSTGRES_PARTS if engine.dialect.name == POSTGRES else _SQLITE_PARTS
    with engine.connect() as connection:
        return {row.name: int(row.bytes) for row in connection.execute(text(statement.replace(":", "\\:")))}


def main(
    *,
    database: OnDatabase = Kind.POSTGRES,
    events: Annotated[int, typer.Option(min=100, help="Events of each size.")] = 20_000,
    sizes: Annotated[str, typer.Option(help="Sizes of a body in bytes.")] = "100,1024,16384",
    as_json: AsJson = False,
) -> None:
    """Measure bytes on disk and of WAL for each event, by the size of its body."""
    wanted = [int(size) for size in sizes.split(",")]
    with databases(database, len(wanted)) as urls:
        measured = [measure(url, events, size) for url, size in zip(urls, wanted, strict=True)]
    names = sorted({name for each in measured for name in each.parts}, key=lambda name: -measured[0].parts.get(name, 0))
    parts = [(name, *(each.parts.get(name, 0) for each in measured)) for name in names]
    sums = [
        ("stays on disk", *(each.disk for each in measured)),
        ("while open", *(each.while_open for each in measured)),
        ("WAL, received", *(each.wal_received for each in measured)),
        ("WAL, delivered", *(each.wal_delivered for each in measured)),
    ]
    rows = [(name, *(f"{size:,.0f}" for size in figures)) for name, *figures in (*parts, *sums)]
    columns = ("body", *(f"{size:,}" for size in wanted))
    tell(f"Bytes for each event, {database}", {"sizes": measured}, columns, rows, as_json=as_json)


if __name__ == "__main__":
    start(main)
