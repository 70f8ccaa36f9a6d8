"""JMESPath expressions over a request, and the entity that a source reads by them instead of its preset. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import jmespath
import msgspec
from jmespath.exceptions import JMESPathError
from jmespath.parser import ParsedResult

from inbox.config.sources import EntityFields
from inbox.errors import InvalidEvent, Unreadable
from inbox.events.event import Identity, RawRequest
from inbox.sources.base import Preset, Read
from inbox.sources.fields import FORM, LONGEST_TYPE, body_value, entity, entity_type

_READ_FROM_THE_FIRST = frozenset(
    {"subexpression", "index_expression", "pipe", "projection", "value_projection", "filter_projection"}
)
"""Nodes whose other parts read from the value of their first part."""


def compile_expression(name: str, expression: str) -> ParsedResult:
    """Compile an expression.

    Raises:
        ValueError: it is not a JMESPath. The message names it.
    """
    try:
        return jmespath.compile(expression)
    except (JMESPathError, RecursionError) as error:
        raise ValueError(f"{name}: {expression!r} is not a JMESPath: {error}") from None


def evaluate(name: str, compiled: ParsedResult, scope: Mapping[str, Any]) -> object:
    """Return the value of an expression.

    Raises:
        InvalidEvent: it can't be evaluated, for example because a function gets a value of the wrong type.
    """
    try:
        value: object = compiled.search(scope)
    except (
        JMESPathError,
        ArithmeticError,
        RecursionError,
        TypeError,
        ValueError,
    ):  # such as an overflow in floor(1e999)
        raise InvalidEvent(f"{name} can't be evaluated on this request", field=name) from None
    return value


def names_read(node: Mapping[str, Any], within: str | None = None) -> Iterator[str]:
    """Yield the top-level names of the scope that an expression reads, or the names that it reads from `within`.

    For `event.a.b` these are `event`, and `a` within `event`. Parts after a dot or in a projection read other values.
    """
    kind, children = node["type"], node.get("children", [])
    if kind == "field":
        if within is None:
            yield node["value"]
    elif within is not None and kind in {"subexpression", "pipe"} and children[0].get("value") == within:
        yield from names_read(children[1])
    elif kind in _READ_FROM_THE_FIRST:
        yield from names_read(children[0], within)
    elif kind != "expref":
        for child in children:
            yield from names_read(child, within)


# --- The key `entity` of a source


def find_entity_mistakes(fields: EntityFields, preset: Preset) -> Iterator[tuple[str, str]]:
    """Yield each wrong key of `entity`, with the reason."""
    if "event" in preset.own_keys:
        yield "id", "is for other presets; here, set event.entity_type and event.entity_id"
    elif preset.media_types and preset.media_types.isdisjoint({"application/json", FORM}):
        yield "id", f"has nothing to read: the bodies of {preset.title} are neither JSON nor forms"
    if entity_type(fields.type) is None:
        yield "type", f"must be a text of 1 to {LONGEST_TYPE} characters"
    in_body = f"write 'body.{fields.id.lstrip('$.')}'"
    if fields.id.startswith("$"):
        yield "id", f"{fields.id!r} is a JSONPath, and this takes a JMESPath; {in_body}"
        return
    try:
        names = {*names_read(compile_expression("id", fields.id).parsed)}
    except ValueError as error:
        yield "id", str(error).removeprefix("id: ")
        return
    if names != {"body"}:
        yield "id", f"{fields.id!r} must read from body alone; {in_body}"


def read_entity(fields: EntityFields, read: Read) -> Read:
    """Make a `read` that finds the entity of each event by the key `entity` of its source.

    An event without a usable id there has no entity. Its action is kept if the preset names the same type: otherwise it
    is about another object, and becomes `other`.
    """
    compiled = compile_expression("id", fields.id)

    def find(raw: RawRequest, identity: Identity) -> Identity:
        body, content_type = raw.body, identity.part_type or raw.headers.get("content-type", "")
        try:
            value = body_value(body if identity.part is None else identity.part, content_type)
            kind, named = entity(fields.type, evaluate("entity.id", compiled, {"body": value}))
        except (Unreadable, InvalidEvent):
            kind = named = None
        action = identity.action if identity.entity_type == fields.type else "other"
        return msgspec.structs.replace(identity, entity_type=kind, entity_id=named, action=action)

    return lambda raw, dedup: tuple(find(raw, identity) for identity in read(raw, dedup))
