"""Previews: the change that an attempt would make, and what two configurations make of an event. Nothing is written."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal, NoReturn, cast
from urllib.parse import urlsplit

import msgspec

from inbox.config.model import Config, Endpoint, PythonDestination, Route, SyncDestination
from inbox.config.routing import lane_of, matches
from inbox.errors import BodyErased, MappingError, RequestError
from inbox.events.event import RawRequest, swept_key
from inbox.events.timestamps import to_nanoseconds
from inbox.sources.normalize import readers_of
from relay.delivery.outcome import REFETCH_AFTER, CallStep, Delivery, Failed, Outcome
from relay.destinations import KINDS
from relay.destinations.base import Caller, Clients, Context, Deliverer, without_lease
from relay.destinations.sync import NO_HEADERS, REPLICA_LAG, Attempt, Ended, Sync
from relay.http.answer import Answer
from relay.http.client import Request
from relay.sync.calls import CallPlan

Change = Literal["create", "update", "deactivate", "delete", "none", "failed"]


class FieldChange(msgspec.Struct, frozen=True):
    """A field of a counterpart with its value before and after."""

    field: str
    before: Any
    after: Any


class Preview(msgspec.Struct, frozen=True):
    """The change that an attempt would make for one entity."""

    route: str
    entity_type: str | None
    entity_id: str | None
    change: Change
    fields: tuple[FieldChange, ...] = ()
    why: str | None = None
    """The reason for no change, or for a failure."""

    @property
    def is_in_sync(self) -> bool:
        """True when both sides agree."""
        return self.change == "none"


def preview(sync: Sync, delivery: Delivery, context: Context) -> Preview:
    """Return the change that an attempt for this event would make now. It waits for no replica, and reads a 404 as final."""

    def result(change: Change, fields: tuple[FieldChange, ...] = (), why: str | None = None) -> Preview:
        return Preview(delivery.route, delivery.entity_type, delivery.entity_id, change, fields, why)

    try:
        outcome = _Dry(sync, _afresh(delivery), context).run()
    except _Planned as end:
        is_in_sync = end.change == "update" and not end.fields
        return result("none") if is_in_sync else result(end.change, end.fields)
    except Ended as end:
        outcome = end.outcome
    except (MappingError, BodyErased) as error:
        outcome = Failed((), "mapping", str(error))
    if isinstance(outcome, Failed):
        return result("failed", why=outcome.error)
    return result("none", why=getattr(outcome, "why", None))


def _afresh(delivery: Delivery) -> Delivery:
    """Return a delivery that remembers nothing and need not wait for its entity."""
    return msgspec.structs.replace(delivery, attempt=2, stale_before=len(REFETCH_AFTER), applied_hash=None)


class _Planned(Exception):
    """The planned write. It ends the attempt and is no error."""

    def __init__(self, change: Change, fields: tuple[FieldChange, ...] = ()) -> None:
        super().__init__()
        self.change: Change = change
        self.fields = fields


class _Dry(Attempt):
    """An attempt that stops before it writes."""

    def may_be_behind(self) -> bool:
        """Return False: a preview has no later attempt."""
        return False

    def write(
        self,
        step: CallStep,
        call: CallPlan,
        fields: dict[str, Any] | None,
        body: bytes | None,  # noqa: ARG002  # as the base class has it
        headers: Mapping[str, str] = NO_HEADERS,  # noqa: ARG002  # likewise
    ) -> NoReturn:
        """Raise the planned change instead of writing it.

        Raises:
            _Planned: always.
        """
        if step == "delete" or fields is None:
            raise _Planned("delete" if step == "delete" else "deactivate")
        target = self.scope["target"] if step == "update" else None
        known = _fields_of(target, call.fields_at) if isinstance(target, dict) else {}
        changed = tuple(
            FieldChange(name, known.get(name), value) for name, value in fields.items() if known.get(name) != value
        )
        raise _Planned("create" if step == "create" else "update", changed)


def _fields_of(target: Mapping[str, Any], keys: Sequence[str]) -> Mapping[str, Any]:
    """Return the part of a counterpart that an update sends fields to, where it is found as it is sent; else the whole."""
    found: Any = target
    for key in keys:
        found = found.get(key)
        if not isinstance(found, dict):
            return target
    return cast("Mapping[str, Any]", found)


# --- Compares what two configurations make of a stored event: how it is read, its routes, and the first request on each.
#
# A deliverer is stopped at its first call; where a comparison fetches, a sync route makes the calls that read, and stops
# at its first write.


_IDENTITY = ("entity_type", "entity_id", "event_type", "action", "event_id", "dedup_key", "occurred_at")
Parts = dict[str, object]
"""The parts of a request by name."""


class Masked(msgspec.Struct, frozen=True):
    """A value with a secret in it: it is compared, and something else is shown."""

    value: object
    shown: str = "…"


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
        self._fetched: dict[tuple[str, str | None, str | None], Parts] = {}
        """The parts of each entity: the newest event is first, and the others would fetch the same."""
        clients = _StoppedClients(config, fetches=fetches)
        self._deliverers: dict[str, Deliverer | str] = {}
        for name, route in config.routes.items():
            destination = config.destinations[route.destination]
            if only_route not in {None, name}:
                continue
            if isinstance(destination, PythonDestination):  # its calls are its own
                self._deliverers[name] = destination.function
            else:
                self._deliverers[name] = KINDS[type(destination)](route, destination, clients)
        self._fetches = fetches

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
        found: Parts = {"lane": lane, "ordering": self.config.ordering_of(route), "on_dead": route.on_dead}
        deliverer = self._deliverers[route.name]
        if isinstance(deliverer, str):
            return found | {"function": deliverer}
        if not isinstance(deliverer, Sync) or not self._fetches:
            return found | _first_request(deliverer, event, route.name, lane)
        key = route.name, event.entity_type, event.entity_id
        if key not in self._fetched:
            self._fetched[key] = _first_request(deliverer, event, route.name, lane)
        return found | self._fetched[key]


def _first_request(deliverer: Deliverer, event: Delivery, route: str, lane: str) -> Parts:
    """Return the parts of the first request that is stopped, or of the end of an attempt that makes none."""
    delivery = msgspec.structs.replace(_afresh(event), route=route, lane=lane)
    context = msgspec.structs.replace(without_lease(), now=lambda: event.received_at + REPLICA_LAG)
    try:
        outcome: Outcome = deliverer.deliver(delivery, context)
    except _Stopped as stopped:
        return stopped.parts
    if isinstance(outcome, Failed):
        return {"fails": outcome.error}
    return {"skipped": getattr(outcome, "why", None)}


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
        values = was.get(part), becomes.get(part)
        if values[0] != values[1]:
            one, other = (value.shown if isinstance(value, Masked) else value for value in values)
            yield part, one, other


class _Stopped(Exception):
    """The first request of an attempt. It ends the attempt and is no error."""

    def __init__(self, parts: Parts) -> None:
        super().__init__()
        self.parts = parts


class _StoppedClient:
    """A client that makes no call, or only those that read, by `reader`."""

    def __init__(self, endpoint: Endpoint, base: str, shown_path: str | None, reader: Caller | None) -> None:
        self.base = base
        self._headers = endpoint.headers
        self._reader = reader
        url = urlsplit(base)
        port = "" if url.port is None else f":{url.port}"
        self._shown = f"{url.scheme}://{url.hostname}{port}{shown_path or url.path}"

    def call(self, request: Request, limits: Context) -> Answer:
        if self._reader is not None and request.step in {"fetch", "find"}:
            return self._reader.call(request, limits)
        query = f"?{request.query}" if request.query else ""
        line = f"{request.method} {self._shown}{request.path}{query}"
        headers = {**request.headers, **self._headers, **request.own_headers}
        headers.pop("Idempotency-Key", None)  # it follows from the others
        raise _Stopped(
            {"request": Masked((self.base, line), line)}
            | {f"header {name}": Masked(value) for name, value in headers.items()}
            | _body(request.body)
        )

    def close(self) -> None:
        if self._reader is not None:
            self._reader.close()


class _StoppedClients(Clients):
    """Clients that write nothing, whatever the endpoint's `auth` is."""

    def __init__(self, config: Config, *, fetches: bool) -> None:
        super().__init__(config)
        self._fetches = fetches

    def api(self, name: str) -> Caller:
        table = self.api_table(name)
        return _StoppedClient(table, table.base_url, None, super().api(name) if self._fetches else None)

    def destination(
        self, endpoint: Endpoint, url: str, *, secrets: Iterable[str] = (), shown_path: str | None = None
    ) -> Caller:
        fetches = self._fetches and isinstance(endpoint, SyncDestination)
        reader = super().destination(endpoint, url, secrets=secrets) if fetches else None
        return _StoppedClient(endpoint, url, shown_path, reader)


def _body(body: bytes | None) -> dict[str, object]:
    """Return the fields of a body; one that is no object of JSON is a single part."""
    try:
        content: Any = None if body is None else msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        content = body and body.decode(errors="backslashreplace")
    return {f"body.{key}": value for key, value in content.items()} if isinstance(content, dict) else {"body": content}
