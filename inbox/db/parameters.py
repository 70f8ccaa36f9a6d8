"""Values of many rows as few bound parameters, and the texts that both databases can store."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any

import msgspec

from inbox.events.timestamps import time_text


def rows_param(rows: Iterable[Mapping[str, object]]) -> str:
    """Encode rows as the one bound parameter that `Sql.rows` unfolds; `json_param` says how."""
    return json_param([dict(row) for row in rows])


def json_param(value: object) -> str:
    """Encode a value as JSON for a bound parameter. Times are written by `time_text`, bytes in hex.

    Every text, keys too, becomes `storable`. One check covers the whole; only a bad text is taken apart.
    """
    written = _dumps(value)
    return written if is_clean_json(written) else _dumps(all_storable(value))


def verbatim_param(rows: Iterable[Mapping[str, object]]) -> str:
    """Encode rows as `rows_param` does, for texts that must be stored unchanged.

    Raises:
        ValueError: a text is not storable.
    """
    written = _dumps([dict(row) for row in rows])
    if not is_clean_json(written):
        raise ValueError("a text has a NUL or a lone surrogate")
    return written


def json_text(value: object) -> str:
    """Write a value as JSON that must be stored unchanged.

    Raises:
        ValueError: a text in it is not storable.
    """
    written = msgspec.json.encode(value).decode()
    if not is_clean_json(written):
        raise ValueError("a text has a NUL")
    return written


def require_storable(rows: Iterable[tuple[Any, ...]]) -> None:
    """Check the texts of rows, which must be stored unchanged.

    Raises:
        ValueError: a text is not storable.
    """
    if not is_storable("".join([value for row in rows for value in row if isinstance(value, str)])):
        raise ValueError("a text has a NUL or a lone surrogate")


def array_param(values: Sequence[str | bytes | int | datetime | None]) -> str:
    """Encode a column of a batch as the text of a Postgres array, for a `CAST(:values AS type[])`.

    It takes a third of the time that psycopg takes for a list: https://www.postgresql.org/docs/current/arrays.html#ARRAYS-IO
    """
    return "{" + ",".join(map(_element, values)) + "}"


def _element(value: str | bytes | int | datetime | None) -> str:
    if value is None:
        return "NULL"
    if isinstance(value, str):
        escaped = value.replace("\\", "\\\\").replace('"', '\\"')
        return f'"{escaped}"'
    if isinstance(value, datetime):
        return f'"{time_text(value)}"'
    if isinstance(value, bytes):
        return f'"\\\\x{value.hex()}"'
    return str(value)


class Blobs:
    """Bytes of many rows as one bound parameter beside the rows. As hex in the rows' JSON they took 48 times their memory.

    A row has their position and length in two columns; `Sql.blob` takes them from there.
    """

    def __init__(self) -> None:
        self._parts: list[bytes] = []
        self._size = 0

    def place(self, blob: bytes | None) -> tuple[int | None, int | None]:
        """Add a value. Returns the position of its first byte, counted from 1, and its length; None for none."""
        if blob is None:
            return None, None
        at = self._size + 1
        self._parts.append(blob)
        self._size += len(blob)
        return at, len(blob)

    def joined(self) -> bytes:
        """Join all values; a single one is not copied."""
        return b"".join(self._parts)


def is_clean_json(written: str) -> bool:
    """Return whether every text in this JSON is storable. It searches only where it may find something."""
    return is_storable(written) and not ("\\u0000" in written and _NUL_IN_JSON.search(written))


def _dumps(value: object) -> str:
    return json.dumps(value, default=_encode, ensure_ascii=False, separators=(",", ":"))


_NUL_IN_JSON = re.compile(r"(?<!\\)(?:\\\\)*\\u0000")
"""NUL as `json` writes it, without a backslash before it that changes its meaning."""


def storable(value: str) -> str:
    """Make a text storable in both databases: NUL and lone surrogates become Python's escapes.

    Postgres has no NUL in text or jsonb (postgresql.org/docs/current/datatype-character.html); no driver encodes a lone
    surrogate.
    """
    return value.replace("\x00", "\\x00").encode("utf-8", "backslashreplace").decode("utf-8")


def is_storable(value: str) -> bool:
    """Return whether `storable` would leave the text unchanged."""
    if "\x00" in value:
        return False
    try:
        return value.isascii() or bool(value.encode("utf-8"))
    except UnicodeEncodeError:
        return False


def all_storable(value: Any) -> Any:  # noqa: ANN401  # any JSON value, with times and bytes
    """Make every text of a value storable, keys too."""
    if isinstance(value, str):
        return storable(value)
    if isinstance(value, Mapping):
        return {storable(str(key)): all_storable(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [all_storable(item) for item in value]
    return value


def _encode(value: object) -> str:
    if isinstance(value, datetime):
        return time_text(value)
    if isinstance(value, bytes):
        return value.hex()
    raise TypeError(f"no column takes a {type(value).__name__}")
