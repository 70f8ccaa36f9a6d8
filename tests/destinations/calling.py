"""A client of a scripted server, as the tests of HTTP calls need it."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import pytest

from inbox.config.model import Endpoint
from inbox.config.values import Duration
from relay.http.answer import Answer
from relay.http.client import HttpClient, Limits, Request
from relay.http.target import prepare
from tests.helpers.delivering import context
from tests.helpers.scripted import Act, ScriptedServer, serving

POST = Request("forward", "POST", {"Content-Type": "application/json"}, body=b"{}")
GET = Request("fetch", "GET", {}, path="/user/1")


def client_of(url: str, **options: Any) -> HttpClient:  # noqa: ANN401  # an Endpoint's fields
    options = {"timeout": Duration(30), "allow_private": True, "allow_http": True, **options}
    return HttpClient(prepare(Endpoint(**options), url, "destinations.crm"))


def resolving_to(*addresses: str) -> Callable[..., list[Any]]:
    """In place of getaddrinfo: it finds these."""

    def resolve(_host: str, port: int, **_: object) -> list[Any]:
        found: list[Any] = []
        for address in addresses:
            family, more = (socket.AF_INET6, (0, 0)) if ":" in address else (socket.AF_INET, ())
            found.append((family, socket.SOCK_STREAM, 6, "", (address, port, *more)))
        return found

    return resolve


@contextmanager
def hanging_lookups(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No name is resolved as long as the block runs."""
    over = threading.Event()

    def hanging(*_: object, **__: object) -> list[object]:
        over.wait()
        return []

    monkeypatch.setattr(socket, "getaddrinfo", hanging)
    yield
    over.set()


class Called:
    """A server with its acts, and a client of it."""

    def __init__(self, stack: ExitStack, *acts: Act, tls: Any = False, **options: Any) -> None:  # noqa: ANN401
        self.server: ScriptedServer = stack.enter_context(serving(*acts, tls=tls))
        self.client = client_of(self.server.url, **options)

    def __call__(self, request: Request = POST, within: Limits | None = None) -> Answer:
        return self.client.call(request, within or context())
