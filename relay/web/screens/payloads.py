"""`/payloads`: changes of payloads, and the shape of each event type as relays have learned it."""

from __future__ import annotations

import shlex
from typing import Annotated

import msgspec

from inbox.db import payload_shapes
from inbox.db.payload_shapes import ChangeFilter, FieldFilter
from inbox.db.reads import Row
from relay.shapes.learn import MOST_PATHS, ChangeKind
from relay.web.query import Limit, Number, Text
from relay.web.rows import rows_of
from relay.web.screen import ListPage, Reading, Screen

MOST_SHAPES = 200


class PayloadsQuery(msgspec.Struct, frozen=True, kw_only=True):
    """Conditions on changes of payloads, and on what was learned."""

    source: Text | None = None
    event_type: Text | None = None
    """Exactly as the sender wrote it; with a source, its fields are listed."""
    change: ChangeKind | None = None
    """Kind of change: a new field, a new type, or a missing field."""
    all: bool = False
    """True: also changes that are over."""
    before: Number | None = None
    limit: Limit = 50


class Shape(msgspec.Struct, frozen=True):
    """An event type that relays have learned."""

    source: str
    event_type: str
    events: int | None
    """Learned events; null: no more is known of the root."""
    paths: int
    last_seq: int
    """The last learned event."""


class PayloadField(msgspec.Struct, frozen=True):
    """A field of the payloads of an event type."""

    path: str
    types: dict[str, int]
    """JSON types that were seen, with the number of events."""
    events: int
    """Events that have the field."""
    of: int
    """Events that could have had it since it was first seen."""
    first_seq: int
    last_seq: int
    missed: int
    """Last events in a row without it."""
    is_map: bool
    """True: the keys below it are data."""


_IS_OPEN = {"type": "boolean", "description": "false: it was acknowledged, is too old, or the field is there again"}


class PayloadsPage(ListPage, frozen=True, kw_only=True):
    """Rows of `payload_change`, the newest first; learned event types; and the fields of the one that was asked for."""

    rows: tuple[Annotated[Row, rows_of("payload_change", is_open=_IS_OPEN)], ...]
    shapes: tuple[Shape, ...]
    """Event types of the source, or of all; not on later pages."""
    fields: tuple[PayloadField, ...]
    """Fields, where the query names a source and an event type."""


def read(reading: Reading, query: PayloadsQuery) -> PayloadsPage:
    """Read a page of changes, and what was learned."""
    engine = reading.database.engine
    wanted = ChangeFilter(
        source=query.source,
        event_type=query.event_type,
        change=query.change,
        only_open=not query.all,
        before=query.before,
    )
    rows = payload_shapes.changes(engine, wanted, query.limit + 1)
    shown = rows[: query.limit]
    return PayloadsPage(
        rows=tuple(shown),
        before=shown[-1]["id"] if len(rows) > query.limit else None,
        shapes=() if query.before is not None else _shapes(reading, query),
        fields=_fields(reading, query),
    )


def _shapes(reading: Reading, query: PayloadsQuery) -> tuple[Shape, ...]:
    rows = payload_shapes.shapes(reading.database.engine, query.source, MOST_SHAPES)
    return tuple(Shape(**{name: row[name] for name in Shape.__struct_fields__}) for row in rows)


def _fields(reading: Reading, query: PayloadsQuery) -> tuple[PayloadField, ...]:
    if query.source is None or query.event_type is None:
        return ()
    wanted = FieldFilter(source=query.source, event_type=query.event_type)
    rows = payload_shapes.fields(reading.database.engine, wanted, MOST_PATHS)
    return tuple(PayloadField(**{name: row[name] for name in PayloadField.__struct_fields__}) for row in rows)


def acknowledge_command(query: PayloadsQuery) -> str:
    """Write the command that acknowledges the open changes of a source and event type. Pure."""
    named = (("--source", query.source), ("--event-type", query.event_type))
    options = [word for name, value in named if value is not None for word in (name, value)]
    return shlex.join(["inbox", "payloads", "--changes", "--acknowledge", *options])


SCREEN = Screen(
    name="payloads",
    path="/payloads",
    title="Payloads",
    query=PayloadsQuery,
    page=PayloadsPage,
    read=read,
    template="payloads.html",
    values={"acknowledge": acknowledge_command},
    is_list=True,
)
