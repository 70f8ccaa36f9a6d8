"""Differences between two values of JSON, field by field. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import zip_longest

import msgspec

LONGEST = 200
"""Maximum characters of a field's name or value."""
_ABSENT = object()
_encoder = msgspec.json.Encoder(decimal_format="number", order="sorted")


class FieldDifference(msgspec.Struct, frozen=True):
    """A field whose value differs."""

    field: str
    """JSON pointer (RFC 6901), such as `/items/0/price`; empty for the whole value."""
    before: str | None
    """The JSON of the value, or its beginning; None if the field is absent."""
    after: str | None


def list_differences(before: object, after: object, field: str = "") -> Iterator[FieldDifference]:
    """Yield the fields that differ between two values. Members of objects and items of lists are compared one by one."""
    if isinstance(before, dict) and isinstance(after, dict):
        for name in {**before, **after}:
            pointer = f"{field}/{str(name).replace('~', '~0').replace('/', '~1')}"
            yield from list_differences(before.get(name, _ABSENT), after.get(name, _ABSENT), pointer)
    elif isinstance(before, list) and isinstance(after, list):
        for number, values in enumerate(zip_longest(before, after, fillvalue=_ABSENT)):
            yield from list_differences(*values, f"{field}/{number}")
    elif (was := _format(before)) != (becomes := _format(after)):
        yield FieldDifference(str(_cut(field)), _cut(was), _cut(becomes))


def _format(value: object) -> str | None:
    return None if value is _ABSENT else _encoder.encode(value).decode()


def _cut(text: str | None) -> str | None:
    return text if text is None or len(text) <= LONGEST else f"{text[: LONGEST - 1]}…"
