"""What a preset is, and the checks that all presets share.

A preset knows one provider's payload: which bytes it sends, and which change of which entity they tell of. To add one,
write one file beside this that ends in a `PRESET`, and its line in `inbox.sources.PRESETS`. Its `read` may raise
`RequestError` subclasses only, whatever the bytes are: anything else would be answered 500.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from inbox import strict_json, timestamps
from inbox.config import Source
from inbox.errors import InvalidEvent, UnsupportedType
from inbox.event import Identity, RawRequest

LONGEST_ID = 255
LONGEST_TYPE = 100
"""Characters of an entity type or event type."""

EARLIEST_NS = timestamps.parse_rfc3339("2000-01-01T00:00:00Z")
FARTHEST_AHEAD = timedelta(hours=24)
"""How much later than its arrival an event may say it occurred: more is a broken clock, and would win every fold."""

_NOT_STORABLE = re.compile("[\x00\ud800-\udfff]")
"""Postgres stores no NUL in a text, and UTF-8 has no half of a surrogate pair."""


Read = Callable[[RawRequest, Sequence[str] | None], tuple[Identity, ...]]
"""The events of a body, in its order, never none. The second argument is the source's `dedup`, if it has one.

Raises `Unreadable` or `InvalidEvent`.
"""


@dataclass(frozen=True, slots=True)
class Preset:
    """How one provider's requests are read."""

    name: str
    read: Read
    reader: Callable[[Source], Read] | None = None
    """Makes the `read` of one source, where it depends on what that configures; raises ValueError when it can't."""
    media_types: frozenset[str] = frozenset({"application/json"})
    """In lower case."""
    max_body: int = 256 * 1024
    """Bytes, unless the source has its own `max_body`."""

    def check_type(self, raw: RawRequest) -> None:
        """Compare media types without regard to case; a charset may only be UTF-8, and nothing may be compressed.

        Raises:
            UnsupportedType: the body is of a type that this preset does not read.
        """
        given = raw.headers.get("content-type", "")
        if given not in self.media_types:  # else it is one of them already, as most senders write it
            if raw.content_type not in self.media_types:
                wanted = " or ".join(sorted(self.media_types))
                raise UnsupportedType(f"send the body with Content-Type: {wanted}", field="content-type")
            for parameter in given.split(";")[1:]:
                name, _, value = parameter.partition("=")
                if name.strip().lower() == "charset" and value.strip().strip('"').lower() != "utf-8":
                    raise UnsupportedType("send the body in UTF-8", field="content-type")
        if raw.headers.get("content-encoding", "identity").strip().lower() != "identity":
            raise UnsupportedType("send the body without Content-Encoding", field="content-encoding")


def json_object(body: bytes) -> dict[str, object]:
    """The one JSON object that a body is.

    Raises:
        Unreadable: not strict JSON.
        InvalidEvent: JSON, but no object.
    """
    value = strict_json.parse(body)
    if not isinstance(value, dict):
        raise InvalidEvent("the body must be one JSON object", field="body")
    return value


def text_field(payload: Mapping[str, object], field: str, longest: int | None) -> str:
    """A field that must be a text of 1 to `longest` characters; numbers are not taken for texts.

    Raises:
        InvalidEvent: it is missing, something else, empty, too long, or holds what a database can't store.
    """
    value = payload.get(field)
    if not isinstance(value, str):
        problem = "must be a text" if field in payload else "is missing"
        raise InvalidEvent(f"{field} {problem}", field=field)
    if not value:
        raise InvalidEvent(f"{field} must not be empty", field=field)
    if longest is not None and len(value) > longest:
        raise InvalidEvent(f"{field} must have at most {longest} characters", field=field)
    if _NOT_STORABLE.search(value):
        raise InvalidEvent(f"{field} must not hold NUL characters or halves of surrogate pairs", field=field)
    return value


def time_field(payload: Mapping[str, object], field: str, received_at: datetime) -> int:
    """A field that must be an RFC 3339 time with an offset, from 2000 to 24 hours after arrival; in nanoseconds.

    Raises:
        InvalidEvent: it is missing, something else, or out of that range.
    """
    text = text_field(payload, field, None)
    try:
        instant = timestamps.parse_rfc3339(text)
    except ValueError as error:
        raise InvalidEvent(f"{field} {error}", field=field) from None
    if instant < EARLIEST_NS:
        raise InvalidEvent(f"{field} must not be before 2000-01-01T00:00:00Z", field=field)
    if instant > timestamps.to_nanoseconds(received_at + FARTHEST_AHEAD):
        raise InvalidEvent(
            f"{field} must not be more than 24 hours in the future; check the sender's clock", field=field
        )
    return instant


def dedup_part(payload: Mapping[str, object], field: str) -> str:
    """The part of a dedup key that a field gives: a text as it is, or a whole number in digits (5 and "5" are one).

    Raises:
        InvalidEvent: it is missing or something else.
    """
    value = payload.get(field)
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if not isinstance(value, str):
        problem = "must be a text or a whole number" if field in payload else "is missing"
        raise InvalidEvent(f"{field} {problem}, and the source's dedup needs it", field=field)
    return text_field(payload, field, None)
