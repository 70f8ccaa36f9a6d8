"""Convert a request, and the identities read by its preset, to events to store."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime
from functools import partial
from typing import Any

import msgspec

from inbox.config.model import Config, Route
from inbox.config.routing import enrol, list_passed_headers, select_routes
from inbox.config.sources import WHOLE_BODY, HeaderAuth, Source
from inbox.errors import RequestError, TooOld
from inbox.events import timestamps
from inbox.events.event import Event, Identity, RawRequest, dedup_key
from inbox.sources import build_preset
from inbox.sources.base import Preset
from inbox.sources.fields import printable

NO_HEADERS: Mapping[str, str] = {}

KEPT_HEADERS = frozenset(
    {
        "content-encoding",
        "content-type",
        "idempotency-key",
        "traceparent",
        "tracestate",
        "user-agent",
        "webhook-id",
        "webhook-timestamp",
        "x-correlation-id",
        "x-request-id",
    }
)
"""Allow-list of stored headers: others may be secrets, and many people read the inbox."""

_TRACEPARENT = re.compile(r"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?", re.DOTALL)


def make_events(source: Source, preset: Preset, raw: RawRequest, routes: Sequence[Route]) -> tuple[Event, ...]:
    """Return the events of an authenticated request, ready to store; `routes` are those of its source.

    Raises:
        Unreadable, UnsupportedType, InvalidEvent: the preset rejects it.
    """
    preset.check_type(raw)
    headers = kept_headers(source, preset, raw)
    if source.dedup == [WHOLE_BODY]:
        identities = tuple(_with_body_key(raw, identity) for identity in preset.read(raw, None))
    else:
        identities = preset.read(raw, source.dedup)
    return tuple(to_event(source, raw, identity, routes, headers) for identity in identities)


def _with_body_key(raw: RawRequest, identity: Identity) -> Identity:
    body = raw.body if identity.part is None else identity.part
    return msgspec.structs.replace(identity, key_parts=(hashlib.sha256(body).hexdigest(),), key_has_time=False)


def reject_old(source: Source, events: Iterable[Event]) -> None:
    """Check that no event is older than the source's `max_age`. Readmitting a rejected request skips this check.

    Raises:
        TooOld: an event is older.
    """
    if source.max_age is None:
        return
    for event in events:
        age = (event.received_at - event.occurred_at).total_seconds()
        if age > source.max_age:
            raise TooOld(f"the event is {age:.0f} s old, and this source's max_age is {source.max_age:g} s")


def to_event(
    source: Source,
    raw: RawRequest,
    identity: Identity,
    routes: Iterable[Route],
    headers: Mapping[str, str] = NO_HEADERS,
) -> Event:
    """Build the event, with its dedup key and its lanes on matching routes; `headers` are those to store."""
    key = dedup_key(identity)
    has_time = identity.occurred_ns != timestamps.to_nanoseconds(raw.received_at)
    body = raw.body if identity.part is None else identity.part
    return Event(
        source=source.name,
        dedup_key=key,
        entity_type=identity.entity_type,
        entity_id=identity.entity_id,
        event_type=identity.event_type,
        action=identity.action,
        event_id=identity.event_id,
        occurred_at=timestamps.to_datetime(identity.occurred_ns),
        received_at=raw.received_at,
        enrolments=enrol(identity, key, routes),
        headers=headers,
        content_type=printable(identity.part_type or raw.headers.get("content-type", "")),
        body=body,
        body_sha256=hashlib.sha256(body).digest(),
        traceparent=valid_traceparent(raw.headers.get("traceparent")),
        ahead=float(source.clock_skew) if has_time else None,
    )


def kept_headers(source: Source, preset: Preset, raw: RawRequest) -> dict[str, str]:
    r"""Return the headers of the allow-list, in printable ASCII: other characters become `\xNN` or `\uNNNN`.

    Presets add headers that describe their events, and destinations those that they pass on. Headers that carry the
    source's secret are omitted, even if listed; so are passed-on headers that contain the URL's token.
    """
    secret = source.auth.name.lower() if isinstance(source.auth, HeaderAuth) else None
    token = raw.url_token
    return {
        name: printable(value)
        for name, value in raw.headers.items()
        if name != secret and (name in KEPT_HEADERS or (name in preset.kept_headers and not (token and token in value)))
    }


def valid_traceparent(value: str | None) -> str | None:
    """Return a trace context of W3C Trace Context level 1, as version 00; None if it is missing or invalid.

    Only the first four fields of higher versions are read, as the standard asks; `ff` and all-zero ids are invalid.
    """
    match = _TRACEPARENT.fullmatch(value) if value is not None else None
    if match is None:
        return None
    version, trace, parent, flags, more = match.groups()
    if version == "ff" or not trace.strip("0") or not parent.strip("0") or (version == "00" and more is not None):
        return None
    return f"00-{trace}-{parent}-{flags}"


# --- Rejected requests, reread with the current configuration for readmission.


Read = Callable[[RawRequest], Sequence[Event]]
"""Reads the events of a source's request; raises `RequestError`."""


class ReadmitResult(msgspec.Struct):
    """The result of rereading a rejected request."""

    id: int
    received_at: datetime
    source: str
    cause: str
    """Cause of the rejection."""
    events: Sequence[Event] = ()
    """Events as read now."""
    rejected: str | None = None
    """Reason for rejecting it again."""


def make_readers(config: Config) -> dict[str, Read]:
    """Return the current reader of each source's requests.

    Raises:
        ConfigError: a source's preset is missing, or rejects its configuration.
    """
    readers: dict[str, Read] = {}
    for name, source in config.sources.items():
        preset = build_preset(source, list_passed_headers(name, config.routes.values(), config.destinations))
        readers[name] = partial(make_events, source, preset, routes=select_routes(name, config.routes.values()))
    return readers


def read_one(readers: Mapping[str, Read], row: Mapping[str, Any]) -> ReadmitResult:
    """Reread a stored request; its arrival limits how far ahead its own time may be."""
    again = ReadmitResult(row["id"], row["received_at"], row["source"], row["cause"])
    read = readers.get(again.source)
    if read is None:
        again.rejected = "the source is no longer configured"
        return again
    raw = RawRequest(again.source, row["headers"] or {}, row["body"], again.received_at)
    try:
        # Its first arrival determines its place in the lane.
        again.events = [msgspec.structs.replace(event, ahead=event.ahead or 0.0) for event in read(raw)]
    except RequestError as error:
        again.rejected = error.detail
    else:
        again.rejected = None if again.events else "it has no events"
    return again
