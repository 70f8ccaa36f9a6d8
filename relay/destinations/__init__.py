"""Where deliveries go. A kind of destination is one module here and its line in `KINDS`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from inbox.config import Config, ForwardDestination, Route, SyncDestination
from relay.destinations import forward, sync
from relay.destinations.base import Clients, Context, Deliverer

KINDS: Mapping[type, Callable[[Route, Any, Clients], Deliverer]] = {
    ForwardDestination: forward.build,
    SyncDestination: sync.build,
}
"""The table of a destination → what makes the deliverer of a route to it."""


def build(config: Config) -> dict[str, Deliverer]:
    """The deliverer of every route, by the route's name. Secrets are read now; build again to read them again.

    Raises:
        ConfigError: an endpoint, a secret, a template or an expression can't be used.
    """
    clients = Clients(config)
    made = {}
    for name, route in config.routes.items():
        destination = config.destinations[route.destination]
        made[name] = KINDS[type(destination)](route, destination, clients)
    return made


__all__ = ["KINDS", "Clients", "Context", "Deliverer", "build"]
