"""Strict JSON parser, which rejects ambiguous documents.

Parsers disagree on duplicate keys, `NaN`, lone surrogates and huge numbers, so a body with any of them could mean
something else downstream. The receiver rejects these, and everything that would make a parser fail later.
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
"""Maximum nesting of outside values: webhooks, entities, results of a map's functions.

Parsers, and functions that walk through values, recurse. The depth at which they raise RecursionError depends on the
Python version and the caller's stack, so the limit is far below it.
"""

MOST_MARKS = 150_000
"""Maximum number of brackets, commas and colons outside strings, which limits the values in a body.

Python runs no other thread while it parses lists and strings, and each member of an object takes up to 250 bytes of
memory. Without a limit, 25 MiB of small lists blocked a worker for 5 s and took 1.5 GiB. The largest known webhook is a
GitHub push with the maximum of 2,048 commits (https://docs.github.com/en/webhooks/webhook-events-and-payloads#push):
about 82,000, without the listed paths.
"""

LARGEST_TEXT = 30 * 1024 * 1024
"""Maximum bytes of memory for a body's text. Each character takes as many as the widest one: 1, 2 or 4 (PEP 393).

The limit admits 30 MiB of ASCII, or 7.8 M characters including an emoji. No preset takes more than 25 MiB.
"""

# Text without lone surrogates, matched in steps, as a search in C blocks all other threads.
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
        Unreadable: empty, not UTF-8, a byte order mark, not JSON, text after the value, control characters in a string,
        NaN or Infinity, a number that `integer` or `real` rejects, a lone surrogate, a duplicate key in an object, or
        nesting beyond `DEEPEST`.
        InvalidEvent: it has more than `MOST_MARKS`, or its text takes more than `LARGEST_TEXT`.

    Nothing else is ever raised.
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
    """Parse the value like `JSONDecoder.decode`, without its regular expressions, which cost as much as a small body."""
    value: object
    value, end = _DECODER.raw_decode(text, len(text) - len(text.lstrip(_SPACE)))
    if end < len(text.rstrip(_SPACE)):
        raise json.JSONDecodeError("Extra data", text, len(text) - len(text[end:].lstrip(_SPACE)))
    return value


def is_too_deep(body: bytes) -> bool:
    """Return whether JSON is nested deeper than `DEEPEST`, or its brackets don't match."""
    # Two counts take a fraction of a microsecond, and few webhooks have more brackets than allowed levels.
    if body.count(b"[") + body.count(b"{") <= DEEPEST:
        return False
    # Remove the innermost pairs of brackets once for each level; any that remain are too deep. All of it runs in C.
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
    # In valid JSON all strings but one are next to a mark. Invalid JSON must not cost more.
    if _remove_escaped_quotes(body).count(b'"') // 2 > most + 1:
        return True
    marks = _marks(body)
    return len(marks) - marks.count(b"]") - marks.count(b"}") > most


def has_too_many_marks(body: bytes) -> bool:
    """Return whether `body` has too many values for `parse`.

    Call it before any other decoder of unauthenticated bodies: 25 MiB may hold nine million objects.
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
    """Remove escaped quotes, so that each remaining quote begins or ends a string."""
    return body.replace(b"\\\\", b"").replace(b'\\"', b"") if b"\\" in body else body


def _marks(body: bytes) -> bytes:
    """Extract the brackets, commas and colons outside strings."""
    return b"".join(_outside(body)).translate(None, _ALL_BUT_MARKS)


def _outside(body: bytes) -> list[bytes]:
    """Return the parts of the body between its strings."""
    return _remove_escaped_quotes(body).split(b'"')[::2]


def _width(body: bytes) -> int:
    """Return the bytes per character of the text or its widest string."""
    if any(first in body for first in (*_ASTRAL, b"\\ud", b"\\uD")):
        return 4
    return 1 if body.isascii() and b"\\u" not in body else 2


def _characters(body: bytes) -> int:
    steps = (body[at : at + _STEP] for at in range(0, len(body), _STEP))
    return sum(len(step.translate(None, _CONTINUATION)) for step in steps)


def _has_half_a_pair(body: bytes) -> bool:
    """Return whether valid JSON has an escaped lone surrogate; UTF-8 itself has none."""
    at = 0
    while found := _WHOLE_CHARACTERS.match(body, at):
        at = found.end()
    return at < len(body)


def _unique_members(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) != len(pairs):
        raise Unreadable("an object in the body has the same key twice")
    return members


# --- Numbers: at most `LONGEST_NUMBER` characters long, and within the range of a 64-bit float.
#
# Beyond that, parsers disagree: some read infinity or zero, some the exact number, and some fail when the number is used.


LONGEST_NUMBER = 1000
"""Maximum characters of a number. Parsing is quadratic in the length, and Python refuses more than 4,300 digits."""

_TOO_LONG = f"has more than {LONGEST_NUMBER} characters"
_NOT_ZERO = re.compile("[^eE]*[1-9]")
"""Pattern of a digit other than 0 before the exponent."""

_AS_DIGITS = bytes.maketrans(b"0123456789+-.eE", b"000000000000000")
_LONG = b"0" * (LONGEST_NUMBER + 1)


def integer(text: str) -> int:
    """Parse a whole number.

    Raises:
        ValueError: it is too long; the message follows the words `a number`.
    """
    if len(text) > LONGEST_NUMBER:
        raise ValueError(_TOO_LONG)
    return int(text)


def real(text: str) -> float:
    """Parse a number with a fraction or an exponent to the nearest float.

    Raises:
        ValueError: it is too long, too large, or rounds to 0; the message follows the words `a number`.
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
    """Parse a number like `real`, but return a Decimal if the float would differ.

    Raises:
        ValueError: as `real`, whose bounds exclude exponents for which Decimal raises ArithmeticError.
    """
    number = real(text)
    if number == 0:
        return number  # the exponent of a zero is unbounded
    decimal = Decimal(text)
    return number if Decimal(repr(number)) == decimal else decimal


def may_be_too_long(body: bytes) -> bool:
    """Return whether a run of number characters may be too long; it may also be in a string. Takes two passes in C."""
    return _LONG in body.translate(_AS_DIGITS)


def has_too_long_number(body: bytes) -> bool:
    """Return whether JSON has a number longer than `LONGEST_NUMBER`."""
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
