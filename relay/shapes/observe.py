"""Reads the structure of one body: its paths, and the JSON types at each. It keeps no value. Pure."""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Mapping
from itertools import islice
from typing import Literal, get_args
from urllib.parse import parse_qsl

import msgspec

from relay.shapes.paths import ANY_KEY, ITEM, ROOT, Path, is_field_name

JsonType = Literal["object", "array", "string", "number", "boolean", "null", "text"]
"""Type of a value; `text`: the body is no JSON and no form."""
JSON_TYPES: tuple[JsonType, ...] = get_args(JsonType)

MOST_BYTES = 64 * 1024
"""Bytes of a body that are read."""
MOST_NODES = 2_000
"""Values of a body that are looked at, those near the root first."""
MOST_ITEMS = 50
"""Items of an array that are looked at."""
MOST_KEYS = 100
"""Keys of one object; with more of them, all are data."""
DEEPEST = 12
"""Segments of a path; what lies deeper is not looked at."""

_LEAST_OF_AN_ID = 6
_FORM = "application/x-www-form-urlencoded"
_MARK = re.compile(rb'"(?:[^"\\]|\\.)*+"?|[\[\]{},]', re.DOTALL)
_CLOSING = {b"{": b"}", b"[": b"]"}
_Open = tuple[bytes, "_Open | None"]
"""Brackets that are open, the innermost first: a linked list, as one is kept for the last comma."""
_NOTHING_OPEN: _Open = (b"", None)
_TYPES: Mapping[type, JsonType] = {
    dict: "object",
    list: "array",
    str: "string",
    int: "number",
    float: "number",
    bool: "boolean",
    type(None): "null",
}


class Observation(msgspec.Struct, frozen=True):
    """The structure of one body."""

    types: Mapping[Path, frozenset[JsonType]]
    """Types at each path."""
    maps: frozenset[Path] = frozenset()
    """Objects with more than `MOST_KEYS` keys."""
    is_whole: bool = True
    """All of it was looked at, so that a path that it lacks is missing."""


def observe(body: bytes, content_type: str, *, size: int | None = None, entity_id: str | None = None) -> Observation:
    """Read the structure of a body. Nothing is raised, whatever the bytes.

    Args:
        body: the body, or its first `MOST_BYTES`.
        content_type: its media type; forms are read as objects of strings.
        size: bytes of the whole body, if `body` is a part.
        entity_id: the id of the event's entity; a key that has it is folded.

    Returns:
        Its structure. Of a part that can't be read it is empty.
    """
    is_part = size is not None and size > len(body)
    try:
        value = msgspec.json.decode(_completed(body) if is_part else body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        is_form = content_type.partition(";")[0].strip().lower() == _FORM
        form = _form(body.rpartition(b"&")[0] if is_part else body) if is_form else None
        if form is None:
            return Observation({} if is_part else {ROOT: frozenset({"text"})}, is_whole=not is_part)
        value = form
    seen = _walk(value, entity_id)
    return Observation(seen.types, seen.maps, seen.is_whole and not is_part)


def _form(body: bytes) -> object | None:
    try:
        return dict(parse_qsl(body.decode(), keep_blank_values=True, max_num_fields=MOST_NODES))
    except ValueError:  # no UTF-8, or too many fields
        return None


def _walk(value: object, entity_id: str | None) -> Observation:
    types: dict[Path, set[JsonType]] = {}
    maps: set[Path] = set()
    todo: deque[tuple[Path, object]] = deque([(ROOT, value)])
    nodes = 0
    while todo and nodes < MOST_NODES:
        path, found = todo.popleft()
        nodes += 1
        types.setdefault(path, set()).add(_TYPES[type(found)])
        if len(path) == DEEPEST:
            continue
        if isinstance(found, dict):
            is_map = len(found) > MOST_KEYS
            if is_map:
                maps.add(path)
            for key, each in islice(found.items(), MOST_KEYS):
                is_name = not is_map and is_field_name(key) and not _names(key, entity_id)
                todo.append(((*path, key if is_name else ANY_KEY), each))
        elif isinstance(found, list):
            todo.extend(((*path, ITEM), each) for each in islice(found, MOST_ITEMS))
    return Observation({path: frozenset(of) for path, of in types.items()}, frozenset(maps), is_whole=not todo)


def _names(key: str, entity_id: str | None) -> bool:
    """Return whether a key is or has the id; one of a few characters may be a part of any word."""
    return entity_id is not None and (key == entity_id or (len(entity_id) >= _LEAST_OF_AN_ID and entity_id in key))


def _completed(part: bytes) -> bytes:
    """Cut the beginning of a JSON text behind its last whole member, and close what is open."""
    last, opened = 0, _NOTHING_OPEN
    open_at_last = opened
    for mark in _MARK.finditer(part):
        sign = mark[0]
        if sign[:1] == b'"':
            if len(sign) == 1 or sign[-1:] != b'"':  # a string without an end
                break
        elif sign == b",":
            last, open_at_last = mark.start(), opened
        elif sign in _CLOSING:
            opened = (_CLOSING[sign], opened)
        else:
            opened = opened[1] or _NOTHING_OPEN
    return part[:last] + _closing(open_at_last)


def _closing(opened: _Open) -> bytes:
    closing = []
    rest: _Open | None = opened
    while rest is not None:
        closing.append(rest[0])
        rest = rest[1]
    return b"".join(closing)
