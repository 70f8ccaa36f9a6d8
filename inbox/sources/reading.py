"""Readers that several presets share: a list of events in one body, and the entity that an event is about."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

from inbox.errors import InvalidEvent
from inbox.events import strict_json
from inbox.events.event import Identity, RawRequest
from inbox.sources import fields
from inbox.sources.base import Read

Entity = tuple[str, str] | tuple[None, None]
"""Type and id of an entity."""

NO_ENTITY: Entity = (None, None)

ReadOne = Callable[[RawRequest, Mapping[str, object], bytes | None, Sequence[str] | None], Identity]
"""Reads one event of a list: the request, the event, its `Identity.part`, and the source's `dedup`."""


def entity(kind: object, identifier: object) -> Entity:
    """Return the type and id of an entity; None for both where one of them is missing or can't be stored."""
    of, named = fields.entity_type(kind), fields.entity_id(identifier)
    return (of, named) if of is not None and named is not None else NO_ENTITY


def listed(raw: RawRequest, *path: str) -> Iterator[tuple[Mapping[str, object], bytes | None]]:
    """Yield each event of the list at `path`, with the body that it would have had alone; None where it is alone.

    Raises:
        Unreadable: the body is not strict JSON.
        InvalidEvent: there is no list, it is empty or too long, or one of its events is no object.
    """
    where = ".".join(path) or "body"
    parsed = strict_json.parse(raw.body)
    events = fields.member(parsed, *path)
    if not isinstance(events, list) or not events:
        raise InvalidEvent(f"{where} must be a list of events", field=where)
    if len(events) > fields.MOST_EVENTS:
        raise InvalidEvent(f"{where} may have at most {fields.MOST_EVENTS} events", field=where)
    parts = fields.alone(raw.body, *path) if len(events) > 1 else [None]
    for event, part in zip(events, parts, strict=True):
        if not isinstance(event, Mapping):
            raise InvalidEvent(f"{where} must be a list of objects", field=where)
        yield event, part


def reader_of_list(read_one: ReadOne, *path: str) -> Read:
    """Make the `read` of a preset whose bodies have a list of events at `path`; without one, the body is the list."""

    def read(raw: RawRequest, dedup: Sequence[str] | None) -> tuple[Identity, ...]:
        """Return the events of a body: see `Read`."""
        return tuple(read_one(raw, event, part, dedup) for event, part in listed(raw, *path))

    return read
