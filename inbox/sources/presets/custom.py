"""The preset `custom`, for any other provider: the configuration describes its signature and the fields of its events.

`[sources.NAME.signature]` has the same data as a preset; `[sources.NAME.event]` has JMESPath expressions over `body`
(the JSON), `headers` (names in lower case) and, if `items` names a list of events, `item`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jmespath
import msgspec

from inbox.config.sources import EventFields, NoAuth, Source
from inbox.errors import InvalidEvent
from inbox.events import strict_json
from inbox.events.event import Identity, RawRequest
from inbox.sources.base import Preset, Read
from inbox.sources.expressions import compile_expression, evaluate
from inbox.sources.fields import (
    LONGEST_ID,
    LONGEST_TYPE,
    MOST_EVENTS,
    arrival,
    content_key,
    dedup_part,
    epoch_field,
    printable,
    text_field,
    time_field,
)

_EXPRESSIONS = ("type", "id", "entity_type", "entity_id", "time", "items")
_HEADERS = {"type": "field", "children": [], "value": "headers"}
_NEVER = frozenset({"authorization", "cookie", "proxy-authorization"})
_PER_SECOND = {"s": 1, "ms": 1000}


def reader(source: Source) -> Read:
    """Make the reader of `source`.

    Raises:
        ValueError: an expression can't be compiled. The message names it.
    """
    return _Reader(source.event or EventFields(type="body.type")).read


class _Reader:
    """Reads requests with the expressions of one source."""

    def __init__(self, fields: EventFields) -> None:
        self._fields = fields
        self._compiled = {
            name: compile_expression(name, expression)
            for name in _EXPRESSIONS
            if (expression := getattr(fields, name)) is not None
        }
        self._of_item = {
            name for name, each in self._compiled.items() if name != "items" and _reads(each.parsed, "item")
        }

    def read(self, raw: RawRequest, dedup: Sequence[str] | None) -> tuple[Identity, ...]:
        """Return the events of a request: see `Read`."""
        headers = {name: printable(value) for name, value in raw.headers.items()}  # as they are stored
        scope: dict[str, Any] = {"body": strict_json.parse(raw.body), "headers": headers, "item": None}
        # Values shared by all items are evaluated once: doing it for each of a thousand items would delay other
        # requests.
        shared = {
            name: evaluate(name, each, scope)
            for name, each in self._compiled.items()
            if name not in self._of_item and name != "items"
        }
        if dedup is None and self._fields.id is None:
            # Even an item's key is made from the whole body, as only the surrounding body may distinguish two items.
            shared["key"] = content_key(raw, raw.body)
        if "items" not in self._compiled:
            return (self._event(raw, scope, None, dedup, shared),)
        items = evaluate("items", self._compiled["items"], scope)
        if not isinstance(items, list) or len(items) > MOST_EVENTS:
            raise InvalidEvent(f"items must give a list of at most {MOST_EVENTS} events", field="items")
        return _made_distinct(
            [self._event(raw, {**scope, "item": item}, msgspec.json.encode(item), dedup, shared) for item in items]
        )

    def _event(
        self,
        raw: RawRequest,
        scope: Mapping[str, Any],
        part: bytes | None,
        dedup: Sequence[str] | None,
        shared: Mapping[str, Any],
    ) -> Identity:
        found = {**shared, **{name: evaluate(name, self._compiled[name], scope) for name in self._of_item}}
        event_type = _text(found, "type", LONGEST_TYPE)
        event_id = _text(found, "id", LONGEST_ID) if self._fields.id is not None else None
        has_entity = found.get("entity_id") is not None and found.get("entity_type") is not None
        if dedup is not None:
            own = scope["body"] if part is None else scope["item"]
            key_parts = tuple(dedup_part(own if isinstance(own, Mapping) else {}, field) for field in dedup)
        else:
            key_parts = (event_id,) if event_id else shared["key"]
        return Identity(
            entity_type=_text(found, "entity_type", LONGEST_TYPE) if has_entity else None,
            entity_id=_text(found, "entity_id", LONGEST_ID) if has_entity else None,
            event_type=event_type,
            action=self._fields.actions.get(event_type, "other"),
            occurred_ns=_time(self._fields, found, raw),
            key_parts=key_parts,
            event_id=event_id,
            part=part,
        )


def _made_distinct(identities: Sequence[Identity]) -> tuple[Identity, ...]:
    """Add the position to the keys of items with equal keys and different contents, which are different events."""
    seen: dict[tuple[str, ...], bytes | None] = {}
    distinct = []
    for place, identity in enumerate(identities):
        if seen.setdefault(identity.key_parts, identity.part) == identity.part:
            distinct.append(identity)
        else:
            distinct.append(msgspec.structs.replace(identity, key_parts=(*identity.key_parts, str(place))))
    return tuple(distinct)


def keeps(source: Source) -> frozenset[str]:
    """Return the headers that the expressions read, which are needed to readmit a rejected request."""
    fields = source.event or EventFields(type="body.type")
    found = {
        name
        for key in _EXPRESSIONS
        if (expression := getattr(fields, key)) is not None
        for name in _headers_in(jmespath.compile(expression).parsed)
    }
    return frozenset(found - _NEVER)


def _headers_in(node: Mapping[str, Any]) -> Iterator[str]:
    children = node["children"]
    if node["type"] == "subexpression" and children[0] == _HEADERS and children[1]["type"] == "field":
        yield children[1]["value"].lower()
    for child in children:
        if isinstance(child, dict) and "children" in child:
            yield from _headers_in(child)


def _reads(node: Mapping[str, Any], name: str) -> bool:
    """Return whether an expression may read this name; a member of the same name causes a harmless True."""
    return node.get("value") == name or any(_reads(each, name) for each in node["children"] if isinstance(each, dict))


def _text(found: Mapping[str, object], name: str, longest: int) -> str:
    """Return a text, or the digits of a whole number."""
    value = found.get(name)
    if isinstance(value, int) and not isinstance(value, bool):
        return text_field({name: str(value)}, name, longest)
    return text_field({} if value is None else found, name, longest)


def _time(fields: EventFields, found: Mapping[str, object], raw: RawRequest) -> int:
    if fields.time is None:
        return arrival(raw)
    if fields.time_unit == "rfc3339":
        return time_field(found, "time", raw.received_at)
    return epoch_field(found, "time", raw.received_at, per_second=_PER_SECOND[fields.time_unit])


PRESET = Preset(
    title="Any other provider",
    shown_at="where the provider shows it, beside the URL of the webhook",
    read=reader(Source(preset="custom", auth=NoAuth())),
    reader=reader,
    reads_by="event",
    keeps=keeps,
    own_keys=frozenset({"event", "signature"}),
    needs=frozenset({"event"}),
    starter="""\
secrets = ["env:{variable}"]
[sources.custom.signature]
header = "X-Signature"
prefix = "sha256="
[sources.custom.event]  # JMESPath over body and headers
id = "body.id"
type = "body.type"
entity_type = "'ORDER'"
entity_id = "body.order.id"
actions = { "order.created" = "create", "order.updated" = "update", "order.deleted" = "delete" }""",
)
