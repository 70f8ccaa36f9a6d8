"""A vendor's service in memory, on a real socket. Each vendor answers as its published description says."""

from __future__ import annotations

import json
import threading
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple
from urllib.parse import parse_qsl, unquote, urlsplit

from tests.helpers.scripted import Act, ScriptedServer, Seen, answer

JSON_TYPE = "application/json; charset=utf-8"


class Asked(NamedTuple):
    """A request, taken apart."""

    method: str
    path: tuple[str, ...]
    """Segments of the path, decoded."""
    query: dict[str, str]
    headers: dict[str, str]
    """Names in lower case."""
    body: Any
    """The JSON of the body, or None."""


class Clock:
    """The time of a service's changes: each has its own second. It stands in the past."""

    def __init__(self) -> None:
        self._moment = datetime(2026, 11, 2, 9, 0, tzinfo=UTC)

    def tick(self) -> datetime:
        """Return the time of the next change."""
        self._moment += timedelta(seconds=1)
        return self._moment


class VendorService(ScriptedServer):
    """Answers one request after the other by `respond`, and remembers them as `asked`."""

    def __init__(self) -> None:
        self.clock = Clock()
        self._one_by_one = threading.Lock()
        super().__init__()

    def act_for(self, seen: Seen) -> Act:
        """Note the request, and answer it by `respond`."""
        target = urlsplit(seen.target)
        asked = Asked(
            seen.method,
            tuple(unquote(segment) for segment in target.path.strip("/").split("/")),
            dict(parse_qsl(target.query, keep_blank_values=True)),
            seen.headers,
            json.loads(seen.body) if seen.body else None,
        )
        with self._one_by_one:
            self.seen.append(seen)
            act = self.respond(asked)
        self.arrived.release()
        return act

    def respond(self, asked: Asked) -> Act:
        """Return the answer to a request."""
        raise NotImplementedError


def answer_json(status: int, body: object, /, **headers: str) -> Act:
    """Answer with JSON, and say so."""
    return answer(status, json.dumps(body).encode(), content_type=JSON_TYPE, **headers)
