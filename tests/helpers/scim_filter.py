"""A filter language: the part of SCIM's (RFC 7644 section 3.4.2.2) that clients use.

A clause is `attribute eq value`, `attribute ge timestamp` or `attribute pr`. Clauses are joined by `and`, or by `or`;
both in one filter are not offered, so parentheses may stand around anything and change nothing. An attribute is a dotted
path (`meta.lastModified`); through a list it means any item (`emails.address`). A value is a JSON string, number, true
or false. Names and values are compared with their case.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

import msgspec

from inbox.events.timestamps import parse_rfc3339

DocumentTest = Callable[[Mapping[str, Any]], bool]

_CLAUSE = re.compile(
    r'([(\s]*)([\w.:-]+)\s+(?:(pr)\b|(eq|ge)\s+("(?:[^"\\]|\\.)*"|(?!null)[\w.+-]+))([)\s]*)', re.IGNORECASE
)
_JOINER = re.compile(r"(and|or)\b", re.IGNORECASE)


class InvalidFilterError(ValueError):
    """The text is no filter; the message says why."""


def parse_filter(text: str) -> DocumentTest:
    """Compile a filter to a function that tests a document.

    Raises:
        InvalidFilterError: the text is no filter, or has something of SCIM that is not offered here.
    """
    tests: list[DocumentTest] = []
    joiners: set[str] = set()
    position = depth = 0
    while not tests or position < len(text):
        if tests:
            joiner = _JOINER.match(text, position)
            if joiner is None:
                raise InvalidFilterError(f"`and` or `or` was expected at position {position}")
            joiners.add(joiner[1].lower())
            position = joiner.end()
        clause = _CLAUSE.match(text, position)
        if clause is None:
            raise InvalidFilterError(f"a clause with eq, ge or pr was expected at position {position}")
        tests.append(_test(clause[2].split("."), (clause[3] or clause[4]).lower(), clause[5]))
        depth += clause[1].count("(") - clause[6].count(")")
        if depth < 0:
            raise InvalidFilterError(f"a parenthesis too many before position {clause.end()}")
        position = clause.end()
    if depth:
        raise InvalidFilterError("a closing parenthesis is missing")
    if len(joiners) > 1:
        raise InvalidFilterError("`and` and `or` in one filter are not offered")
    combine = any if "or" in joiners else all
    return lambda document: combine(test(document) for test in tests)


def _test(path: list[str], operator: str, literal: str) -> DocumentTest:
    if operator == "pr":
        return lambda document: any(found != "" for found in _found(document, path))
    try:
        value = msgspec.json.decode(literal)
        least = parse_rfc3339(value) if operator == "ge" else 0
    except (msgspec.DecodeError, TypeError, ValueError):
        raise InvalidFilterError(f"{operator} doesn't take {literal}; texts and timestamps stand in quotes") from None
    if operator == "ge":
        return lambda document: any(_is_at_least(found, least) for found in _found(document, path))
    return lambda document: any(type(found) is type(value) and found == value for found in _found(document, path))


def _is_at_least(found: object, least: int) -> bool:
    """Compare instants: as text, `05.708Z` would come before `05Z`."""
    try:
        return parse_rfc3339(str(found)) >= least
    except ValueError:
        return False


def _found(value: object, path: list[str]) -> list[object]:
    """Find every value at the path that is not null; the items of a list count one by one."""
    if value is None:
        return []
    if isinstance(value, list):
        return [found for item in value for found in _found(item, path)]
    if not path:
        return [value]
    return _found(value.get(path[0]), path[1:]) if isinstance(value, dict) else []
