"""The filter language of the identity service's lists, after SCIM (RFC 7644 section 3.4.2.2).

A filter is `attribute operator value`, joined by `and` (binds tighter) and `or`, grouped by parentheses. Operators are
eq, ne, co, sw, ew, gt, ge, lt, le and pr, which takes no value. An attribute is a dotted path (`meta.lastModified`);
through a list it means any item (`emails.address`). A value is a JSON string, number, true, false or null. Names and
values are compared with their case.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import msgspec

from inbox.events.timestamps import parse_rfc3339

_TOKEN = re.compile(r'\s*(?:(?P<mark>[()])|(?P<string>"(?:[^"\\]|\\.)*")|(?P<word>[^\s()"]+))')
_MAX_DEPTH = 32
_ORDER: dict[str, Callable[[Any, Any], bool]] = {
    "gt": operator.gt,
    "ge": operator.ge,
    "lt": operator.lt,
    "le": operator.le,
}
_TEXT: dict[str, Callable[[str, str], bool]] = {
    "co": operator.contains,
    "sw": str.startswith,
    "ew": str.endswith,
}


class InvalidFilterError(ValueError):
    """The text is no filter; the message says why."""


def parse_filter(text: str) -> Callable[[Mapping[str, Any]], bool]:
    """A function that says whether a document passes the filter.

    Raises:
        InvalidFilterError: the text is no filter.
    """
    parser = _Parser(_tokens(text))
    accepts = parser.either(0)
    if parser.peek() is not None:
        raise InvalidFilterError(f"unexpected {parser.peek()} after the end of the filter")
    return accepts


def _tokens(text: str) -> list[str]:
    found: list[str] = []
    position = 0
    text = text.rstrip()
    while position < len(text):
        match = _TOKEN.match(text, position)
        if match is None:
            raise InvalidFilterError(f"unreadable at position {position}")
        found.append(match[0].lstrip())
        position = match.end()
    return found


class _Parser:
    """Recursive descent, one method per level of binding."""

    def __init__(self, tokens: list[str]) -> None:
        self._tokens = tokens
        self._position = 0

    def peek(self) -> str | None:
        return self._tokens[self._position] if self._position < len(self._tokens) else None

    def _take(self, what: str) -> str:
        token = self.peek()
        if token is None:
            raise InvalidFilterError(f"ends where {what} was expected")
        self._position += 1
        return token

    def _take_word(self, word: str) -> bool:
        token = self.peek()
        if token is None or token.lower() != word:
            return False
        self._position += 1
        return True

    def either(self, depth: int) -> Callable[[Mapping[str, Any]], bool]:
        choices = [self._both(depth)]
        while self._take_word("or"):
            choices.append(self._both(depth))
        return choices[0] if len(choices) == 1 else lambda document: any(accepts(document) for accepts in choices)

    def _both(self, depth: int) -> Callable[[Mapping[str, Any]], bool]:
        parts = [self._one(depth)]
        while self._take_word("and"):
            parts.append(self._one(depth))
        return parts[0] if len(parts) == 1 else lambda document: all(accepts(document) for accepts in parts)

    def _one(self, depth: int) -> Callable[[Mapping[str, Any]], bool]:
        if depth > _MAX_DEPTH:
            raise InvalidFilterError(f"nested deeper than {_MAX_DEPTH}")
        token = self._take("an attribute")
        if token == "(":  # noqa: S105 - a token of the language
            inner = self.either(depth + 1)
            if self._take("a closing parenthesis") != ")":
                raise InvalidFilterError("a closing parenthesis is missing")
            return inner
        if token.startswith((")", '"')):
            raise InvalidFilterError(f"unexpected {token} where an attribute was expected")
        name = self._take("an operator").lower()
        path = tuple(token.split("."))
        if name == "pr":
            return _Present(path)
        if name not in {"eq", "ne", *_ORDER, *_TEXT}:
            raise InvalidFilterError(f"unknown operator {name}")
        value = _value(self._take("a value"))
        if name in _TEXT and not isinstance(value, str):
            raise InvalidFilterError(f"{name} takes a string")
        return _Comparison(path, name, value)


def _value(token: str) -> object:
    try:
        return msgspec.json.decode(token)
    except (msgspec.DecodeError, ValueError):
        raise InvalidFilterError(f"{token} is no value; strings stand in double quotes") from None


@dataclass(frozen=True, slots=True)
class _Present:
    path: tuple[str, ...]

    def __call__(self, document: Mapping[str, Any]) -> bool:
        return any(found != "" for found in _found(document, self.path))


@dataclass(frozen=True, slots=True)
class _Comparison:
    path: tuple[str, ...]
    name: str
    value: object

    def __call__(self, document: Mapping[str, Any]) -> bool:
        found = _found(document, self.path)
        if self.name == "eq":
            return self._equal(found)
        if self.name == "ne":
            return not self._equal(found)
        return any(self._matches(item) for item in found)

    def _equal(self, found: list[object]) -> bool:
        if self.value is None:
            return not found
        mine = _comparable(self.value)
        return any(_comparable(item) == mine for item in found)

    def _matches(self, item: object) -> bool:
        if self.name in _TEXT:
            return isinstance(item, str) and isinstance(self.value, str) and _TEXT[self.name](item, self.value)
        theirs, mine = _comparable(item), _comparable(self.value)
        return theirs[0] == mine[0] and _ORDER[self.name](theirs[1], mine[1])


def _found(value: object, path: tuple[str, ...]) -> list[object]:
    """Every value at the path that is not null; the items of a list count one by one."""
    if value is None:
        return []
    if isinstance(value, list):
        return [found for item in value for found in _found(item, path)]
    if not path:
        return [value]
    return _found(value.get(path[0]), path[1:]) if isinstance(value, dict) else []


def _comparable(value: object) -> tuple[str, Any]:
    """The value with its sort. Timestamps are compared as instants: as text, `05.708Z` would come before `05Z`."""
    if isinstance(value, bool):
        return "boolean", value
    if isinstance(value, (int, float)):
        return "number", value
    if isinstance(value, str):
        try:
            return "instant", parse_rfc3339(value)
        except ValueError:
            return "text", value
    return "other", repr(value)
