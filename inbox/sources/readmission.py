"""Reads rejected requests again, by the present configuration. Pure: the receiver and the relay store what it reads."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from functools import partial
from typing import Any

import msgspec

from inbox.config.model import Config
from inbox.config.routing import passed_headers, routes_of
from inbox.config.sources import Source
from inbox.errors import RequestError
from inbox.events.event import Event, RawRequest, Receipt
from inbox.sources import preset_of
from inbox.sources.normalize import events_of


class ReadmitResult(msgspec.Struct):
    """A rejected request that was read again, and its result."""

    id: int
    received_at: datetime
    source: str
    cause: str
    """Cause of the rejection."""
    events: Sequence[Event] = ()
    """Its events, as it is read now."""
    rejected: str | None = None
    """Reason why it is still rejected."""
    receipts: Sequence[Receipt] = ()
    """Receipts of its events, once they are stored."""


Read = Callable[[RawRequest], Sequence[Event]]
"""Reads the events of a source's request; raises `RequestError`."""


def readers_of(config: Config) -> dict[str, Read]:
    """Return the present reader of each source's requests.

    Raises:
        ConfigError: a source's preset is missing, or can't be configured so.
    """
    return {name: _reader(config, source) for name, source in config.sources.items()}


def _reader(config: Config, source: Source) -> Read:
    preset = preset_of(source, passed_headers(source.name, config.routes.values(), config.destinations))
    return partial(events_of, source, preset, routes=routes_of(source.name, config.routes.values()))


def read_one(readers: Mapping[str, Read], row: Mapping[str, Any]) -> ReadmitResult:
    """Read a request as it came, at the time of its arrival, which limits how far ahead its own time may be."""
    again = ReadmitResult(row["id"], row["received_at"], row["source"], row["cause"])
    read = readers.get(again.source)
    if read is None:
        again.rejected = "there is no such source in the configuration any more"
        return again
    raw = RawRequest(again.source, row["headers"] or {}, row["body"], again.received_at)
    try:
        # It has its place in its lane by the time at which it came first.
        again.events = [msgspec.structs.replace(event, ahead=event.ahead or 0.0) for event in read(raw)]
    except RequestError as error:
        again.rejected = error.detail
    else:
        again.rejected = None if again.events else "there is no event in it"
    return again
