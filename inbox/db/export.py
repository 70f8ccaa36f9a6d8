"""Reads events with their facts for an auditor: in order of `seq`, each event followed by its facts in order of `id`.

It reads some numbers at a time, each time in a short transaction: a long snapshot would keep vacuum from the hot tables. The
last number is fixed at the beginning. Events and facts never change, so only their arrival shows that time passes.
"""

from __future__ import annotations

import base64
from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime
from itertools import groupby
from typing import Any

import msgspec
from sqlalchemy import Connection, Engine, text

from inbox.db.dialect import Sql
from inbox.db.engine import reading
from inbox.db.parameters import rows_param
from inbox.db.reads import Row, plain
from inbox.db.schema import delivery_log, inbox
from inbox.events.timestamps import time_text

_NUMBERS = 5000
"""Numbers in one look for events, so that no statement runs long, however few of them match."""
_EVENTS = 200
"""Events whose facts are read together."""
_FACTS = 1000
_BYTES = 4 * 1024 * 1024
"""Bodies read together; a single one may be larger."""

_COLUMNS = ", ".join(f"i.{column.name}" for column in inbox.columns)
_FACT_COLUMNS = ", ".join(f"f.{column.name}" for column in delivery_log.columns)


class ExportFilter(msgspec.Struct, frozen=True, kw_only=True):
    """Conditions on the events of an export; None: any."""

    source: str | None = None
    entity_type: str | None = None
    entity_id: str | None = None
    event_type: str | None = None
    route: str | None = None
    """Only events that take this route, and only their facts on it."""
    since: datetime | None = None
    """Received at or after."""
    until: datetime | None = None
    """Received before."""


class ExportPart(msgspec.Struct, frozen=True):
    """The lines of one event, or none: everything up to a number is read."""

    upto: int
    lines: Iterable[Row] = ()


def bounds(engine: Engine) -> tuple[int, int]:
    """Return the first and the last number; 1 and 0: there is no event."""
    with engine.connect() as connection, reading(connection).begin():
        first, last = connection.execute(text("SELECT min(seq), max(seq) FROM inbox")).one()
        return (1, 0) if first is None else (int(first), int(last))


def parts(
    engine: Engine, wanted: ExportFilter, first: int, last: int, *, with_payloads: bool = False
) -> Iterator[ExportPart]:
    """Yield the events that match between two numbers. The lines of a part must be used before the next one."""
    with engine.connect() as connection:
        reader = _EventReader(connection, wanted)
        for after in range(first - 1, last, _NUMBERS):
            upto = min(after + _NUMBERS, last)
            events = reader.events(after, upto)
            for at in range(0, len(events), _EVENTS):
                some = events[at : at + _EVENTS]
                facts = _ByEvent(reader.facts(some))
                payloads = _ByEvent(reader.payloads(some)) if with_payloads else None
                for event in some:
                    line = {"type": "event", **event}
                    if payloads is not None:
                        line |= _shown(next(payloads(event["seq"]), None))
                    yield ExportPart(event["seq"], _lines(line, facts(event["seq"])))
            yield ExportPart(upto)


def _lines(event: Row, facts: Iterable[Row]) -> Iterator[Row]:
    yield event
    for fact in facts:
        yield {"type": "fact", **fact}


def _shown(payload: Row | None) -> Row:
    """Return the fields of a payload: the body as text, or else in base64. One that is gone has neither."""
    if payload is None:
        return {"headers": None, "body": None}
    body: bytes = payload["body"]
    try:
        return {"headers": payload["headers"], "body": body.decode("utf-8")}
    except UnicodeDecodeError:
        return {"headers": payload["headers"], "body_base64": base64.b64encode(body).decode()}


class _ByEvent:
    """Rows in order of their seq, handed out event by event."""

    def __init__(self, rows: Iterable[Row]) -> None:
        self._groups = groupby(rows, key=lambda row: row["seq"])
        self._next = next(self._groups, None)

    def __call__(self, seq: int) -> Iterator[Row]:
        """Yield the rows of this event; seqs must be asked for upwards."""
        while self._next is not None and self._next[0] < seq:
            self._next = next(self._groups, None)
        if self._next is not None and self._next[0] == seq:
            yield from self._next[1]
            self._next = next(self._groups, None)


class _EventReader:
    """The statements of an export."""

    def __init__(self, connection: Connection, wanted: ExportFilter) -> None:
        self._connection = connection
        self._sql = Sql(connection.dialect.name)
        self._wanted = wanted
        names = ("source", "entity_type", "entity_id", "event_type")
        given = {name: value for name in names if (value := getattr(wanted, name)) is not None}
        conditions = [f"i.{name} = :{name}" for name in given]
        for name, operator in (("since", ">="), ("until", "<")):
            if (moment := getattr(wanted, name)) is not None:
                conditions.append(f"i.received_at {operator} {self._sql.time(f':{name}')}")
                given[name] = time_text(moment)
        if wanted.route is not None:
            logged = "EXISTS (SELECT 1 FROM delivery_log f WHERE f.seq = i.seq AND f.route = :route)"
            conditions.append(f"({self._sql.has_all('i.routes', 'routes')} OR {logged})")
            given |= {"route": wanted.route, "routes": msgspec.json.encode([wanted.route]).decode()}
        self._given: dict[str, Any] = given
        where = " AND ".join(("i.seq > :after AND i.seq <= :upto", *conditions))
        self._events = text(f"SELECT {_COLUMNS} FROM inbox i WHERE {where} ORDER BY i.seq")

    def events(self, after: int, upto: int) -> list[Row]:
        """Read the events that match between two numbers, without their payloads."""
        with reading(self._connection).begin():
            found = self._connection.execute(self._events, {**self._given, "after": after, "upto": upto})
            return [plain(row) for row in found.mappings()]

    def facts(self, events: Sequence[Row]) -> Iterator[Row]:
        """Yield the facts of these events, in order of seq and id."""
        log = self._sql.looked_up(self._sql.rows("wanted", seq="bigint"), "delivery_log f", "f.seq = wanted.seq")
        route = "" if self._wanted.route is None else " AND f.route = :route"
        statement = text(f"""
SELECT {_FACT_COLUMNS} FROM {log}
WHERE (f.seq > :seq OR (f.seq = :seq AND f.id > :id)){route}
ORDER BY f.seq, f.id LIMIT {_FACTS}
""")
        given: dict[str, object] = {"wanted": rows_param({"seq": event["seq"]} for event in events)}
        if self._wanted.route is not None:
            given["route"] = self._wanted.route
        seq = number = 0
        while True:
            with reading(self._connection).begin():
                found = self._connection.execute(statement, {**given, "seq": seq, "id": number}).mappings()
                rows = [plain(row) for row in found]
            yield from rows
            if len(rows) < _FACTS:
                return
            seq, number = rows[-1]["seq"], rows[-1]["id"]

    def payloads(self, events: Sequence[Row]) -> Iterator[Row]:
        """Yield the payloads that these events still have, in order of seq."""
        payload = self._sql.looked_up(self._sql.rows("wanted", seq="bigint"), "inbox_payload p", "p.seq = wanted.seq")
        statement = text(f"SELECT p.seq, p.headers, p.body FROM {payload} ORDER BY p.seq")
        for some in _in_sizes(events):
            with reading(self._connection).begin():
                given = {"wanted": rows_param({"seq": seq} for seq in some)}
                rows = [plain(row) for row in self._connection.execute(statement, given).mappings()]
            yield from rows


def _in_sizes(events: Sequence[Row]) -> Iterator[list[int]]:
    """Part the numbers of events by the size of their bodies on arrival."""
    some: list[int] = []
    together = 0
    for event in events:
        if some and together + event["body_bytes"] > _BYTES:
            yield some
            some, together = [], 0
        some.append(event["seq"])
        together += event["body_bytes"]
    if some:
        yield some
