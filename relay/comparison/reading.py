"""The identity of a stored event, as a source's present settings read it from the request. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from datetime import datetime
from functools import partial
from typing import Any

import msgspec

from inbox.config.model import Config
from inbox.config.source import Source
from inbox.errors import RequestError
from inbox.events.event import Action, Event, RawRequest, swept_key
from inbox.events.timestamps import to_nanoseconds
from inbox.sources import preset_of
from inbox.sources.readmission import Read, readers_of


class Payload(msgspec.Struct, frozen=True):
    """Headers and body of a stored event."""

    headers: Mapping[str, str]
    body: bytes


class Identified(msgspec.Struct, frozen=True):
    """The identity of a change, as one configuration reads it."""

    entity_type: str | None
    entity_id: str | None
    event_type: str
    action: Action
    event_id: str | None
    dedup_key: str
    occurred_at: datetime


class Arrived(Identified, frozen=True, kw_only=True):
    """A stored event without its payload."""

    seq: int
    source: str
    received_at: datetime
    content_type: str
    traceparent: str | None
    routes: frozenset[str]
    """Routes that matched when it arrived."""
    body_bytes: int

    @property
    def is_swept(self) -> bool:
        """True when a sweep has added it: then no preset has read it."""
        if self.entity_type is None or self.entity_id is None:
            return False
        return self.dedup_key == swept_key(self.entity_type, self.entity_id, to_nanoseconds(self.occurred_at))


class NotAccepted(msgspec.Struct, frozen=True):
    """The reason for which a configuration would reject the request."""

    why: str


def stored_identity(event: Arrived | Event) -> Identified:
    """Return the identity under which an event is stored."""
    return Identified(**{name: getattr(event, name) for name in Identified.__struct_fields__})


class Reader(msgspec.Struct, frozen=True):
    """Reads the requests of one source as a configuration has it."""

    read: Callable[[Arrived, Payload], Identified | NotAccepted]
    max_body: int
    max_age: float | None

    def rejection(self, event: Arrived) -> str | None:
        """Return why a request of this size and age would be rejected; None when it would not. Equal reasons have one text."""
        if event.body_bytes > self.max_body:
            return f"the body is larger than max_body, {self.max_body:,} bytes"
        age = (event.received_at - event.occurred_at).total_seconds()
        if self.max_age is not None and age > self.max_age and not event.is_swept:
            return f"the event is older than max_age, {self.max_age:g} s"
        return None


def readers(config: Config) -> Mapping[str, Reader]:
    """Make the reader of each source.

    Raises:
        ConfigError: a source's preset is missing, or can't be configured so.
    """
    return {name: _reader(config.sources[name], read) for name, read in readers_of(config).items()}


def _reader(source: Source, read: Read) -> Reader:
    return Reader(partial(_read, read), source.max_body or preset_of(source).max_body, source.max_age)


def _read(read: Read, event: Arrived, payload: Payload) -> Identified | NotAccepted:
    headers = {**payload.headers, "content-type": event.content_type}
    try:
        events = read(RawRequest(event.source, headers, payload.body, event.received_at))
    except RequestError as error:
        return NotAccepted(error.detail)
    if len(events) != 1:
        return NotAccepted(f"there are {len(events)} events in it")
    return stored_identity(events[0])


def changed_fields(old: Identified, new: Identified) -> Iterator[tuple[str, Any, Any]]:
    """Yield each field in which two identities differ, with both values."""
    for name in Identified.__struct_fields__:
        before, after = getattr(old, name), getattr(new, name)
        if before != after:
            yield name, before, after
