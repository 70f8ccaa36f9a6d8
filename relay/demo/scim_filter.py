"""The filter language of the identity service's lists: the part of SCIM's (RFC 7644 section 3.4.2.2) that clients use.

A filter is `attribute eq value`, `attribute ge value` or `attribute pr`, joined by `and` (binds tighter) and `or`,
grouped by parentheses. An attribute is a dotted path (`meta.lastModified`); through a list it means any item
(`emails.address`). A value is a JSON string, number, true or false. Names and values are compared with their case.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

import msgspec

from inbox.timestamps import parse_rfc3339

DocumentTest = Callable[[Mapping[str, Any]], bool]

_TOKEN = re.compile(r'\s*([()]|"(?:[^"\\]|\\.)*"|[^\s()"]+)')


class InvalidFilterError(ValueError):
    """The text is no filter; the message says why."""


def parse_filter(text: str) -> DocumentTest:
    """Compiles a filter to a function that tests a document.

    Raises:
        InvalidFilterError: the text is no filter, or has an operator of SCIM that is not offered here.
    """
    parser = _FilterParser(text)
    try:
        test = parser.joined()
    except RecursionError:
        raise InvalidFilterError("nested too deeply") from None
    if parser.tokens:
        raise InvalidFilterError(f"unexpected {parser.tokens[-1]} after the end of the filter")
    return test


class _FilterParser:
    """Recursive descent, one method per level of binding; `tokens` are those left, the next one last."""

    def __init__(self, text: str) -> None:
        self.tokens: list[str] = _TOKEN.findall(text)[::-1]
        if _TOKEN.sub("", text).strip():
            raise InvalidFilterError("a string has no end")

    def joined(self, word: str = "or") -> DocumentTest:
        part = self._one if word == "and" else lambda: self.joined("and")
        tests = [part()]
        while self._skip(word):
            tests.append(part())
        combine = any if word == "or" else all
        return tests[0] if len(tests) == 1 else lambda document: combine(test(document) for test in tests)

    def _one(self) -> DocumentTest:
        if self._skip("("):
            inner = self.joined()
            if not self._skip(")"):
                raise InvalidFilterError("a closing parenthesis is missing")
            return inner
        attribute = self._take("an attribute")
        if attribute[0] in '")':
            raise InvalidFilterError(f"unexpected {attribute} where an attribute was expected")
        path, operator = attribute.split("."), self._take("an operator").lower()
        if operator == "pr":
            return lambda document: any(found != "" for found in _found(document, path))
        if operator not in {"eq", "ge"}:
            raise InvalidFilterError(f"unknown operator {operator}; eq, ge and pr are known")
        value = _value(self._take("a value"))
        if operator == "ge":
            return _at_least(path, value)
        return lambda document: any(type(found) is type(value) and found == value for found in _found(document, path))

    def _take(self, expected: str) -> str:
        if not self.tokens:
            raise InvalidFilterError(f"ends where {expected} was expected")
        return self.tokens.pop()

    def _skip(self, token: str) -> bool:
        is_next = bool(self.tokens) and self.tokens[-1].lower() == token
        if is_next:
            self.tokens.pop()
        return is_next


def _value(token: str) -> object:
    try:
        return msgspec.json.decode(token)
    except (msgspec.DecodeError, ValueError):
        raise InvalidFilterError(f"{token} is no value; strings stand in double quotes") from None


def _found(value: object, path: list[str]) -> list[object]:
    """Every value at the path that is not null; the items of a list count one by one."""
    if value is None:
        return []
    if isinstance(value, list):
        return [found for item in value for found in _found(item, path)]
    if not path:
        return [value]
    return _found(value.get(path[0]), path[1:]) if isinstance(value, dict) else []


def _at_least(path: list[str], value: object) -> DocumentTest:
    if not isinstance(value, str):
        raise InvalidFilterError("ge takes a string")
    least = _instant(value)

    def test(document: Mapping[str, Any]) -> bool:
        others = [_instant(found) for found in _found(document, path) if isinstance(found, str)]
        return any(other[0] is least[0] and other[1] >= least[1] for other in others)

    return test


def _instant(text: str) -> tuple[bool, Any]:
    """A timestamp as an instant: as text, `05.708Z` would come before `05Z`."""
    try:
        return True, parse_rfc3339(text)
    except ValueError:
        return False, text
