"""Bodies of events for people: as JSON on several lines, as text, or in hex. Pure."""

from __future__ import annotations

import re
from typing import Literal

import msgspec

MOST_SHOWN = 256 * 1024
"""Bytes of a body that are shown."""
MOST_HEX = 16 * 1024
"""Bytes that are shown in hex, where each takes four characters."""
_DEEPEST = 60
"""A body that is nested deeper is not put on several lines: each would begin with as many spaces, so it would grow without end."""
_LONGEST_PRETTY = 4 * MOST_SHOWN
_ROW = 16


class BodyView(msgspec.Struct, frozen=True):
    """A body, or its beginning, as text."""

    form: Literal["pretty", "raw", "hex"]
    text: str
    shown_bytes: int
    is_cut: bool


def view_of(body: bytes, form: Literal["pretty", "raw", "hex"]) -> BodyView:
    """Show a body. One that can't be shown as wanted is shown in the next form: JSON, text, hex.

    A number keeps its digits, a name that occurs twice stays twice, and text keeps its line breaks.
    """
    if form == "pretty" and len(body) <= MOST_SHOWN:
        pretty = _pretty(body)
        if pretty is not None:
            return BodyView("pretty", pretty, len(body), is_cut=False)
    if form != "hex":
        part = body[:MOST_SHOWN]
        is_cut = len(part) < len(body)
        try:
            return BodyView("raw", _decoded(part, is_cut=is_cut), len(part), is_cut)
        except UnicodeDecodeError:
            pass
    part = body[:MOST_HEX]
    return BodyView("hex", _hex(part), len(part), len(part) < len(body))


def _decoded(part: bytes, *, is_cut: bool) -> str:
    try:
        return part.decode()
    except UnicodeDecodeError as error:
        if is_cut and error.end == len(part) and len(part) - error.start < 4:  # noqa: PLR2004  # a character was cut
            return part[: error.start].decode()
        raise


def _pretty(body: bytes) -> str | None:
    depth = deepest = 0
    for mark in re.finditer(rb"[\[\]{}]", body):  # those in strings count as well, which does no harm
        depth += 1 if mark[0] in b"[{" else -1
        deepest = max(deepest, depth)
    if deepest > _DEEPEST:
        return None
    try:
        pretty = msgspec.json.format(body, indent=2).decode()
    except (ValueError, RecursionError):  # neither JSON nor UTF-8
        return None
    return pretty if len(pretty) <= _LONGEST_PRETTY else None


def _hex(part: bytes) -> str:
    return "\n".join(
        f"{at:08x}  {part[at : at + _ROW].hex(' '):<47}  "
        + "".join(chr(byte) if 0x20 <= byte < 0x7F else "." for byte in part[at : at + _ROW])  # noqa: PLR2004  # ASCII
        for at in range(0, len(part), _ROW)
    )
