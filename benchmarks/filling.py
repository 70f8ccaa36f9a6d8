"""Events in the inbox before a measurement, stored as the receiver does, or faster by statements."""

from __future__ import annotations

import itertools
import uuid
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

import msgspec
from sqlalchemy import text

from inbox.config.routing import select_routes
from inbox.db import engine as engines
from inbox.db import intake
from inbox.db.dialect import POSTGRES
from inbox.db.link import link_to
from inbox.events.event import Event, RawRequest
from inbox.loader.load import read_config
from inbox.sources import build_preset
from inbox.sources.normalize import make_events

EVENTS_OF_AN_ENTITY = 5
BATCH = 250
_BEGIN = datetime(2026, 1, 1, tzinfo=UTC)
_MOMENT = "2026-01-01 00:00:00.000000Z"
_APPEND_ONLY = ("inbox", "inbox_payload", "delivery_log")
_TABLES = (*_APPEND_ONLY, "open_delivery", "lane", "relay_command", "alert", "gate")


def bodies_of(events: int, entities: int | None = None, types: Sequence[str] = ("USER",)) -> list[bytes]:
    """Return webhooks in the order of their times, spread evenly over the entities, by default five each."""
    run = uuid.uuid4().hex[:8]
    entities = entities or max(events // EVENTS_OF_AN_ENTITY, 1)
    return [
        msgspec.json.encode(
            {
                "id": f"{run}-{number % entities}",
                "entityType": types[number % entities % len(types)],
                "eventType": "UPDATE",
                "timestamp": _BEGIN + timedelta(milliseconds=number),
            }
        )
        for number in range(events)
    ]


async def preload(url: str, environment: Mapping[str, str], bodies: list[bytes]) -> None:
    """Store the webhooks as the receiver does."""
    config = read_config(Path(environment["INBOX_CONFIG"]), environment)
    source = config.sources["trivore"]
    preset, routes = build_preset(source), select_routes(source.name, config.routes.values())
    headers = {"content-type": "application/json", "user-agent": "benchmark"}
    raws = (RawRequest(source.name, headers, body, _BEGIN + timedelta(days=1)) for body in bodies)
    await store(url, (make_events(source, preset, raw, routes)[0] for raw in raws))


async def store(url: str, events: Iterable[Event]) -> None:
    """Store events by the receiver's own statements."""
    link, rest = link_to(url, application="benchmarks"), iter(events)
    await link.open()
    while batch := list(itertools.islice(rest, BATCH)):
        await link.write(intake.append, batch)
    await link.drop()


class Inbox:
    """Fills a database by statements, as receivers and relays would."""

    def __init__(self, url: str) -> None:
        self.engine = engines.connect(url, application="benchmarks")
        self.is_postgres = self.engine.dialect.name == POSTGRES
        self._last = 0

    def add(self, events: int, entity: str, state: str | None = "received", route: str = "everything") -> None:
        """Add events of the entities named by `entity`, an SQL expression over the number n.

        Their deliveries are in this state; None means ended, with deleted payloads.
        """
        first, self._last = self._last + 1, self._last + events
        if self.is_postgres:
            numbers, routes = f"generate_series({first}, {self._last}) AS n", f"ARRAY['{route}']"
            when, blob, json = f"TIMESTAMPTZ '{_MOMENT}'", "bytea", "jsonb"
        else:
            counted = f"SELECT {first} UNION ALL SELECT n + 1 FROM c WHERE n < {self._last}"
            numbers, routes = f"(WITH RECURSIVE c(n) AS ({counted}) SELECT n FROM c)", f"'[\"{route}\"]'"
            when, blob, json = f"'{_MOMENT}'", "blob", "text"
        body = f"""'{{"id": "' || {entity} || '", "entityType": "USER", "n": ' || n || '}}'"""
        statements = [
            f"""
INSERT INTO inbox (seq, source, dedup_key, entity_type, entity_id, event_type, action, occurred_at, received_at, routes,
                   content_type, body_bytes, body_sha256)
SELECT n, 'trivore', 'key ' || n, 'USER', {entity}, 'UPDATE', 'update', {when}, {when}, {routes},
       'application/json', length({body}), CAST('00' AS {blob})
FROM {numbers}"""
        ]
        if state:
            due = when if state == "ready" else "NULL"
            statements += [
                f"INSERT INTO inbox_payload (seq, headers, body) SELECT n, '{{}}', CAST({body} AS {blob}) FROM {numbers}",
                f"""
INSERT INTO open_delivery (seq, route, lane, occurred_at, state, due_at, attempt)
SELECT n, '{route}', 'USER|' || {entity}, {when}, '{state}', {due}, {int(state == "dead")} FROM {numbers}""",
            ]
        if state == "dead":
            statements.append(f"""
INSERT INTO delivery_log (at, seq, route, kind, state, attempt, detail)
SELECT {when}, n, '{route}', 'dead', 'dead', 1, CAST('{{"cause": "mapping", "error": "email: no value"}}' AS {json})
FROM {numbers}""")
        if self.is_postgres:  # a relay refuses a database whose sequence is behind
            statements.append(f"SELECT setval('inbox_seq_seq', {self._last})")
        self._run(*statements)

    def add_after(self, events: int, entity: str, route: str) -> None:
        """Add events after those stored by a receiver, and move its sequence beyond them."""
        self._last = self._value("SELECT coalesce(max(seq), 0) FROM inbox")
        if self.is_postgres:
            self._run(f"SELECT setval('inbox_seq_seq', {self._last + events})")
        self.add(events, entity, route=route)

    def count(self, state: str | None = None) -> int:
        """Count the open deliveries, or those in a state."""
        return self._value("SELECT count(*) FROM open_delivery" + (f" WHERE state = '{state}'" if state else ""))

    def settle(self) -> None:
        """Vacuum and analyze the database."""
        with self.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            connection.execute(text("VACUUM ANALYZE" if self.is_postgres else "ANALYZE"))

    def empty(self) -> None:
        """Empty the database."""
        if self.is_postgres:
            disabled, enabled = (
                [f"ALTER TABLE {table} {act} TRIGGER ALL" for table in _APPEND_ONLY] for act in ("DISABLE", "ENABLE")
            )
            self._run(*disabled, f"TRUNCATE {', '.join(_TABLES)}", *enabled)
        else:  # there the inbox and the log are append-only, and seqs go on
            ended = "UPDATE relay_command SET state = 'cancelled' WHERE state IN ('asked', 'running')"
            emptied = [table for table in _TABLES if table not in {"inbox", "delivery_log"}]
            self._run(ended, *(f"DELETE FROM {table}" for table in reversed(emptied)))
        self._last = self._value("SELECT coalesce(max(seq), 0) FROM inbox")

    def _run(self, *statements: str) -> None:
        with self.engine.begin() as connection:
            for statement in statements:
                connection.execute(text(statement.replace(":", "\\:")))

    def _value(self, statement: str) -> int:
        with self.engine.connect() as connection:
            return int(connection.execute(text(statement)).scalar_one())
