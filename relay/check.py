"""The relay's part in `inbox check`: what it makes at its start, what is unused yet, and the systems that it calls."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from http import HTTPStatus
from typing import Any

from inbox.check import Probe, Reply, Side, Verdict
from inbox.config.model import Config, Destination, Route, SyncDestination
from inbox.db import engine
from inbox.errors import ConfigError, collect_config_errors
from relay.accounts import check_files
from relay.daemon.alert_sender import alert_client
from relay.daemon.generation import prepare
from relay.destinations import KINDS
from relay.destinations.base import Caller, Clients, without_lease
from relay.doctor import EXAMINATIONS
from relay.http.client import Request
from relay.store.audit.verify import verify
from relay.store.database import Database
from relay.sweep.pages import Pages
from relay.sweep.run import CompiledSweep

_QUESTION = Request("fetch", "OPTIONS", {"Accept": "*/*"})
"""A safe method (RFC 9110 §9.2.1). A GET makes some services that take webhooks act, and any answer will do."""


def _start(config: Config) -> None:
    """Make what the relay and the page make at their start.

    Raises:
        ConfigError: one of them would not start. The text has a line for each mistake.
    """
    parts: dict[str, Callable[[], object]] = {
        "relay": partial(prepare, config),
        "page": partial(check_files, config.web),
    }
    collect_config_errors(parts)


def _make_unused(config: Config) -> None:
    """Make every api, destination, sweep and listing, also what no route uses and no relay schedules.

    Raises:
        ConfigError: one of them can't be used. The text has a line for each mistake.
    """
    collect_config_errors(dict(_parts(config, Clients(config))))


def _parts(config: Config, clients: Clients) -> Iterator[tuple[str, Callable[[], Any]]]:
    yield from _endpoints(config, clients)
    for name, source in config.sources.items():
        for number, _ in enumerate(source.sweeps):
            yield f"sweep {name} {number}", partial(CompiledSweep, config, name, number)
    for name, route in config.routes.items():
        destination = config.destinations[route.destination]
        if route.sync is not None and route.sync.listing is not None and isinstance(destination, SyncDestination):
            where = f"routes.{name}.sync.listing"
            caller = partial(clients.destination, destination, destination.base_url)
            yield where, partial(_listing, route, where, caller)


def _listing(route: Route, where: str, caller: Callable[[], Caller]) -> Pages | None:
    listing = None if route.sync is None else route.sync.listing
    return None if listing is None else Pages(listing, where, caller())


def _endpoints(config: Config, clients: Clients) -> Iterator[tuple[str, Callable[[], Any]]]:
    for name in config.apis:
        yield f"apis.{name}", partial(clients.api, name)
    for name, destination in config.destinations.items():
        yield f"destinations.{name}", partial(_destination, destination, clients)


def _destination(destination: Destination, clients: Clients) -> None:
    if isinstance(destination, SyncDestination):
        clients.destination(destination, destination.base_url)
    else:
        KINDS[type(destination)](Route(source="", destination=destination.name), destination, clients)


def _probes(config: Config) -> list[Probe]:
    """Return a question to each api and destination that can be called, and to the one of the alerts."""
    clients = Clients(config)
    for _, make in _endpoints(config, clients):
        try:
            make()
        except ConfigError:  # it is told as a mistake
            continue
    callers = dict(clients.made)
    try:
        client = alert_client(config)
    except ConfigError:
        client = None
    if client is not None:
        callers["alerts"] = client
    return [Probe(key, partial(_ask, key, caller)) for key, caller in callers.items()]


def _ask(key: str, caller: Caller) -> Reply:
    """Ask one system. Any answer of its own counts as reached; without a token there is none."""
    try:
        call = caller.call(_QUESTION, without_lease()).call
    finally:
        caller.close()
    reached = call.status is not None and call.error is None
    text = call.error or f"answered {call.status}"
    is_denied = reached and call.status in {HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN}
    if is_denied:
        text += ", which may mean wrong credentials"
    return Reply(key, call.url, reached, text, call.milliseconds, is_denied)


def _verify(config: Config, report: Callable[[int], object]) -> Verdict:
    """Compare the stored state of the configuration's database with its log."""
    made = engine.connect(config.database.url, application="inbox-relay-cli")
    try:
        events = deliveries = facts = differences = 0
        for chunk in verify(Database(made), config):
            events, deliveries, facts = events + chunk.events, deliveries + chunk.deliveries, facts + chunk.facts
            differences += len(chunk.differences)
            report(chunk.upto)
        return Verdict(events, deliveries, facts, differences)
    finally:
        made.dispose()


RELAY = Side("relay", _start, _make_unused, _probes, _verify, EXAMINATIONS)
