"""Previews: the change that an attempt would make, and the differences between two configurations. Writes nothing."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any, Literal, cast

import msgspec

from inbox.config.model import Config, PythonDestination, Route
from inbox.config.routing import matches, name_lane
from inbox.errors import BodyErased, MappingError, RequestError
from inbox.events.event import RawRequest, swept_key
from inbox.events.timestamps import to_nanoseconds
from inbox.sources.normalize import make_readers
from relay.delivery.outcome import REFETCH_AFTER, Delivery, Failed
from relay.destinations import KINDS
from relay.destinations.base import Clients, Context, Deliverer, without_lease
from relay.destinations.sync import REPLICA_LAG, Attempt, Ended, Sync
from relay.http.client import HttpClient, Request, join_url
from relay.http.response import CallResult
from relay.http.target import Target

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
    """Reason for no change, or for a failure."""


def make_preview(sync: Sync, delivery: Delivery, context: Context) -> Preview:
    """Return the change that an attempt for this event would make now. It makes no allowance for replica lag: a 404 is final."""

    def result(change: Change, fields: tuple[FieldChange, ...] = (), why: str | None = None) -> Preview:
        return Preview(delivery.route, delivery.entity_type, delivery.entity_id, change, fields, why)

    attempt = Attempt(Sync(sync.plan, sync.api, OnlyReads(sync.destination)), *_afresh(delivery, context))
    try:
        outcome = attempt.run()
    except Stopped as end:
        change = cast("Change", end.request.step)
        if attempt.fields is None:
            return result("deactivate" if change == "update" else change)
        fields = _changes(sync, attempt.fields, attempt.scope["target"] if change == "update" else None)
        return result("none" if change == "update" and not fields else change, fields)
    except Ended as end:
        outcome = end.outcome
    except (MappingError, BodyErased) as error:
        outcome = Failed((), "mapping", str(error))
    if isinstance(outcome, Failed):
        return result("failed", why=outcome.error)
    return result("none", why=getattr(outcome, "why", None))


def _afresh(delivery: Delivery, context: Context) -> tuple[Delivery, Context]:
    """Return the delivery and context of a first attempt that waits for neither its entity nor a replica."""
    at = max(context.now(), delivery.received_at + REPLICA_LAG)
    remembers_nothing = msgspec.structs.replace(delivery, attempt=2, stale_before=len(REFETCH_AFTER), applied_hash=None)
    return remembers_nothing, msgspec.structs.replace(context, now=lambda: at)


def _changes(sync: Sync, fields: Mapping[str, Any], target: Any) -> tuple[FieldChange, ...]:  # noqa: ANN401  # any JSON
    """Return the fields that differ in a counterpart. Look where an update sends them, or at the top level."""
    known = found = target or {}
    for key in () if sync.plan.update is None else sync.plan.update.fields_at:
        found = found.get(key) if isinstance(found, dict) else None
    if isinstance(found, dict):
        known = found
    return tuple(
        FieldChange(name, known.get(name), value) for name, value in fields.items() if known.get(name) != value
    )


class Stopped(Exception):
    """Ends an attempt at its first request that may have an effect. Not an error."""

    def __init__(self, target: Target, request: Request) -> None:
        super().__init__()
        self.target = target
        self.request = request


class OnlyReads(HttpClient):
    """A client that makes only reading calls, or none."""

    def __init__(self, client: HttpClient, *, reads: bool = True) -> None:
        super().__init__(client.target)
        self._client = client
        self._reads = reads

    def call(self, request: Request, limits: Context) -> CallResult:
        """Make the call if it only reads.

        Raises:
            Stopped: it may write.
        """
        if self._reads and request.step in {"fetch", "find"}:
            return self._client.call(request, limits)
        raise Stopped(self.target, request)


# --- Compares two configurations on a stored event: its reading, its routes, and the first request on each.
#
# A deliverer stops at its first call. If a comparison fetches, a sync route makes its reading calls, and stops at the first
# write.


_IDENTITY = ("entity_type", "entity_id", "event_type", "action", "event_id", "dedup_key", "occurred_at")
Parts = dict[str, object]
"""Parts of a request by name."""


class Masked(msgspec.Struct, frozen=True):
    """A value that contains a secret, so it is compared but not shown."""

    value: object
    shown: str = "…"


class ConfigDifference(msgspec.Struct, frozen=True):
    """A part of an event's processing that differs between the current configuration and another one."""

    seq: int
    source: str
    route: str | None
    part: str
    before: object
    after: object


class Variant:
    """One of two configurations to compare."""

    def __init__(self, config: Config, *, only_route: str | None = None, fetches: bool = False) -> None:
        """Make the readers and deliverers of the configuration.

        Raises:
            ConfigError: an endpoint, a secret, a template or an expression is unusable.
        """
        self.config = config
        self._readers = make_readers(config)
        self._fetched: dict[tuple[str, str | None, str | None], Parts] = {}
        """The parts of each entity from its newest event. Older events reuse them instead of fetching again."""
        clients = Clients(config, partial(OnlyReads, reads=fetches))
        self._deliverers: dict[str, Deliverer | str] = {}
        for name, route in config.routes.items():
            destination = config.destinations[route.destination]
            if only_route not in {None, name}:
                continue
            if isinstance(destination, PythonDestination):  # makes its own calls
                self._deliverers[name] = destination.function
            else:
                self._deliverers[name] = KINDS[type(destination)](route, destination, clients)
        self._fetches = fetches

    def read(self, event: Delivery) -> Delivery | str:
        """Read the request of an event again; return the event, or the reason why the request would be rejected.

        Swept events, and those without a payload, are returned as stored.
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
            return f"the request has {len(events)} events"
        return msgspec.structs.replace(event, **{name: getattr(events[0], name) for name in _IDENTITY})

    def parts(self, event: Delivery) -> dict[str, Parts]:
        """Return the parts of the first request on each route of the event."""
        return {
            name: self._process_route(route, event)
            for name, route in self.config.routes.items()
            if name in self._deliverers
            and route.source == event.source
            and matches(route.when, event.entity_type, event.event_type, event.action)
        }

    def _process_route(self, route: Route, event: Delivery) -> Parts:
        lane = name_lane(route, entity_type=event.entity_type, entity_id=event.entity_id, key=event.dedup_key)
        found: Parts = {"lane": lane, "ordering": self.config.get_ordering(route), "on_dead": route.on_dead}
        deliverer = self._deliverers[route.name]
        if isinstance(deliverer, str):
            return found | {"function": deliverer}
        if not isinstance(deliverer, Sync) or not self._fetches or deliverer.plan.fetch is None:
            return found | _first_request(deliverer, event, route.name, lane)
        key = route.name, event.entity_type, event.entity_id
        if key not in self._fetched:
            self._fetched[key] = _first_request(deliverer, event, route.name, lane)
        return found | self._fetched[key]


def _first_request(deliverer: Deliverer, event: Delivery, route: str, lane: str) -> Parts:
    """Return the parts of the request at which the attempt stopped, or of the outcome if it made no request."""
    delivery, context = _afresh(event, msgspec.structs.replace(without_lease(), now=lambda: event.received_at))
    try:
        outcome = deliverer(msgspec.structs.replace(delivery, route=route, lane=lane), context)
    except Stopped as stopped:
        return _parts(stopped.target, stopped.request)
    if isinstance(outcome, Failed):
        return {"fails": outcome.error}
    return {"skipped": getattr(outcome, "why", None)}


def compare(old: Variant, new: Variant, event: Delivery) -> Iterator[ConfigDifference]:
    """Yield the differences in the processing of an event under two configurations."""

    def found(route: str | None, part: str, before: object, after: object) -> ConfigDifference:
        return ConfigDifference(event.seq, event.source, route, part, before, after)

    before, after = old.read(event), new.read(event)
    if isinstance(before, str) and isinstance(after, str):
        if event.source not in old.config.sources or event.source not in new.config.sources:
            return
        before = after = event  # its preset needs parts of the request that are not stored
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
    """Yield each part that differs, with both values. None means that the route does not take the event."""
    if was is None or becomes is None:
        yield "takes it", "no" if was is None else "yes", "no" if becomes is None else "yes"
        was = {}
    becomes = becomes or {}
    fails = {"fails"} & (was.keys() | becomes.keys())  # without a request, compare only the failures
    for part in fails or dict.fromkeys((*was, *becomes) if was else ()):
        values = was.get(part), becomes.get(part)
        if values[0] != values[1]:
            one, other = (value.shown if isinstance(value, Masked) else value for value in values)
            yield part, one, other


def _parts(target: Target, request: Request) -> Parts:
    query = f"?{request.query}" if request.query else ""
    line = f"{request.method} {join_url(target.shown, request.path)}{query}"
    headers = {**request.headers, **target.headers, **request.own_headers}
    headers.pop("Idempotency-Key", None)  # it derives from the other parts
    return (
        {"request": Masked((target.base, target.query, line), line)}
        | {f"header {name}": Masked(value) for name, value in headers.items()}
        | _body(request.body)
    )


def _body(body: bytes | None) -> dict[str, object]:
    """Return the fields of a body; a body that is not a JSON object is a single part."""
    try:
        content: Any = None if body is None else msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        content = body and body.decode(errors="backslashreplace")
    return {f"body.{key}": value for key, value in content.items()} if isinstance(content, dict) else {"body": content}
