"""Compares what two configurations make of a stored event: how it is read, its routes, and the first request on each.

Nothing is sent: a deliverer is stopped at its first call. Only where a comparison fetches, a sync route makes the calls that read.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NoReturn
from urllib.parse import urlsplit

import msgspec

from inbox.config.model import Config, Endpoint, PythonDestination, Route, SyncDestination
from inbox.config.routing import lane_of, matches
from inbox.errors import RequestError
from inbox.events.event import RawRequest, swept_key
from inbox.events.timestamps import to_nanoseconds
from inbox.sources.normalize import readers_of
from relay.delivery.outcome import Delivery, Failed, Outcome
from relay.destinations import KINDS
from relay.destinations.base import Caller, Clients, Deliverer, without_lease
from relay.destinations.preview import PlannedWrite, planned
from relay.destinations.sync import Sync
from relay.http.client import Request

_IDENTITY = ("entity_type", "entity_id", "event_type", "action", "event_id", "dedup_key", "occurred_at")
_MASK = "…"

Parts = dict[str, tuple[object, object]]
"""The parts of a request by name: each as it is compared, and as it is shown, where a secret is masked."""


class ConfigDifference(msgspec.Struct, frozen=True):
    """A part of what becomes of an event, under today's configuration and under another one."""

    seq: int
    source: str
    route: str | None
    part: str
    before: object
    after: object


class Variant:
    """One configuration, ready to be asked about events."""

    def __init__(self, config: Config, *, only_route: str | None = None, fetches: bool = False) -> None:
        """Make its readers and deliverers.

        Raises:
            ConfigError: an endpoint, a secret, a template or an expression can't be used.
        """
        self.config = config
        self._readers = readers_of(config)
        self._fetches = fetches
        self._mapped: dict[tuple[str, str], Parts] = {}
        clients, stopped = Clients(config), _StoppedClients(config)
        self._deliverers: dict[str, Deliverer | str] = {}
        for name, route in config.routes.items():
            destination = config.destinations[route.destination]
            if only_route not in {None, name}:
                continue
            if isinstance(destination, PythonDestination):  # its calls are its own
                self._deliverers[name] = destination.function
            else:
                uses = clients if fetches and isinstance(destination, SyncDestination) else stopped
                self._deliverers[name] = KINDS[type(destination)](route, destination, uses)

    def read(self, event: Delivery) -> Delivery | str:
        """Read the request of an event again. Returns the event, or why the request would be rejected.

        One that a sweep has added, or whose payload is gone, is returned as it is stored.
        """
        if event.source not in self._readers:
            return "there is no such source"
        named = event.entity_type, event.entity_id
        is_swept = None not in named and event.dedup_key == swept_key(
            str(named[0]), str(named[1]), to_nanoseconds(event.occurred_at)
        )
        if event.body is None or is_swept:
            return event
        headers = {**event.headers, "content-type": event.content_type}
        try:
            events = self._readers[event.source](RawRequest(event.source, headers, event.body, event.received_at))
        except RequestError as error:
            return error.detail
        if len(events) != 1:
            return f"there are {len(events)} events in it"
        return msgspec.structs.replace(event, **{name: getattr(events[0], name) for name in _IDENTITY})

    def parts(self, event: Delivery) -> dict[str, Parts]:
        """Return the parts of the first request on each route that takes the event."""
        return {
            name: self._of_route(route, event)
            for name, route in self.config.routes.items()
            if name in self._deliverers
            and route.source == event.source
            and matches(route.when, event.entity_type, event.event_type, event.action)
        }

    def close(self) -> None:
        """Close the idle connections."""
        for deliverer in self._deliverers.values():
            if not isinstance(deliverer, str):
                deliverer.close()

    def _of_route(self, route: Route, event: Delivery) -> Parts:
        lane = lane_of(route, entity_type=event.entity_type, entity_id=event.entity_id, key=event.dedup_key)
        found = _plain({"lane": lane, "ordering": self.config.ordering_of(route), "on_dead": route.on_dead})
        deliverer = self._deliverers[route.name]
        delivery = msgspec.structs.replace(event, route=route.name, lane=lane)
        if isinstance(deliverer, str):
            return found | _plain({"function": deliverer})
        if isinstance(deliverer, Sync) and self._fetches:
            if (route.name, lane) not in self._mapped:  # the newest event of an entity; the others would fetch the same
                self._mapped[route.name, lane] = _write(deliverer, delivery)
            return found | self._mapped[route.name, lane]
        try:
            outcome = deliverer.deliver(
                delivery, msgspec.structs.replace(without_lease(), now=lambda: event.received_at)
            )
        except _Stopped as stopped:
            return found | stopped.parts
        return found | _ended(outcome)


def compare(old: Variant, new: Variant, event: Delivery) -> Iterator[ConfigDifference]:
    """Yield each difference between what becomes of an event under two configurations."""

    def found(route: str | None, part: str, before: object, after: object) -> ConfigDifference:
        return ConfigDifference(event.seq, event.source, route, part, before, after)

    before, after = old.read(event), new.read(event)
    if isinstance(before, str) and isinstance(after, str):
        if event.source not in old.config.sources or event.source not in new.config.sources:
            return
        before = after = event  # its preset needs more of the request than is stored
    if isinstance(after, str):
        yield found(None, "rejected", None, after)
        return
    was: dict[str, Parts] = {}
    if isinstance(before, str):
        yield found(None, "rejected", before, None)
    else:
        for name in _IDENTITY:
            if getattr(before, name) != getattr(after, name):
                yield found(None, name, getattr(before, name), getattr(after, name))
        was = old.parts(before)
    becomes = new.parts(after)
    for route in dict.fromkeys((*was, *becomes)):
        for part, one, other in _on_route(was.get(route), becomes.get(route)):
            yield found(route, part, one, other)


def _on_route(was: Parts | None, becomes: Parts | None) -> Iterator[tuple[str, object, object]]:
    """Yield the name of each part that differs, with both values; None: the route does not take the event."""
    if was is None or becomes is None:
        yield "takes it", "no" if was is None else "yes", "no" if becomes is None else "yes"
        was = {}
    becomes = becomes or {}
    fails = {"fails"} & (was.keys() | becomes.keys())  # then there is no request to compare
    for part in fails or dict.fromkeys((*was, *becomes) if was else ()):
        one, other = was.get(part, (None, None)), becomes.get(part, (None, None))
        if one[0] != other[0]:
            yield part, one[1], other[1]


def _plain(values: Mapping[str, object]) -> Parts:
    return {name: (value, value) for name, value in values.items()}


class _Stopped(Exception):
    """The first request of an attempt. It ends the attempt and is no error."""

    def __init__(self, parts: Parts) -> None:
        super().__init__()
        self.parts = parts


class _StoppedClient:
    """A client that makes no call."""

    def __init__(self, endpoint: Endpoint, base: str, shown_path: str | None) -> None:
        self.base = base
        self._headers = endpoint.headers
        url = urlsplit(base)
        port = "" if url.port is None else f":{url.port}"
        self._shown = f"{url.scheme}://{url.hostname}{port}{shown_path or url.path}"

    def call(self, request: Request, limits: object) -> NoReturn:  # noqa: ARG002  # as every client
        query = f"?{request.query}" if request.query else ""
        line = f"{request.method} {self._shown}{request.path}{query}"
        headers = {**request.headers, **self._headers, **request.own_headers}
        raise _Stopped(
            {"request": ((self.base, line), line)}
            | {f"header {name}": (value, _MASK) for name, value in headers.items()}
            | _plain(_body(request.body))
        )

    def close(self) -> None:
        pass


class _StoppedClients(Clients):
    """Clients that make no call, whatever the endpoint's `auth` is."""

    def api(self, name: str) -> Caller:
        table = self.api_table(name)
        return _StoppedClient(table, table.base_url, None)

    def destination(
        self,
        endpoint: Endpoint,
        url: str,
        *,
        secrets: Iterable[str] = (),  # noqa: ARG002  # nothing of it is shown
        shown_path: str | None = None,
    ) -> Caller:
        return _StoppedClient(endpoint, url, shown_path)


def _ended(outcome: Outcome) -> Parts:
    """Return the end of an attempt that makes no request."""
    if isinstance(outcome, Failed):
        return _plain({"fails": outcome.error})
    return _plain({"skipped": getattr(outcome, "why", None)})


def _body(body: bytes | None) -> dict[str, object]:
    """Return the fields of a body; one that is no object of JSON is a single part."""
    try:
        content: Any = None if body is None else msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        content = body and body.decode(errors="backslashreplace")
    return {f"body.{key}": value for key, value in content.items()} if isinstance(content, dict) else {"body": content}


def _write(deliverer: Sync, delivery: Delivery) -> Parts:
    """Fetch, find and map, and return the write that would follow."""
    write = planned(deliverer, delivery, without_lease())
    if not isinstance(write, PlannedWrite):
        return _ended(write)
    fields = {f"field {name}": value for name, value in (write.fields or {}).items()}
    return _plain({"change": write.change, "request": write.request, **fields})
