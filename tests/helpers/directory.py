"""A source that lists its entities by last change, as SCIM does, and the common part of SCIM's filters."""

from __future__ import annotations

import re
import socket
import threading
from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import parse_qs, urlsplit

import msgspec

from inbox.events.timestamps import parse_rfc3339
from tests.helpers.scripted import ScriptedServer, answer

TABLE = """
[apis.identity]
base_url = "{url}"
allow_private = true
allow_http = true
timeout = "60s"
[[sources.trivore.sweeps]]
api = "identity"
path = "/user"
entity_type = "USER"
event_type = "UPDATE"
params = {{ since = "{{since}}", start = "{{start}}", count = "{{count}}" }}
pages = {{ by = "start", count = {count} }}
"""


class Directory:
    """An act of a `ScriptedServer`. Entities and their times may change between two pages."""

    def __init__(self, users: dict[str, str] | None = None) -> None:
        self.users = users or {}
        self.statuses: list[int] = []
        """Statuses of the next pages; 200 after these."""
        self.let_go = threading.Event()
        """Holds pages until it is set."""
        self.let_go.set()
        self.before_page: Callable[[int], None] = lambda _: None
        """Called before each page with its number, from 1."""
        self.pages = 0
        self.headers: list[dict[str, str]] = []
        """Extra headers of the next pages; none after these."""
        self.more: dict[str, Any] = {}
        """Extra members of items, by entity id. A value other than a dict replaces the item."""

    def __call__(self, server: ScriptedServer, connection: socket.socket) -> None:
        asked = {name: values[0] for name, values in parse_qs(urlsplit(server.seen[-1].target).query).items()}
        self.pages += 1
        while not self.let_go.wait(0.05) and not server.closing.is_set():
            pass
        self.before_page(self.pages)
        since, start = asked["since"], int(asked["start"])
        changed = sorted((modified, entity) for entity, modified in self.users.items() if modified >= since)
        page = [self._item(entity, modified) for modified, entity in changed[start : start + int(asked["count"])]]
        status = self.statuses.pop(0) if self.statuses else 200
        headers = self.headers.pop(0) if self.headers else {}
        answer(status, {"resources": page}, **headers)(server, connection)

    def _item(self, entity: str, modified: str) -> Any:  # noqa: ANN401  # any JSON
        more = self.more.get(entity, {})
        return {"id": entity, "meta": {"lastModified": modified}, **more} if isinstance(more, dict) else more


DocumentTest = Callable[[Mapping[str, Any]], bool]

_CLAUSE = re.compile(
    r'([(\s]*)([\w.:-]+)\s+(?:(pr)\b|(eq|ge)\s+("(?:[^"\\]|\\.)*"|(?!null)[\w.+-]+))([)\s]*)', re.IGNORECASE
)
_JOINER = re.compile(r"(and|or)\b", re.IGNORECASE)


class InvalidFilterError(ValueError):
    """The text is not a valid filter; the message has the reason."""


def parse_filter(text: str) -> DocumentTest:
    """Compile a filter into a predicate on documents.

    Raises:
        InvalidFilterError: the text is not a filter, or uses unsupported parts of SCIM.
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
    """Compare as instants: as text, `05.708Z` would come before `05Z`."""
    try:
        return parse_rfc3339(str(found)) >= least
    except ValueError:
        return False


def _found(value: object, path: list[str]) -> list[object]:
    """Return all non-null values at the path, flattening lists."""
    if value is None:
        return []
    if isinstance(value, list):
        return [found for item in value for found in _found(item, path)]
    if not path:
        return [value]
    return _found(value.get(path[0]), path[1:]) if isinstance(value, dict) else []
