"""A vendor's service in memory, on a real socket, with responses as in its published description."""

from __future__ import annotations

import json
import threading
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple
from urllib.parse import parse_qsl, unquote, urlsplit

from tests.helpers.scripted import Act, ScriptedServer, Seen, answer

JSON_TYPE = "application/json; charset=utf-8"


class Asked(NamedTuple):
    """A parsed request."""

    method: str
    path: tuple[str, ...]
    """Decoded segments of the path."""
    query: dict[str, str]
    headers: dict[str, str]
    """Headers, with names in lower case."""
    body: Any
    """JSON of the body, or None."""


class Clock:
    """A clock in the past for a service's changes, each in its own second."""

    def __init__(self) -> None:
        self._moment = datetime(2026, 11, 2, 9, 0, tzinfo=UTC)

    def tick(self) -> datetime:
        """Return the time of the next change."""
        self._moment += timedelta(seconds=1)
        return self._moment


class VendorService(ScriptedServer):
    """A server that answers requests one by one by `respond`, and records them in `asked`."""

    def __init__(self) -> None:
        self.clock = Clock()
        self._one_by_one = threading.Lock()
        super().__init__()

    def act_for(self, seen: Seen) -> Act:
        """Record the request and answer it by `respond`."""
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
    """Answer with JSON and its content type."""
    return answer(status, json.dumps(body).encode(), content_type=JSON_TYPE, **headers)


# --- The reader's own service: records of one kind by plain REST, found by any field and changed by merge patches


Record = dict[str, Any]


class Records(VendorService):
    """Serves `/KIND?FIELD=VALUE` and `/KIND/ID` for the bearer of `token`."""

    def __init__(self, kind: str, token: str) -> None:
        self.all: dict[str, Record] = {}
        """Records by id."""
        self._kind, self._token = kind, token
        super().__init__()

    def respond(self, asked: Asked) -> Act:
        """Authenticate the caller and respond."""
        if asked.headers.get("authorization") != f"Bearer {self._token}":
            return answer_json(401, {"error": "unknown token"})
        match asked.method, asked.path:
            case "GET", (self._kind,):
                found = [record for record in self.all.values() if _has(record, asked.query)]
                return answer_json(200, {"items": found})
            case "POST", (self._kind,):
                number = f"{self._kind[:1]}{len(self.all) + 1}"
                self.all[number] = {**asked.body, "id": number}
                return answer_json(201, self.all[number])
            case method, (self._kind, number) if number in self.all:
                if method == "DELETE":
                    del self.all[number]
                    return answer(204)
                if method == "PATCH":
                    merged = self.all[number] | asked.body
                    self.all[number] = {name: value for name, value in merged.items() if value is not None}
                return answer_json(200, self.all[number])
        return answer_json(404, {"error": "not found"})


def _has(record: Record, wanted: dict[str, str]) -> bool:
    return all(str(record.get(name)) == value for name, value in wanted.items())
