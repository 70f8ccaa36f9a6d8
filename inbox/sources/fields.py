"""Readers of untrusted payloads: each function returns a storable value, or raises.

An invalid required value (type, id or time) rejects the event. An invalid optional value, such as the entity of a
provider with many kinds of objects, is skipped: an event without an entity is its own lane, so nothing is lost.
"""

from __future__ import annotations

import hashlib
import io
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from itertools import starmap
from typing import TypeVar, get_args
from urllib.parse import unquote_to_bytes

import msgspec

from inbox.errors import InvalidEvent, Unreadable
from inbox.events import strict_json, timestamps
from inbox.events.event import Action, Identity, RawRequest
from inbox.sources.base import Read

Payload = Mapping[str, object]
"""Untrusted members of an event."""
Decoded = TypeVar("Decoded")
Dedup = Sequence[str] | None
"""A source's key `dedup`."""

LONGEST_ID = 255
LONGEST_TYPE = 100
"""Maximum characters of an entity type or event type."""
LONGEST_WORD = 49
"""Maximum characters of a word; two words joined by a dot fit in an event type."""

EARLIEST_NS = timestamps.parse_rfc3339("2000-01-01T00:00:00Z")
FARTHEST_AHEAD_NS = 24 * 3600 * 1_000_000_000
"""Nanoseconds by which an event may be ahead of its arrival. More means a broken clock, and the event would supersede
all others."""

SAME_WITHIN_NS = 300 * 1_000_000_000

FORM = "application/x-www-form-urlencoded"
_FIELDS_AT_MOST = 100
MOST_FORM_FIELDS = 1000
"""Maximum fields of a form that expressions read."""
LARGEST_FORM_PAYLOAD = 16 * 1024 * 1024
"""Bytes of a payload held in memory in addition to its form. Quoted JSON takes twice its size and forms have at most 25
MiB, so it is enough."""
_STEP = 16 * 1024
MOST_BARE = 1000
"""Maximum percent signs without two digits in one value, as in hand-written forms. The standard library raises and
catches an error for each: 25 MiB of them blocked a thread for 13 s, and all other large bodies with it."""
_BARE = re.compile(rb"%(?![0-9a-fA-F]{2})")


def actions(**words: Sequence[str]) -> Mapping[str, Action]:
    """Map each word to its action, given the words of each action."""
    return {word: action for action in get_args(Action) for word in words.get(action, ())}


_ACTIONS = actions(
    create=("add", "added", "create", "created", "joined", "open", "opened", "published", "submitted"),
    update=("change", "changed", "edit", "edited", "rename", "renamed", "update", "updated"),
    delete=("delete", "deleted", "destroy", "destroyed", "left", "remove", "removed"),
)
"""Providers' words for each action; any other word is `other`."""

_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_NOT_STORABLE = re.compile("[\x00\ud800-\udfff]")
"""Postgres texts can't hold NUL, and UTF-8 can't encode lone surrogates."""


def json_object(body: bytes) -> dict[str, object]:
    """Parse a body with one JSON object.

    Raises:
        Unreadable: not strict JSON.
        InvalidEvent: JSON, but not an object.
    """
    value = strict_json.parse(body)
    if not isinstance(value, dict):
        raise InvalidEvent("the body must be one JSON object", field="body")
    return value


def decode_as(kind: type[Decoded], body: bytes) -> Decoded | None:
    """Decode those members of an unauthenticated body that a proof needs; None if it is unreadable or too large."""
    if strict_json.has_too_many_marks(body):
        return None
    try:
        return msgspec.json.decode(body, type=kind)
    except (msgspec.DecodeError, ValueError, RecursionError):  # ValueError: a text that is not UTF-8
        return None


MOST_EVENTS = 1000
"""Maximum events in one request, which are stored in one transaction."""

LARGEST_PARTS = 16 * 1024 * 1024
"""Maximum total bytes of the events of one body, each with a copy of the surrounding body."""


def split_list(body: bytes) -> list[bytes]:
    """Return the bytes of each element of a JSON list, which must be valid."""
    return [bytes(each) for each in msgspec.json.decode(body, type=list[msgspec.Raw])]


def split_body(body: bytes, *path: str) -> list[bytes]:
    """Return, for each element of the list at `path`, the body with only that element and otherwise unchanged bytes.

    Raises:
        InvalidEvent: they exceed `LARGEST_PARTS`.
    """
    if not path:
        return [b"[%b]" % element for element in split_list(body)]
    members = msgspec.json.decode(body, type=dict[str, msgspec.Raw])
    written = {name: b"%b:%b" % (msgspec.json.encode(name), bytes(value)) for name, value in members.items()}
    made, size = [], 0
    for inner in split_body(bytes(members[path[0]]), *path[1:]):
        written[path[0]] = b"%b:%b" % (msgspec.json.encode(path[0]), inner)
        made.append(b"{%b}" % b",".join(written.values()))
        size += len(made[-1])
        if size > LARGEST_PARTS:
            raise InvalidEvent(
                f"each event is stored with the surrounding body, in all more than {LARGEST_PARTS} bytes;"
                " send fewer of them at once",
                field=path[-1],
            )
    return made


def form_payload(body: bytes) -> bytes:
    """Return the JSON in the field `payload` of a form.

    Raises:
        Unreadable: not a form.
        InvalidEvent: the field is missing, repeated, or larger than `LARGEST_FORM_PAYLOAD`.
    """
    values = [value for name, value in _form(body, _FIELDS_AT_MOST) if name == b"payload"]
    if len(values) != 1:
        raise InvalidEvent(f"payload is {'missing' if not values else 'repeated'}", field="payload")
    if len(values[0]) > LARGEST_FORM_PAYLOAD:
        raise InvalidEvent(
            f"payload has more than {LARGEST_FORM_PAYLOAD} bytes; send JSON, not a form", field="payload"
        )
    return values[0]


def form_fields(body: bytes, most: int = _FIELDS_AT_MOST) -> list[tuple[str, str]]:
    """Return the names and values of a form in their order.

    Raises:
        Unreadable: not UTF-8, or too many fields.
    """
    try:
        return [(name.decode(), value.decode()) for name, value in _form(body, most)]
    except UnicodeDecodeError:
        raise Unreadable("the form can't be read", field="body") from None


def body_value(
    body: bytes,
    content_type: str,
    parse: Callable[[bytes], object] = strict_json.parse,
) -> object:
    """Return the value that expressions read as the body: its JSON, or the fields of a form.

    Of a form with the field `payload` alone, it is the JSON in that field, as GitHub and Slack send it.

    Raises:
        Unreadable: not a form, or as `parse` raises.
    """
    if content_type.partition(";")[0].strip().lower() != FORM:
        return parse(body)
    fields = dict(form_fields(body, MOST_FORM_FIELDS))
    return parse(fields["payload"].encode()) if fields.keys() == {"payload"} else fields


def _form(body: bytes, most: int) -> Iterator[tuple[bytes, bytes]]:
    if body.count(b"&") >= most:
        raise Unreadable("the form can't be read", field="body")
    pairs = (field.partition(b"=") for field in body.split(b"&") if field)
    return ((_unquote(name), _unquote(value)) for name, _, value in pairs)


def _unquote(text: bytes) -> bytes:
    """Unquote a name or value in steps: the standard library makes an object for each `%XX` (28 times its size).

    Raises:
        Unreadable: it has more than `MOST_BARE` bare percent signs.
    """
    if b"%" not in text and b"+" not in text:
        return text
    unquoted, at, bare = io.BytesIO(), 0, 0
    while at < len(text):
        end = at + _STEP
        split = text.rfind(b"%", end - 2, end)  # a `%XX` that would be split
        end = end if split < 0 else split
        bare += len(_BARE.findall(text[at:end]))
        if bare > MOST_BARE:
            raise Unreadable("the form can't be read: it is not quoted", field="body")
        unquoted.write(unquote_to_bytes(text[at:end].replace(b"+", b" ")))
        at = end
    return unquoted.getvalue()


def text_field(payload: Payload, field: str, longest: int | None) -> str:
    """Return a field that must be a text of 1 to `longest` characters; numbers are rejected.

    Raises:
        InvalidEvent: it is missing, not a text, empty, too long, or not storable.
    """
    value = payload.get(field)
    if not isinstance(value, str):
        problem = "must be a text" if field in payload else "is missing"
        raise InvalidEvent(f"{field} {problem}", field=field)
    if not value:
        raise InvalidEvent(f"{field} must not be empty", field=field)
    if longest is not None and len(value) > longest:
        raise InvalidEvent(f"{field} must have at most {longest} characters", field=field)
    if not _is_storable(value):
        raise InvalidEvent(f"{field} must not hold NUL characters or halves of surrogate pairs", field=field)
    return value


def time_field(payload: Payload, field: str, received_at: datetime) -> int:
    """Return in nanoseconds a field that must be an RFC 3339 time with an offset, from 2000 to 24 hours after arrival.

    Raises:
        InvalidEvent: it is missing, invalid, or out of range.
    """
    text = text_field(payload, field, None)
    try:
        instant = timestamps.parse_rfc3339(text)
    except ValueError as error:
        raise InvalidEvent(f"{field} {error}", field=field) from None
    return _check_range(instant, field, received_at)


def dedup_part(payload: Payload, field: str) -> str:
    """Return a field as a part of the dedup key: a text unchanged, or a whole number in digits (5 equals "5").

    Raises:
        InvalidEvent: it is missing or invalid.
    """
    value = payload.get(field)
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if not isinstance(value, str):
        problem = "must be a text or a whole number" if field in payload else "is missing"
        raise InvalidEvent(f"{field} {problem}, and the source's dedup needs it", field=field)
    return text_field(payload, field, None)


def epoch_field(payload: Payload, field: str, received_at: datetime, *, per_second: int = 1) -> int:
    """Return a field that must be a number of seconds since 1970, or of units `per_second`; in nanoseconds.

    Raises:
        InvalidEvent: it is missing, invalid, or outside the range of `time_field`.
    """
    value = payload.get(field)
    if not isinstance(value, int | float) or isinstance(value, bool):
        problem = "must be a number" if field in payload else "is missing"
        raise InvalidEvent(f"{field} {problem}", field=field)
    if isinstance(value, float) and not math.isfinite(value):  # JMESPath's to_number reads the text `nan`
        raise InvalidEvent(f"{field} must be a number", field=field)
    whole = int(value // 1)
    unit = 1_000_000_000 // per_second
    return _check_range(whole * unit + int((value - whole) * unit), field, received_at)


def content_key(raw: RawRequest, content: bytes) -> tuple[str, ...]:
    """Return the key of an event without an id: its content, and the five-minute window of its arrival.

    Senders repeat a request within seconds, at most two minutes, so nearly all duplicates fall into the same window;
    one just after its end is delivered twice, which at-least-once allows. Without the time, the same content a day
    later would be taken for a duplicate and lost. The key begins with the time in fixed width, so that the index grows
    at its right edge.
    """
    received = timestamps.to_nanoseconds(raw.received_at)
    return timestamps.format_fixed_width(received - received % SAME_WITHIN_NS), hashlib.sha256(content).hexdigest()


def arrival(raw: RawRequest) -> int:
    """Return the time of arrival in nanoseconds, for providers that send no time."""
    return timestamps.to_nanoseconds(raw.received_at)


def header_field(raw: RawRequest, name: str, longest: int) -> str:
    """Return a required header in printable ASCII; `name` is in lower case.

    Raises:
        InvalidEvent: it is missing or invalid.
    """
    value = raw.headers.get(name, "")
    if not value:
        raise InvalidEvent(f"the header {name} is missing", field=name)
    if len(value) > longest or not value.isascii() or not value.isprintable():
        raise InvalidEvent(f"the header {name} must be printable ASCII of at most {longest} characters", field=name)
    return value


def printable(value: str) -> str:
    r"""Return a header's value for storage, in printable ASCII: other characters become `\xNN` or `\uNNNN`."""
    if value.isascii() and value.isprintable():
        return value
    escaped = value.encode("ascii", "backslashreplace").decode("ascii")
    return _CONTROL.sub(lambda character: f"\\x{ord(character[0]):02x}", escaped)


def classify_action(word: str) -> Action:
    """Return the action of a provider's word, ignoring case."""
    return _ACTIONS.get(word.casefold(), "other")


def member(payload: object, *path: str) -> object:
    """Return the value at `path` in nested objects; None if it is missing."""
    for name in path:
        payload = payload.get(name) if isinstance(payload, Mapping) else None
    return payload


def entity_id(value: object) -> str | None:
    """Return a storable id, with numbers in digits; None if there is none."""
    return _storable(str(value) if isinstance(value, int) and not isinstance(value, bool) else value, LONGEST_ID)


def entity_type(value: object) -> str | None:
    """Return a storable type; None if there is none."""
    return _storable(value, LONGEST_TYPE)


def _storable(value: object, longest: int) -> str | None:
    if not isinstance(value, str) or not value or len(value) > longest or not _is_storable(value):
        return None
    return value


def _is_storable(value: str) -> bool:
    if value.isascii():  # the usual case: two searches in C take a tenth of a regular expression's time
        return "\x00" not in value
    return _NOT_STORABLE.search(value) is None


def _check_range(instant: int, field: str, received_at: datetime) -> int:
    if instant < EARLIEST_NS:
        raise InvalidEvent(f"{field} must not be before 2000-01-01T00:00:00Z", field=field)
    if instant > timestamps.to_nanoseconds(received_at) + FARTHEST_AHEAD_NS:
        raise InvalidEvent(
            f"{field} must not be more than 24 hours in the future; check the sender's clock", field=field
        )
    return instant


# --- Readers shared by presets: of bodies with one event or a list, and of an event's entity.


Entity = tuple[str | None, str | None]
"""Type and id of an entity; both None if there is none."""

ReadOne = Callable[[RawRequest, Payload], Identity]
"""Reads one event from this object of the request. Without `key_parts`, the event id is the key."""


def entity(kind: object, identifier: object) -> Entity:
    """Return the type and id of an entity; both None if either is missing or can't be stored."""
    of, named = entity_type(kind), entity_id(identifier)
    return (of, named) if of is not None and named is not None else (None, None)


def first_entity(found: Iterable[tuple[object, object]]) -> Entity:
    """Return the first storable pair of type and id."""
    return next((each for each in starmap(entity, found) if each[0] is not None), (None, None))


def object_field(payload: Payload, field: str) -> Payload:
    """Return a field that must be an object.

    Raises:
        InvalidEvent: it is missing, or not an object.
    """
    value = payload.get(field)
    if not isinstance(value, Mapping):
        raise InvalidEvent(f"{field} must be an object", field=field)
    return value


def list_events(raw: RawRequest, *path: str) -> Iterator[tuple[Payload, bytes | None]]:
    """Yield each event of the list at `path` and the body reduced to that event, or None if it is the only one.

    Raises:
        Unreadable: the body is not strict JSON.
        InvalidEvent: the list is missing, empty or too long, or has an element that is not an object.
    """
    where = ".".join(path) or "body"
    parsed = strict_json.parse(raw.body)
    events = member(parsed, *path)
    if not isinstance(events, list) or not events:
        raise InvalidEvent(f"{where} must be a list of events", field=where)
    if len(events) > MOST_EVENTS:
        raise InvalidEvent(f"{where} may have at most {MOST_EVENTS} events", field=where)
    parts = split_body(raw.body, *path) if len(events) > 1 else [None]
    for event, part in zip(events, parts, strict=True):
        if not isinstance(event, Mapping):
            raise InvalidEvent(f"{where} must be a list of objects", field=where)
        yield event, part


def with_key(identity: Identity, payload: Payload, dedup: Dedup, part: bytes | None = None) -> Identity:
    """Return the identity with its key, made of the payload fields in `dedup`, or else the provider's own.

    Raises:
        InvalidEvent: as `dedup_part`.
    """
    if dedup is not None:
        parts = tuple(dedup_part(payload, field) for field in dedup)
        return msgspec.structs.replace(identity, key_parts=parts, key_has_time=False, part=part)
    return msgspec.structs.replace(identity, key_parts=identity.key_parts or (identity.event_id or "",), part=part)


def make_object_reader(read_one: ReadOne, inner: str = "") -> Read:
    """Make the `read` of a preset whose bodies hold one event; the fields of a source's `dedup` are in its object `inner`.

    In forms, the field `payload` has the JSON.
    """

    def read(raw: RawRequest, dedup: Dedup) -> tuple[Identity, ...]:
        """Return the event of a body: see `Read`."""
        payload = json_object(form_payload(raw.body) if raw.content_type == FORM else raw.body)
        identity = read_one(raw, payload)
        return (with_key(identity, object_field(payload, inner) if inner else payload, dedup),)

    return read


def make_list_reader(read_one: ReadOne, *path: str, inner: str = "") -> Read:
    """Make the `read` of a preset whose bodies have a list of events at `path`; without a path, the body is the list."""

    def read(raw: RawRequest, dedup: Dedup) -> tuple[Identity, ...]:
        """Return the events of a body: see `Read`."""
        return tuple(
            with_key(read_one(raw, event), object_field(event, inner) if inner else event, dedup, part)
            for event, part in list_events(raw, *path)
        )

    return read
