"""Strict JSON parser: bytes have one reading, or are rejected.

Parsers disagree on duplicate keys, `NaN`, lone surrogates and huge numbers, so a body with any of them means one thing
here and another downstream. The receiver rejects them, and everything that would make a parser fail late.
"""

from __future__ import annotations

import codecs
import json
import math
import re
from collections.abc import Callable
from decimal import Decimal
from typing import Any, TypeVar

from inbox.errors import InvalidEvent, Unreadable

Number = TypeVar("Number", int, float)

DEEPEST = 64
"""Levels of nesting in values from outside, on both sides: webhooks, entities, results of a map's functions.

Parsers, and functions that walk through their values, recurse. The depth at which they raise RecursionError depends on
the version of Python and on the caller's stack, so the limit is far below it.
"""

MOST_MARKS = 150_000
"""Largest number of brackets, commas and colons outside strings; it limits the values in a body.

Python lets no other thread run while it parses lists and strings, and each member of an object takes up to 250 bytes of
memory. Without a limit, 25 MiB of small lists stopped a worker for 5 s and took 1.5 GiB. The largest known webhook is a
GitHub push of 2,048 commits, its maximum (https://docs.github.com/en/webhooks/webhook-events-and-payloads#push). It has
about 82,000, without the paths that it lists.
"""

LARGEST_TEXT = 30 * 1024 * 1024
"""Bytes of memory for the text of a body. Each character takes as many as the widest one: 1, 2 or 4 (PEP 393).

The limit admits 30 MiB of ASCII, or 7.8 M characters with a single emoji among them. No preset takes more than 25 MiB.
"""

# Text without half of a surrogate pair, matched in steps: a search in C keeps all other threads waiting.
_WHOLE_CHARACTERS = re.compile(
    rb"(?:[^\\]++|\\(?:[^u]|u(?![dD][89a-fA-F])|u[dD][89abAB]..\\u[dD][c-fC-F]..)){1,10000}+", re.DOTALL
)
_ROUND = bytes.maketrans(b"[{]}", b"(())")
_ALL_BUT_MARKS = bytes(set(range(256)) - set(b"[{]},:"))
_ROUGHLY = (b"[", b"{", b",", b":", b'"')
_CONTINUATION = bytes(range(0x80, 0xC0))
_ASTRAL = tuple(bytes([first]) for first in range(0xF0, 0xF5))
_STEP = 1024 * 1024
_SPACE = " \t\n\r"


def parse(body: bytes) -> object:
    """Parse the value in `body`.

    Raises:
        Unreadable: empty, not UTF-8, a byte order mark, not JSON, anything after the value, control characters in a
            string, NaN or Infinity, a number that `integer` or `real` rejects, a lone surrogate, a duplicate key in one
            object, or nesting beyond `DEEPEST`.
        InvalidEvent: it has more than `MOST_MARKS`, or its text takes more than `LARGEST_TEXT`.

    Nothing else is raised, whatever the bytes.
    """
    if not body:
        raise Unreadable("the body is empty; send a JSON document")
    if body.startswith(codecs.BOM_UTF8):
        raise Unreadable("the body begins with a byte order mark; send UTF-8 without one")
    _check_size(body)
    if is_too_deep(body):
        raise Unreadable(f"the body is nested deeper than {DEEPEST} levels, or its brackets do not match")
    try:
        value = _value(body.decode("utf-8"))
    except json.JSONDecodeError as error:
        raise Unreadable(f"the body is not JSON: {error}") from None
    except UnicodeDecodeError as error:
        raise Unreadable(f"the body is not UTF-8: {error.reason} at byte {error.start}") from None
    if b"\\u" in body and (b"\\ud" in body or b"\\uD" in body) and _has_half_a_pair(body):
        raise Unreadable("a text in the body holds half of a surrogate pair")
    return value


def _value(text: str) -> object:
    """Parse the value, as `JSONDecoder.decode` does, whose two regular expressions cost as much as a small body."""
    value: object
    value, end = _DECODER.raw_decode(text, len(text) - len(text.lstrip(_SPACE)))
    if end < len(text.rstrip(_SPACE)):
        raise json.JSONDecodeError("Extra data", text, len(text) - len(text[end:].lstrip(_SPACE)))
    return value


def is_too_deep(body: bytes) -> bool:
    """Return whether JSON is nested deeper than `DEEPEST`, or its brackets don't match."""
    # Two counts cost a fraction of a microsecond, and hardly any webhook has more brackets than allowed levels.
    if body.count(b"[") + body.count(b"{") <= DEEPEST:
        return False
    # Remove the innermost pairs of brackets once for each level; what remains is deeper. All of it runs in C.
    brackets = _marks(body).translate(_ROUND, b",:")
    for _ in range(DEEPEST):
        if not brackets:
            return False
        brackets = brackets.replace(b"()", b"")
    return bool(brackets)


def has_more_marks(body: bytes, most: int) -> bool:
    """Return whether JSON has more than `most` brackets, commas and colons outside strings."""
    # Two cheap checks are enough for nearly all bodies.
    if len(body) <= most or sum(body.count(mark) for mark in _ROUGHLY) <= most:
        return False
    # In valid JSON each string but one stands beside a mark. Invalid JSON must not cost more.
    if _remove_escaped_quotes(body).count(b'"') // 2 > most + 1:
        return True
    marks = _marks(body)
    return len(marks) - marks.count(b"]") - marks.count(b"}") > most


def has_too_many_marks(body: bytes) -> bool:
    """Return whether `parse` rejects the number of values in `body`.

    Any other decoder that makes objects of a stranger's body asks this first: of 25 MiB it may make nine million.
    """
    return has_more_marks(body, MOST_MARKS)


def _check_size(body: bytes) -> None:
    if has_too_many_marks(body):
        raise InvalidEvent(
            f"the body has more than {MOST_MARKS:,} brackets, commas and colons; send fewer values at once",
            field="body",
        )
    if 4 * len(body) > LARGEST_TEXT and _width(body) * _characters(body) > LARGEST_TEXT:
        raise InvalidEvent(
            f"the body has too many characters: of those beyond ASCII up to U+FFFF, {LARGEST_TEXT // 2:,} would do, and of"
            f" others {LARGEST_TEXT // 4:,}; send less at once",
            field="body",
        )


def _remove_escaped_quotes(body: bytes) -> bytes:
    """Remove every escaped quote, so that each remaining quote begins or ends a string."""
    return body.replace(b"\\\\", b"").replace(b'\\"', b"") if b"\\" in body else body


def _marks(body: bytes) -> bytes:
    """Extract the brackets, commas and colons outside strings."""
    return b"".join(_outside(body)).translate(None, _ALL_BUT_MARKS)


def _outside(body: bytes) -> list[bytes]:
    """Return the parts of the body between its strings."""
    return _remove_escaped_quotes(body).split(b'"')[::2]


def _width(body: bytes) -> int:
    """Return the bytes for each character, in the text or in one of its strings, whichever is wider."""
    if any(first in body for first in (*_ASTRAL, b"\\ud", b"\\uD")):
        return 4
    return 1 if body.isascii() and b"\\u" not in body else 2


def _characters(body: bytes) -> int:
    steps = (body[at : at + _STEP] for at in range(0, len(body), _STEP))
    return sum(len(step.translate(None, _CONTINUATION)) for step in steps)


def _has_half_a_pair(body: bytes) -> bool:
    """Return whether valid JSON has an escaped surrogate without its other half; UTF-8 itself has none."""
    at = 0
    while found := _WHOLE_CHARACTERS.match(body, at):
        at = found.end()
    return at < len(body)


def _unique_members(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) != len(pairs):
        raise Unreadable("an object in the body has the same key twice")
    return members


# --- Numbers: at most `LONGEST_NUMBER` characters long, with a magnitude that a 64-bit float holds.
#
# Beyond that, parsers disagree: one reads infinity or zero, another the exact number, and a third fails with its own error when
# the number is used.


LONGEST_NUMBER = 1000
"""Characters. Reading a number is quadratic in its length, and Python itself refuses more than 4,300 digits."""

_TOO_LONG = f"has more than {LONGEST_NUMBER} characters"
_NOT_ZERO = re.compile("[^eE]*[1-9]")
"""A digit other than 0 before the exponent."""

_AS_DIGITS = bytes.maketrans(b"0123456789+-.eE", b"000000000000000")
_LONG = b"0" * (LONGEST_NUMBER + 1)


def integer(text: str) -> int:
    """Parse a whole number.

    Raises:
        ValueError: it is too long; the message continues the words `a number`.
    """
    if len(text) > LONGEST_NUMBER:
        raise ValueError(_TOO_LONG)
    return int(text)


def real(text: str) -> float:
    """Parse a number with a fraction or an exponent to the nearest float.

    Raises:
        ValueError: it is too long, too large, or rounds to 0; the message continues the words `a number`.
    """
    if len(text) > LONGEST_NUMBER:
        raise ValueError(_TOO_LONG)
    number = float(text)
    if not math.isfinite(number):
        raise ValueError("is too large for a 64-bit float")
    if number == 0 and _NOT_ZERO.match(text):
        raise ValueError("is too small for a 64-bit float")
    return number


def exact(text: str) -> float | Decimal:
    """Parse a number as `real` does, but to a Decimal where the float would differ.

    Raises:
        ValueError: as `real`. Its bounds keep the exponent far from where Decimal raises ArithmeticError.
    """
    number = real(text)
    if number == 0:
        return number  # an exponent behind a 0 has no bounds
    decimal = Decimal(text)
    return number if Decimal(repr(number)) == decimal else decimal


def may_be_too_long(body: bytes) -> bool:
    """Return whether so many characters of numbers stand in a row, perhaps in a string. It takes two passes in C."""
    return _LONG in body.translate(_AS_DIGITS)


def has_too_long_number(body: bytes) -> bool:
    """Return whether JSON has a number that is longer than `LONGEST_NUMBER`."""
    return may_be_too_long(body) and may_be_too_long(b'""'.join(_outside(body)))


def _number(read: Callable[[str], Number]) -> Callable[[str], Number]:
    def number(text: str) -> Number:
        try:
            return read(text)
        except ValueError as error:
            raise Unreadable(f"a number in the body {error}") from None

    return number


def _constant(text: str) -> object:
    raise Unreadable(f"the body holds {text}, which is not JSON")


_DECODER = json.JSONDecoder(
    object_pairs_hook=_unique_members,
    parse_int=_number(integer),
    parse_float=_number(real),
    parse_constant=_constant,
)
