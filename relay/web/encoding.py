"""JSON of answers."""

from __future__ import annotations

from datetime import datetime
from decimal import Decimal
from typing import Any

import msgspec

_encoder = msgspec.json.Encoder(enc_hook=str, decimal_format="number")


def encode(answer: object) -> bytes:
    r"""Encode an answer. Figures that Postgres has as numeric are numbers; half a surrogate pair becomes `\ud800`.

    SQLite stores such a half as an escape in JSON, and UTF-8 has no form for it: one row must not take its list away.
    """
    try:
        return _encoder.encode(answer)
    except UnicodeEncodeError:
        plain = msgspec.to_builtins(answer, enc_hook=str, builtin_types=(datetime, Decimal))
        return _encoder.encode(_encodable(plain))


def _encodable(value: Any) -> Any:  # noqa: ANN401  # any JSON value
    if isinstance(value, str):
        return encodable_text(value)
    if isinstance(value, dict):
        return {_encodable(name): _encodable(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [_encodable(each) for each in value]
    return value


def encodable_text(text: str) -> str:
    """Return a text with each half of a surrogate pair as an escape."""
    return text if text.isascii() else text.encode("utf-8", "backslashreplace").decode()
