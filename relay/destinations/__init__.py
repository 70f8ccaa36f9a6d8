"""Kinds of destinations. Each kind is a module in this package and an entry in `KINDS`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from inbox.config.model import (
    Config,
    ForwardDestination,
    Limited,
    PythonDestination,
    Route,
    SlackDestination,
    SyncDestination,
)
from inbox.errors import collect_config_errors
from relay.destinations import forward, python, sync
from relay.destinations.base import Clients, Context, Deliverer

KINDS: Mapping[type[Limited], Callable[[Route, Any, Clients], Deliverer]] = {
    ForwardDestination: forward.build,
    PythonDestination: python.build,
    SlackDestination: forward.build_slack,
    SyncDestination: sync.build,
}
"""Factories of deliverers, by the class of the destination's table.

The class derives from `Downstream` if the kind uses HTTP: `relay.delivery.policy` reads its `outcomes`, and the client
reads its other settings.
"""


def build(config: Config) -> dict[str, Deliverer]:
    """Make the deliverers of all routes, by route name. Each call reads the secrets again.

    Raises:
        ConfigError: an endpoint, a secret, a template or an expression is unusable. The text has a line for each mistake.
    """
    clients = Clients(config)
    parts: dict[str, Callable[[], Deliverer]] = {}
    for name, route in config.routes.items():
        destination = config.destinations[route.destination]
        parts[name] = partial(KINDS[type(destination)], route, destination, clients)
    return collect_config_errors(parts)


__all__ = ["KINDS", "Clients", "Context", "Deliverer", "build"]
