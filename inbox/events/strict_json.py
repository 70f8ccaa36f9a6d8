"""Strict JSON: one reading of the bytes, or none.

Parsers disagree on duplicate keys, `NaN`, lone surrogates and huge numbers, so a body with any of them means one thing
here and another downstream. They are refused at the door instead, together with what would make a parser fail late.
"""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Callable
from typing import Any, TypeVar

from inbox.errors import InvalidEvent, Unreadable
from inbox.events import numbers

Number = TypeVar("Number", int, float)

DEEPEST = 64
"""Levels of nesting, in what comes from outside on both sides: webhooks, entities, what a function of a map returns.

Parsers and what walks through their values recurse. At which depth they raise RecursionError depends on the version of
Python and on the stack of whoever calls them, so none gets as far.
"""

MOST_MARKS = 150_000
"""Brackets, commas and colons, besides those in strings: so many values make a body, at most.

While it parses lists and strings, Python lets no other thread run, and each member of an object takes up to 250 bytes of
memory: without a limit, 25 MiB of small lists stopped a worker for 5 s and took 1.5 GiB. The largest webhook known is GitHub's
push of 2,048 commits, the most that one has (https://docs.github.com/en/webhooks/webhook-events-and-payloads#push), with
some 82,000 besides the paths that it lists.
"""

LARGEST_TEXT = 30 * 1024 * 1024
"""Bytes that the text of a body may take in memory. Each of its characters takes as many as the widest: 1, 2 or 4 (PEP 393).

So 30 MiB of ASCII would do, or 7.8 M characters with a single emoji among them. No preset takes more than 25 MiB.
"""

# Text that holds no half of a surrogate pair, in steps: a search in C keeps all other threads waiting.
_WHOLE_CHARACTERS = re.compile(
    rb"(?:[^\\]++|\\(?:[^u]|u(?![dD][89a-fA-F])|u[dD][89abAB]..\\u[dD][c-fC-F]..)){1,10000}+", re.DOTALL
)
_ROUND = bytes.maketrans(b"[{]}", b"(())")
_ALL_BUT_MARKS = bytes(set(range(256)) - set(b"[{]},:"))
_ROUGHLY = (b"[", b"{", b",", b":", b'"')
_CONTINUATION = bytes(range(0x80, 0xC0))
_ASTRAL = tuple(bytes([first]) for first in range(0xF0, 0xF5))
_STEP = 1024 * 1024


def parse(body: bytes) -> object:
    """The value that `body` holds.

    Raises:
        Unreadable: empty, not UTF-8, a byte order mark, not JSON, anything behind the value, control characters in a
            string, NaN or Infinity, a number that `inbox.events.numbers` refuses, a lone surrogate, a key twice in one object, or
            nesting beyond `DEEPEST`.
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
        value: object = _DECODER.decode(body.decode("utf-8"))
    except json.JSONDecodeError as error:
        raise Unreadable(f"the body is not JSON: {error}") from None
    except UnicodeDecodeError as error:
        raise Unreadable(f"the body is not UTF-8: {error.reason} at byte {error.start}") from None
    if (b"\\ud" in body or b"\\uD" in body) and _has_half_a_pair(body):
        raise Unreadable("a text in the body holds half of a surrogate pair")
    return value


def is_too_deep(body: bytes) -> bool:
    """Whether JSON is nested deeper than `DEEPEST`, or its brackets don't match."""
    # Two counts cost a fraction of a microsecond, and hardly any webhook has more brackets than it may have levels.
    if body.count(b"[") + body.count(b"{") <= DEEPEST:
        return False
    # Take away the innermost pair of brackets so many times: what is left lies deeper. All of it runs in C.
    brackets = _marks(body).translate(_ROUND, b",:")
    for _ in range(DEEPEST):
        if not brackets:
            return False
        brackets = brackets.replace(b"()", b"")
    return bool(brackets)


def has_more_marks(body: bytes, most: int) -> bool:
    """True when JSON has more brackets, commas and colons than `most`, besides those in strings."""
    # Two looks that cost little, and are enough for nearly all.
    if len(body) <= most or sum(body.count(mark) for mark in _ROUGHLY) <= most:
        return False
    # In valid JSON each string but one stands beside a mark. What is no JSON must not cost more.
    if _unescaped(body).count(b'"') // 2 > most + 1:
        return True
    marks = _marks(body)
    return len(marks) - marks.count(b"]") - marks.count(b"}") > most


def _check_size(body: bytes) -> None:
    if has_more_marks(body, MOST_MARKS):
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


def _unescaped(body: bytes) -> bytes:
    """The body with every escaped quote taken away, so that each quote that is left begins or ends a string."""
    return body.replace(b"\\\\", b"").replace(b'\\"', b"") if b"\\" in body else body


def _marks(body: bytes) -> bytes:
    """Its brackets, commas and colons that are not in strings."""
    return b"".join(_outside(body)).translate(None, _ALL_BUT_MARKS)


def _outside(body: bytes) -> list[bytes]:
    """The parts of the body between its strings."""
    return _unescaped(body).split(b'"')[::2]


def _width(body: bytes) -> int:
    """Bytes for each of the characters, in the text or in a string of it, whichever takes more."""
    if any(first in body for first in (*_ASTRAL, b"\\ud", b"\\uD")):
        return 4
    return 1 if body.isascii() and b"\\u" not in body else 2


def _characters(body: bytes) -> int:
    steps = (body[at : at + _STEP] for at in range(0, len(body), _STEP))
    return sum(len(step.translate(None, _CONTINUATION)) for step in steps)


def _has_half_a_pair(body: bytes) -> bool:
    """True when valid JSON has an escaped surrogate that is not half of a pair: UTF-8 has none."""
    at = 0
    while found := _WHOLE_CHARACTERS.match(body, at):
        at = found.end()
    return at < len(body)


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) != len(pairs):
        raise Unreadable("an object in the body has the same key twice")
    return members


def has_too_long_number(body: bytes) -> bool:
    """True when JSON holds a number that is longer than `numbers.LONGEST`."""
    return numbers.may_be_too_long(body) and numbers.may_be_too_long(b'""'.join(_outside(body)))


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
    object_pairs_hook=_without_repeats,
    parse_int=_number(numbers.integer),
    parse_float=_number(numbers.real),
    parse_constant=_constant,
)
