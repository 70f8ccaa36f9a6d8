"""A client of a scripted server, and the two services of a sync route."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from datetime import timedelta
from typing import Any

import pytest

from inbox.config.model import Config, Endpoint
from inbox.config.values import Duration
from inbox.loader.load import parse_config
from relay.delivery.outcome import Delivery, Outcome
from relay.destinations import Context
from relay.http.client import HttpClient, Limits, Request
from relay.http.response import CallResult
from relay.http.target import prepare
from tests.helpers.delivering import DELIVERY, LOCAL, NOW, a_delivery, config_text, context, deliver
from tests.helpers.scripted import Act, ScriptedServer, answer, serving

POST = Request("forward", "POST", {"Content-Type": "application/json"}, body=b"{}")
GET = Request("fetch", "GET", {}, path="/user/1")


def make_client(url: str, **options: Any) -> HttpClient:  # noqa: ANN401  # an Endpoint's fields
    options = {"timeout": Duration(30), "allow_private": True, "allow_http": True, **options}
    return HttpClient(prepare(Endpoint(**options), url, "destinations.crm"))


def resolve_to(*addresses: str) -> Callable[..., list[Any]]:
    """Return a replacement of getaddrinfo that finds these addresses."""

    def resolve(_host: str, port: int, **_: object) -> list[Any]:
        found: list[Any] = []
        for address in addresses:
            family, more = (socket.AF_INET6, (0, 0)) if ":" in address else (socket.AF_INET, ())
            found.append((family, socket.SOCK_STREAM, 6, "", (address, port, *more)))
        return found

    return resolve


@contextmanager
def hang_lookups(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Block all name lookups."""
    over = threading.Event()

    def hanging(*_: object, **__: object) -> list[object]:
        over.wait()
        return []

    monkeypatch.setattr(socket, "getaddrinfo", hanging)
    yield
    over.set()


class Called:
    """A scripted server and its client; calling it makes a call."""

    def __init__(self, stack: ExitStack, *acts: Act, tls: Any = False, **options: Any) -> None:  # noqa: ANN401
        self.server: ScriptedServer = stack.enter_context(serving(*acts, tls=tls))
        self.client = make_client(self.server.url, **options)

    def __call__(self, request: Request = POST, within: Limits | None = None) -> CallResult:
        return self.client.call(request, within or context())


# --- sync routes


SECOND = a_delivery(attempt=2, received_at=NOW - timedelta(seconds=6))
DELETE = a_delivery(event_type="DELETE", action="delete")

USER = {"id": "u1", "name": "Ada", "meta": {"lastModified": "2025-12-31T23:59:58.5Z"}}
FETCH, FIND, CREATE, UPDATE, REMOVE = (
    "GET /api/user/u1", "GET /contacts?externalId=u1", "POST /contacts", "PATCH /contacts/c1", "DELETE /contacts/c1",
)  # fmt: skip
UPDATE_ANOTHER = "PATCH /contacts/c2"
FOUND = answer(200, {"items": [{"id": "c1", "external_id": "u1"}]})
NONE = answer(200, {"items": []})
FETCHED = answer(200, USER)

SYNC = """
    fetch = { api = "identity", path = "/user/{event.entity_id}" }
    find = { path = "/contacts", params = { externalId = "{event.entity_id}" }, pick = "items" }
    create = { path = "/contacts" }
    update = { path = "/contacts/{target.id}" }
    delete = { path = "/contacts/{target.id}" }
    map = { name = "entity.name", phone = "entity.phone", external_id = "event.entity_id" }
    clear_when_absent = ["phone"]
"""


OWN_BODY = "\n".join(line for line in SYNC.splitlines() if "fetch =" not in line)
"""The same steps without a fetch."""


class World:
    """Both services behind one server, and the route between them."""

    def __init__(self, server: ScriptedServer) -> None:
        self.server = server

    def deliver(
        self,
        delivery: Delivery = DELIVERY,
        acts: Mapping[str, Act | list[Act]] | None = None,
        *,
        sync: str = SYNC,
        within: Context | None = None,
        timeout: str = "30s",
        **more: Act | list[Act],
    ) -> Outcome:
        defaults: dict[str, Act | list[Act]] = {
            "fetch": FETCHED,
            "find": FOUND,
            "update": answer(),
            "create": answer(201),
            "remove": answer(204),
        }
        names = {"fetch": FETCH, "find": FIND, "update": UPDATE, "create": CREATE, "remove": REMOVE}
        names["another"] = UPDATE_ANOTHER
        for name, act in {**defaults, **(acts or {}), **more}.items():
            self.server.routes[names[name]] = list(act) if isinstance(act, list) else [act]
        return deliver(self.config(sync, timeout), delivery, within)

    def config(self, sync: str, timeout: str = "30s") -> Config:
        common = f'timeout = "{timeout}"\n{LOCAL}'
        return parse_config(
            config_text(
                "sync",
                f'base_url = "{self.server.url}"\nauth = {{ kind = "bearer", token = "crm-token" }}\n{common}',
                f"""
                [routes.user-to-crm.sync]
                {sync}
                [apis.identity]
                base_url = "{self.server.url}/api/"
                auth = {{ kind = "basic", user = "me", password = "pass-word" }}
                {common}
                """,
            )
        )

    @property
    def asked(self) -> list[str]:
        return self.server.asked


def replace_in_sync(old: str, new: str) -> str:
    """Return the route's table with one part replaced."""
    assert old in SYNC
    return SYNC.replace(old, new)
