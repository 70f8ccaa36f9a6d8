"""The interface of a kind of destination.

A kind has three parts: a table in `inbox.config.model` that derives from `Downstream`, a module with a `build` function that
makes a `Deliverer`, and an entry in `relay.destinations.KINDS`.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, Protocol

import msgspec

from inbox.clock import SystemClock
from inbox.config.model import ApiOauth2, Config, Endpoint, SyncDestination
from inbox.errors import collect_config_errors
from relay.delivery.outcome import Delivery, Outcome
from relay.http.client import HttpClient, Limits, TokenClient
from relay.http.target import prepare

Context = Limits
"""The bounds of an attempt: `lease` (trusted until that instant of `inbox.clock.steady`), `stop` (set at shutdown), `now`."""


def without_lease() -> Context:
    """Return the context for a command of an operator: no lease and no shutdown."""
    return Context(lambda: float("inf"), threading.Event(), SystemClock().now)


class Deliverer(Protocol):
    """Delivers the events of one route. It is thread-safe."""

    def __call__(self, delivery: Delivery, context: Context, /) -> Outcome:
        """Make one attempt.

        Errors of the endpoint, the network, the guard and the event's data become outcomes. An exception is a bug. No call
        starts after `context.lease()`, and a running one is cut then.
        """
        ...


class Clients:
    """The HTTP clients of a configuration: one for each api and destination, shared by its routes."""

    def __init__(self, config: Config, wrap: Callable[[HttpClient], HttpClient] = lambda made: made) -> None:
        """Make no client yet; `wrap` can replace each client that is made later."""
        self.config = config
        self.made: dict[str, HttpClient] = {}
        """The clients made so far, by the keys of their tables."""
        self._wrap = wrap

    def api(self, name: str) -> HttpClient:
        """Return the client of an api.

        Raises:
            ConfigError: as `relay.http.target.prepare`.
        """
        api = self.config.apis[name]
        return self._client(f"apis.{name}", api, "base_url", api.base_url)

    def destination(
        self, endpoint: Endpoint, url: str, *, secrets: Iterable[str] = (), shown_path: str | None = None
    ) -> HttpClient:
        """Return the client of a destination; arguments and errors as `relay.http.target.prepare`."""
        key = "base_url" if isinstance(endpoint, SyncDestination) else "url"
        return self._client(f"destinations.{endpoint.name}", endpoint, key, url, secrets=secrets, shown_path=shown_path)

    def _client(
        self,
        where: str,
        endpoint: Endpoint,
        key: str,
        url: str,
        *,
        secrets: Iterable[str] = (),
        shown_path: str | None = None,
    ) -> HttpClient:
        if where in self.made:
            return self.made[where]
        auth = endpoint.auth
        outbound = self.config.outbound
        target = partial(prepare, endpoint, url, where, outbound, key=key, shown_path=shown_path)
        if not isinstance(auth, ApiOauth2):
            made = HttpClient(target(secrets=secrets))
        else:
            plain = msgspec.structs.replace(endpoint, auth=None, headers={})
            tokens = partial(prepare, plain, auth.token_url, f"{where}.auth", outbound, key="token_url")
            names = ("client_secret", "client_id")
            checks: dict[str, Callable[[], Any]] = {
                name: partial(getattr(auth, name).reveal, at=f"{where}.auth.{name}") for name in names
            }
            checks["url"] = target
            if endpoint.ca_file is None and endpoint.cert_file is None:  # otherwise its errors would be reported twice
                checks["token_url"] = tokens
            revealed = collect_config_errors(checks)
            own = [revealed[name] for name in names]
            made = TokenClient(target(secrets=(*secrets, *own)), tokens(secrets=own), auth)
        return self.made.setdefault(where, self._wrap(made))
