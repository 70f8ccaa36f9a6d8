"""What a kind of destination has to offer."""

from __future__ import annotations

import threading
from collections.abc import Iterable
from typing import Protocol

import msgspec

from inbox.clock import SystemClock
from inbox.config.model import ApiOauth2, Config, Endpoint
from relay.delivery.outcome import Delivery, Outcome
from relay.http.answer import Answer
from relay.http.client import HttpClient, Limits, Request
from relay.http.endpoint import prepare
from relay.http.oauth import TokenClient

Context = Limits
"""What bounds an attempt: `lease` (until when it is trusted, by `inbox.clock.steady`), `stop` (the process is to end) and `now`."""


def without_lease() -> Context:
    """For calls of a person's command: nobody may take over from it, and nothing tells it to end."""
    return Context(lambda: float("inf"), threading.Event(), SystemClock().now)


class Deliverer(Protocol):
    """Delivers the events of one route. Any thread may call it, many at once."""

    def deliver(self, delivery: Delivery, context: Context) -> Outcome:
        """Make one attempt.

        Whatever the other side, the network, the guard or the event's data does is in the outcome; what is raised is a
        bug. No call starts after `context.lease()`, and a running one is cut then.
        """
        ...

    def close(self) -> None:
        """Close the idle connections, those of other routes to the same endpoint too. It can still be used."""
        ...


class Caller(Protocol):
    """What calls one endpoint: an `HttpClient`, or one that gets tokens for it."""

    def call(self, request: Request, limits: Limits) -> Answer:
        """As `HttpClient.call`."""
        ...

    def close(self) -> None:
        """Close the idle connections. It can still be used."""
        ...


class Clients:
    """The HTTP clients of a configuration: one for each api and destination, however many routes use it."""

    def __init__(self, config: Config) -> None:
        self._apis = config.apis
        self._outbound = config.outbound
        self._made: dict[str, Caller] = {}

    def api(self, name: str) -> Caller:
        """The client of an api.

        Raises:
            ConfigError: as `relay.http.endpoint.prepare`.
        """
        api = self._apis[name]
        return self._client(f"apis.{name}", api, api.base_url)

    def destination(
        self, endpoint: Endpoint, url: str, *, secrets: Iterable[str] = (), shown_path: str | None = None
    ) -> Caller:
        """The client of a destination; arguments and errors as `relay.http.endpoint.prepare`."""
        return self._client(f"destinations.{endpoint.name}", endpoint, url, secrets, shown_path)

    def _client(
        self, where: str, endpoint: Endpoint, url: str, secrets: Iterable[str] = (), shown_path: str | None = None
    ) -> Caller:
        if where not in self._made:
            auth = endpoint.auth
            masked = (*secrets, *_secrets_of(auth)) if isinstance(auth, ApiOauth2) else secrets
            calls = HttpClient(prepare(endpoint, url, where, self._outbound, secrets=masked, shown_path=shown_path))
            if isinstance(auth, ApiOauth2):
                plain = msgspec.structs.replace(endpoint, auth=None, headers={})
                tokens = HttpClient(
                    prepare(plain, auth.token_url, f"{where}.auth", self._outbound, secrets=_secrets_of(auth))
                )
                self._made[where] = TokenClient(calls, tokens, auth, float(endpoint.timeout))
            else:
                self._made[where] = calls
        return self._made[where]


def _secrets_of(auth: ApiOauth2) -> tuple[str, ...]:
    return auth.client_secret.reveal(), auth.client_id.reveal()
