"""Paths into a payload, and the keys that a path names. Pure.

A path names no value. Keys that may identify somebody, or that are data themselves, become `*`.
"""

from __future__ import annotations

import re
from collections.abc import Set as AbstractSet

Path = tuple[str, ...]
"""Keys from the root on; `ITEM` stands for the items of an array, `ANY_KEY` for keys that are folded."""

ROOT: Path = ()
ITEM = "[]"
ANY_KEY = "*"
LONGEST_KEY = 100
_SHORTEST_TOKEN = 16
_DIGITS_OF_AN_ID = 4
_PART_OF_AN_ID = 3
"""A key with so many digits is an id when they are this part of it."""

_PLAIN = re.compile(rf"[@$#]?[\w$#:/.+-]{{1,{LONGEST_KEY}}}")
_SIMPLE = re.compile(r"[@$#]?[\w$#:/+-]+")
_HEX = re.compile(rf"[0-9A-Fa-f-]{{{_SHORTEST_TOKEN},}}")
_SEGMENT = re.compile(r'\.(\*|[^].[*"]+)|\["([^"]+)"\]|(\[\])')


def is_field_name(key: str) -> bool:
    """Return whether a key is a name that a programmer gave.

    Other keys are data: numbers, dates, addresses, ids, tokens and sentences.
    """
    if _PLAIN.fullmatch(key) is None or _HEX.fullmatch(key):
        return False
    digits = sum(map(str.isdigit, key))
    if digits == len(key):
        return False
    return digits < _DIGITS_OF_AN_ID or digits * _PART_OF_AN_ID < len(key)


def path_text(path: Path) -> str:
    """Write a path as JSONPath does: `$.items[].sku`."""
    return "$" + "".join(map(_segment_text, path))


def _segment_text(segment: str) -> str:
    if segment == ITEM:
        return ITEM
    return f".{segment}" if segment == ANY_KEY or _SIMPLE.fullmatch(segment) else f'["{segment}"]'


def parse_path(text: str) -> Path | None:
    """Parse what `path_text` wrote; None: it is no such path, as erasure has overwritten it."""
    if not text.startswith("$"):
        return None
    segments, at = [], 1
    while at < len(text):
        found = _SEGMENT.match(text, at)
        if found is None:
            return None
        segments.append(found[1] or found[2] or found[3])
        at = found.end()
    return tuple(segments)


def fold(path: Path, maps: AbstractSet[Path]) -> Path:
    """Replace the keys of objects in `maps` by `ANY_KEY`; paths in `maps` are folded themselves."""
    folded = ROOT
    for segment in path:
        is_key_of_map = segment != ITEM and folded in maps
        folded += (ANY_KEY if is_key_of_map else segment,)
    return folded
