"""Text from outside, made safe to look at: nothing in it moves a cursor, hides, turns other text round or begins a line.

Escaped is everything that `str.isprintable` leaves out: controls (C0, DEL, C1), format characters such as those that
turn the direction of text, line and paragraph separators, spaces other than the usual one, halves of surrogate pairs,
private and unassigned characters. Escaped as well is what is printable by its category and shows nothing.
"""

from __future__ import annotations

import re

INVISIBLE = frozenset(
    "\u034f\u115f\u1160\u17b4\u17b5\u180b\u180c\u180d\u180f\u3164\uffa0"
    + "".join(map(chr, (*range(0xFE00, 0xFE0F), *range(0xE0100, 0xE01F0))))
)
"""`Default_Ignorable_Code_Point`, as far as it is printable; but not U+FE0F, which makes a symbol of ours an emoji.

https://www.unicode.org/Public/UCD/latest/ucd/DerivedCoreProperties.txt
"""


_KEPT = 0x800
"""The escapes of the characters below are kept; those of all of Unicode would be too much for a process that runs long."""


class _Shown(dict[int, str]):
    """By code point, how a character is shown; for `str.translate`, which asks for each."""

    def __missing__(self, code: int) -> str:
        character = chr(code)
        hidden = character in INVISIBLE or not character.isprintable()
        shown = character.encode("unicode_escape").decode() if hidden else character
        if code < _KEPT:
            self[code] = shown
        return shown


_SHOWN = _Shown()
_VALUE = _Shown({ord("\\"): "\\\\"})


def visible(value: str) -> str:
    r"""A value on one line; what could not be seen is escaped as Python does: `\n`, `\x1b`, `\u202e`.

    A backslash is doubled, so two values that differ never look the same.
    """
    return value.translate(_VALUE)


def visible_line(text: str) -> str:
    """A text of ours with values in it, on one line. Backslashes stay as they are."""
    return text.translate(_SHOWN)


def visible_text(text: str, indent: str = "  ") -> str:
    """A text of ours with values in it. Its further lines are indented: no value can forge a line of its own."""
    return f"\n{indent}".join(map(visible_line, text.split("\n")))


def visible_json(document: str) -> str:
    r"""JSON with the same values, in which each character that could not be seen stands as `\u202e` does.

    Such characters can only stand in strings. The line breaks between elements stay.
    """
    return _JSON_HIDDEN.sub(_json_escape, document)


_JSON_HIDDEN = re.compile(r"[^\n -~]")


def _json_escape(found: re.Match[str]) -> str:
    character = found[0]
    if character.translate(_SHOWN) == character:
        return character
    units = character.encode("utf-16-be", "surrogatepass")
    return "".join(f"\\u{units[at : at + 2].hex()}" for at in range(0, len(units), 2))
