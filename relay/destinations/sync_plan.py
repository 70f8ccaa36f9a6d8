"""The plan of a sync between two endpoints, whose credentials none of its calls may replace."""

from __future__ import annotations

from functools import partial

import msgspec

from inbox.config.endpoint import Api, ApiHeader, Endpoint, SyncDestination
from inbox.config.headers import titled
from inbox.config.sync import SyncRoute
from inbox.errors import ConfigError, collect_config_errors
from relay.sync.calls import CallPlan
from relay.sync.compiled_route import SyncPlan, compile_sync
from relay.sync.expressions import digest


def plan_of(route: str, sync: SyncRoute, source: Api, destination: SyncDestination) -> SyncPlan:
    """Compile the sync table of a route between these endpoints.

    Raises:
        ConfigError: something in it can't be used. The text has a line for each mistake.
    """
    plan = compile_sync(route, sync)
    checks = {"fetch": partial(require_no_credentials, plan.fetch, f"routes.{route}.sync.fetch", source)}
    checks |= {
        step: partial(require_no_credentials, call, f"routes.{route}.sync.{step}", destination)
        for step, call in plan.calls_to_destination
    }
    collect_config_errors(checks)
    # An ETag of another service, or a counterpart in another one, proves nothing.
    config = digest([plan.config.hex(), source.base_url, destination.base_url, destination.name])
    return msgspec.structs.replace(plan, config=config)


def require_no_credentials(call: CallPlan, where: str, endpoint: Endpoint) -> None:
    """Refuse a call whose own headers would replace the endpoint's credentials.

    Raises:
        ConfigError: one of them has the name of the header in `auth`.
    """
    if isinstance(endpoint.auth, ApiHeader) and titled(endpoint.auth.name) in dict(call.headers):
        raise ConfigError(f"{where}.headers: {endpoint.auth.name!r} is set by the endpoint's auth; remove it here")
