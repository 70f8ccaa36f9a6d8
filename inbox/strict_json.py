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

from inbox import numbers
from inbox.errors import Unreadable

Number = TypeVar("Number", int, float)

DEEPEST = 64
"""Levels of nesting, in what comes from outside on both sides: webhooks, entities, what a function of a map returns.

Parsers and what walks through their values recurse. At which depth they raise RecursionError depends on the version of
Python and on the stack of whoever calls them, so none gets as far.
"""

# A string that never ends matches too, up to the end: without that, each of its quotes would start a search of its own.
_STRING = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+(?:"|\\?\Z)', re.DOTALL)
_ROUND = bytes.maketrans(b"[{]}", b"(())")
_ALL_BUT_BRACKETS = bytes(set(range(256)) - set(b"[{]}"))


def parse(body: bytes) -> object:
    """The value that `body` holds.

    Raises:
        Unreadable: empty, not UTF-8, a byte order mark, not JSON, anything behind the value, control characters in a
            string, NaN or Infinity, a number that `inbox.numbers` refuses, a lone surrogate, a key twice in one object, or
            nesting beyond `DEEPEST`. Nothing else is raised, whatever the bytes.
    """
    if not body:
        raise Unreadable("the body is empty; send a JSON document")
    if body.startswith(codecs.BOM_UTF8):
        raise Unreadable("the body begins with a byte order mark; send UTF-8 without one")
    if is_too_deep(body):
        raise Unreadable(f"the body is nested deeper than {DEEPEST} levels, or its brackets do not match")
    try:
        value: object = _DECODER.decode(body.decode("utf-8"))
        if (
            b"\\ud" in body or b"\\uD" in body
        ):  # an escaped surrogate: fine in pairs only, and UTF-8 refuses single ones
            json.dumps(value, ensure_ascii=False).encode("utf-8")
    except json.JSONDecodeError as error:
        raise Unreadable(f"the body is not JSON: {error}") from None
    except UnicodeDecodeError as error:
        raise Unreadable(f"the body is not UTF-8: {error.reason} at byte {error.start}") from None
    except UnicodeEncodeError:
        raise Unreadable("a text in the body holds half of a surrogate pair") from None
    return value


def is_too_deep(body: bytes) -> bool:
    """Whether JSON is nested deeper than `DEEPEST`, or its brackets don't match."""
    # Two counts cost a fraction of a microsecond, and hardly any webhook has more brackets than it may have levels.
    if body.count(b"[") + body.count(b"{") <= DEEPEST:
        return False
    # Take away the innermost pair of brackets so many times: what is left lies deeper. All of it runs in C.
    brackets = _STRING.sub(b"", body).translate(_ROUND, _ALL_BUT_BRACKETS)
    for _ in range(DEEPEST):
        if not brackets:
            return False
        brackets = brackets.replace(b"()", b"")
    return bool(brackets)


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) != len(pairs):
        raise Unreadable("an object in the body has the same key twice")
    return members


def has_too_long_number(body: bytes) -> bool:
    """True when JSON holds a number that is longer than `numbers.LONGEST`."""
    return numbers.may_be_too_long(body) and numbers.may_be_too_long(_STRING.sub(b'""', body))


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
