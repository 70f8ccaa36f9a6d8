"""Escape outside text, so that it can't move the cursor, hide, reverse other text or begin a line.

It escapes everything that `str.isprintable` excludes: controls (C0, DEL, C1), format characters such as direction
marks, line and paragraph separators, spaces other than U+0020, lone surrogates, and private and unassigned characters.
It also escapes characters that count as printable but show nothing.
"""

from __future__ import annotations

import re

INVISIBLE = frozenset(
    "\u034f\u115f\u1160\u17b4\u17b5\u180b\u180c\u180d\u180f\u3164\uffa0"
    + "".join(map(chr, (*range(0xFE00, 0xFE0F), *range(0xE0100, 0xE01F0))))
)
"""Printable characters of `Default_Ignorable_Code_Point`, except U+FE0F, which turns one of our symbols into an emoji.

https://www.unicode.org/Public/UCD/latest/ucd/DerivedCoreProperties.txt
"""


_KEPT = 0x800
"""Code point below which escapes are cached; all of Unicode would take too much memory in a long-running process."""


class _Shown(dict[int, str]):
    """Displayed text of each code point, for `str.translate`."""

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
    r"""Escape a value on one line; invisible characters become Python's escapes: `\n`, `\x1b`, `\u202e`.

    Backslashes are doubled, so different values never look the same.
    """
    return value.translate(_VALUE)


def visible_line(text: str) -> str:
    """Escape our own text, which may contain untrusted values, onto one line. Backslashes stay as they are."""
    return text.translate(_SHOWN)


def visible_text(text: str, indent: str = "  ") -> str:
    """Escape our own text with outside values in it. Further lines are indented, so that no value can forge a line."""
    return f"\n{indent}".join(map(visible_line, text.split("\n")))


def visible_json(document: str) -> str:
    r"""Escape each invisible character in JSON as `\u202e` and the like, which keeps the values the same.

    Such characters occur only in strings. The line breaks between elements stay.
    """
    return _JSON_HIDDEN.sub(_json_escape, document)


_JSON_HIDDEN = re.compile(r"[^\n -~]")


def _json_escape(found: re.Match[str]) -> str:
    character = found[0]
    if character.translate(_SHOWN) == character:
        return character
    units = character.encode("utf-16-be", "surrogatepass")
    return "".join(f"\\u{units[at : at + 2].hex()}" for at in range(0, len(units), 2))
