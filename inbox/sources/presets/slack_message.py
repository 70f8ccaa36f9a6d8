"""Messages for Slack's incoming webhooks, from programs that can report changes only to a chat.

`{"text": …, "attachments": […], "blocks": […]}` as JSON, or formerly as the field `payload` of a form. A source's
`pattern`, a regular expression, finds the entity in the message's text by its group `id` and the optional groups `type`
and `event_type`. A message without a match becomes an event without an entity, of the type `message`. RE2 runs the
pattern in time proportional to the text; Python's `re` could take forever and block the receiver.

Slack responds with `200 ok`. Senders check only the status, so our 200 with JSON works too; a Slack library that
reports the response body will report the JSON.

**Duplicates.** A message has no id and no time. Its bytes can't be the key: the same text an hour later means another
change. Nor can its time of arrival: a sender that got no response sends again. So the key is the message's SHA-256 with
the five-minute window of its arrival (`inbox/sources/fields.py:content_key`). If the sender sets `Idempotency-Key` or
`Webhook-Id`, that is the key.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from typing import TypeAlias, cast

import re2

from inbox.config.sources import NoAuth, Source
from inbox.errors import InvalidEvent
from inbox.events.event import Identity, RawRequest
from inbox.sources import fields
from inbox.sources.base import Preset, Read, json_sample

NAME = "slack-message"
SEARCHED = 256 * 1024
"""Characters of a message searched by the pattern. Slack truncates texts after 40,000."""
WITHOUT_ENTITY = "message"
"""Event type of messages that name no entity."""

Pattern: TypeAlias = "re2._Regexp[str]"  # noqa: SLF001  # it has no other name, and takes no type argument when it is run
"""A pattern, ready to search."""

_GROUPS = ("id", "type", "event_type")
_NAMED = re.compile(r"\(\?P?<([a-z_]+)>")
_CONTENT = ("text", "attachments", "blocks")
_TEXTS = frozenset({"text", "fallback", "pretext", "title", "title_link", "value", "url", "footer"})
"""Members of attachments and blocks, at any depth, that hold a text or link."""
_KEY_HEADERS = ("idempotency-key", "webhook-id")


def compile_pattern(pattern: str | None, entity_type: str | None) -> Pattern | None:
    """Compile a source's pattern; None if it has none.

    Raises:
        ValueError: RE2 rejects the expression, its groups are wrong, or the entity type is missing.
    """
    if pattern is None:
        if entity_type is not None:
            raise ValueError("is missing, and entity_type has no effect without it")
        return None
    options = re2.Options()
    options.log_errors = False
    try:
        found = re2.compile(pattern, options)
    except re2.error as error:
        raise ValueError(
            f"is not a regular expression of RE2, which has no look-around and no back-references: {_reason(error)}"
        ) from None
    unknown = sorted(set(found.groupindex) - set(_GROUPS))
    if unknown:
        raise ValueError(f"has a group {unknown[0]!r}; the supported groups are {', '.join(_GROUPS)}")
    if "id" not in found.groupindex:
        raise ValueError("needs a group (?P<id>…) that finds the entity's id")
    names = _NAMED.findall(pattern)
    if len(names) > len(set(names)):  # only one of them would be read
        raise ValueError("has a group twice; write (?P<id>…) once, with its surroundings as alternatives")
    if "type" not in found.groupindex and entity_type is None:
        raise ValueError("needs a group (?P<type>…), or an entity_type beside it")
    return found


def _reason(error: re2.error) -> str:
    (reason,) = error.args
    return reason.decode("utf-8", "replace") if isinstance(reason, bytes) else str(reason)


def reader(source: Source) -> Read:
    """Make the reader of `source`.

    Raises:
        ValueError: as `compile_pattern`.
    """
    pattern = compile_pattern(source.pattern, source.entity_type)

    def read_one(raw: RawRequest, message: fields.Payload) -> Identity:
        if not any(name in message for name in _CONTENT):
            raise InvalidEvent("text is missing, and so are attachments and blocks", field="text")
        kind, identifier, event_type = _entity(pattern, message, source.entity_type) or (None, None, WITHOUT_ENTITY)
        return Identity(
            kind, identifier, event_type, fields.classify_action(event_type), fields.arrival(raw), _key(raw)
        )

    return fields.make_object_reader(read_one)


def texts(message: fields.Payload) -> Iterator[str]:
    """Yield all text of a message in reading order: its own, then that of attachments and blocks."""
    text = message.get("text")
    if isinstance(text, str):
        yield _unescape(text)
    for content in ("attachments", "blocks"):
        yield from _inside(message.get(content))


def _inside(value: object) -> Iterator[str]:
    """Yield the texts inside a value, recursively; strict JSON is nested at most 64 levels deep."""
    if isinstance(value, list):
        for item in value:
            yield from _inside(item)
    elif isinstance(value, dict):
        for name, inner in value.items():
            if isinstance(inner, str):
                if name in _TEXTS:
                    yield _unescape(inner)
            else:
                yield from _inside(inner)


def _unescape(text: str) -> str:
    return text.replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&")


def _searchable_text(message: fields.Payload) -> str:
    parts, length = [], 0
    for text in texts(message):
        parts.append(text)
        length += len(text) + 1
        if length > SEARCHED:
            break
    return "\n".join(parts)[: SEARCHED + 1]


def _entity(pattern: Pattern | None, message: fields.Payload, entity_type: str | None) -> tuple[str, str, str] | None:
    """Return the type, the id and the event type; None if the message names no storable entity."""
    text = _searchable_text(message)
    match = None if pattern is None else pattern.search(text[:SEARCHED])
    if match is None or match.end() == SEARCHED < len(text):  # a truncated id would be another entity's
        return None
    found = match.groupdict()
    kind, identifier = found.get("type") or entity_type, found["id"]
    event_type = found.get("event_type") or WITHOUT_ENTITY
    stored = fields.entity_type(kind), fields.entity_id(identifier), fields.entity_type(event_type)
    return None if None in stored else cast("tuple[str, str, str]", stored)


def _key(raw: RawRequest) -> tuple[str, ...]:
    """Return the key set by the sender, or one made from the content."""
    for name in _KEY_HEADERS:
        if given := raw.headers.get(name):
            # as stored, so that rereading the request gives the same key
            return (name, hashlib.sha256(fields.printable(given).encode()).hexdigest())
    return fields.content_key(raw, raw.body)


PRESET = Preset(
    title="Slack-compatible messages",
    shown_at="a text of your own, which ends the URL that the sender posts to",
    read=reader(Source(preset=NAME, auth=NoAuth())),
    reader=reader,
    reads_by="pattern",
    sample=json_sample({"text": "{type} {kind} {id}"}),
    own_keys=frozenset({"pattern", "entity_type"}),
    media_types=frozenset({"application/json", fields.FORM}),
    kept_headers=frozenset(_KEY_HEADERS),
    starter='''\
auth = { kind = "url_token", secrets = ["env:{variable}"] }
pattern = '(?P<id>[A-Z]+-[0-9]+)'  # finds the entity in the text, such as SHOP-42
entity_type = "TICKET"''',
)
