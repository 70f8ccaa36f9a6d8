"""Values as the two drivers give and take them, and the form between the two."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any, NoReturn

import msgspec

from inbox.db.copying.tables import Kind, Value, parsed_json
from inbox.db.dialect import POSTGRES
from inbox.db.parameters import all_storable, is_clean_json, is_storable, storable
from inbox.events.timestamps import as_time, time_text

Convert = Callable[[Any], Value]
"""Convert a driver's value that is not null. Raises ValueError: it is not of the column's kind."""


def selected(dialect: str, name: str, kind: Kind) -> str:
    """Return the expression that reads a column; JSON as text, so that its numbers keep all their digits."""
    return f"CAST({name} AS text)" if dialect == POSTGRES and kind == "json" else name


def for_sqlite(value: Value) -> object:
    """Convert a value to what SQLite's driver takes."""
    if isinstance(value, tuple):
        return json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    return value


def for_postgres(value: Value) -> object:
    """Convert a value to what a COPY in text form takes."""
    return list(value) if isinstance(value, tuple) else value


def _wrong(value: object, wanted: str) -> NoReturn:
    raise ValueError(f"is a {type(value).__name__}, not {wanted}")


def _text(value: object) -> str:
    if not isinstance(value, str):
        _wrong(value, "a text")
    return value if is_storable(value) else storable(value)


def _number(value: object) -> int:
    return value if isinstance(value, int) else _wrong(value, "a whole number")


def _flag(value: object) -> bool:
    return bool(value) if value in (0, 1) else _wrong(value, "0 or 1")


def _bytes(value: object) -> bytes:
    return value if isinstance(value, bytes) else _wrong(value, "bytes")


def _time(value: object) -> str:
    if isinstance(value, datetime):
        return time_text(value)
    if not isinstance(value, str):
        _wrong(value, "a time")
    moment = time_text(as_time(value))  # ValueError: no time
    return value if value == moment else moment


def _json(value: object) -> str:
    if not isinstance(value, str):
        _wrong(value, "JSON")
    if is_clean_json(value) and not _SURROGATE.search(value):
        return value
    parsed = parsed_json(value)
    kept = all_storable(parsed)
    return value if kept == parsed else _ENCODER.encode(kept).decode()


def _list_of_text(value: object) -> tuple[str, ...]:
    items = json.loads(value) if isinstance(value, str) else value
    if not isinstance(items, list) or not all(isinstance(item, str) and is_storable(item) for item in items):
        raise ValueError("is no list of texts")
    return tuple(items)


_ENCODER = msgspec.json.Encoder(decimal_format="number")
_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")
"""Escape of a surrogate; Postgres takes only pairs of them."""

READERS: Mapping[Kind, Convert] = {
    "text": _text,
    "number": _number,
    "flag": _flag,
    "time": _time,
    "json": _json,
    "list": _list_of_text,
    "bytes": _bytes,
}
"""Conversion of each kind of column from what either driver gives."""
