"""What a kind of destination has to offer."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

from inbox.config import Config, Endpoint
from relay.endpoint import prepare
from relay.http import HttpClient, Limits
from relay.outcome import Delivery, Outcome

Context = Limits
"""What bounds an attempt: `lease` (monotonic, until when it is trusted), `stop` (the process is to end) and `now`."""


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


class Clients:
    """The HTTP clients of a configuration: one for each api and destination, however many routes use it."""

    def __init__(self, config: Config) -> None:
        self._apis = config.apis
        self._made: dict[str, HttpClient] = {}

    def api(self, name: str) -> HttpClient:
        """The client of an api.

        Raises:
            ConfigError: as `relay.endpoint.prepare`.
        """
        api = self._apis[name]
        return self._client(f"apis.{name}", api, api.base_url)

    def destination(
        self, endpoint: Endpoint, url: str, *, secrets: Iterable[str] = (), shown_path: str | None = None
    ) -> HttpClient:
        """The client of a destination; arguments and errors as `relay.endpoint.prepare`."""
        return self._client(f"destinations.{endpoint.name}", endpoint, url, secrets, shown_path)

    def _client(
        self, where: str, endpoint: Endpoint, url: str, secrets: Iterable[str] = (), shown_path: str | None = None
    ) -> HttpClient:
        if where not in self._made:
            self._made[where] = HttpClient(prepare(endpoint, url, where, secrets=secrets, shown_path=shown_path))
        return self._made[where]
