"""Compares what two configurations make of an entity as it is now: fetches it, finds its counterpart, maps; writes nothing."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import msgspec

from inbox.config.model import Config
from inbox.errors import BodyErased, collect_config_errors
from relay.comparison.compare import RoutedEvent
from relay.comparison.differences import ConfigDifference, Counts, Kind
from relay.comparison.settings import same
from relay.delivery.outcome import Failed, Outcome
from relay.destinations import build
from relay.destinations.base import Caller, without_lease
from relay.destinations.preview import PlannedWrite, planned
from relay.destinations.sync import Sync
from relay.http.answer import Answer
from relay.http.client import Limits, Request


class Mapped(msgspec.Struct, frozen=True):
    """The write that each configuration would make for one entity."""

    event: RoutedEvent
    old: PlannedWrite | Outcome | None
    """None: today's configuration does not route it so."""
    new: PlannedWrite | Outcome


class EntityComparison:
    """Maps entities under both configurations."""

    def __init__(self, old: Config, new: Config, routes: Iterable[str]) -> None:
        """Make the clients of these routes, by the secrets of both.

        Raises:
            ConfigError: a secret, an endpoint or a template can't be used. The text has a line for each mistake.
        """
        names = frozenset(routes)
        made = collect_config_errors({"old": partial(_syncs, old, names), "new": partial(_syncs, new, names)})
        self._old: Mapping[str, Sync] = made["old"]
        self._new = {name: _sharing(sync, name, (old, new), made["old"]) for name, sync in made["new"].items()}
        self._context = without_lease()
        self._pool = ThreadPoolExecutor(_concurrency((old, new), names))

    def close(self) -> None:
        """Wait for the calls that run, and close the connections."""
        self._pool.shutdown(cancel_futures=True)
        for sync in (*self._old.values(), *self._new.values()):
            sync.close()

    def map(self, events: Sequence[RoutedEvent]) -> Iterator[Mapped]:
        """Map the entities of these events, several at a time. It makes each call once where both would make the same."""
        yield from self._pool.map(self._map, events)

    def _map(self, event: RoutedEvent) -> Mapped:
        answers: dict[tuple[object, ...], Answer] = {}
        name = event.pair.name
        old = None
        if event.old is not None and name in self._old:
            old = planned(_remembering(self._old[name], answers), event.old, self._context)
        return Mapped(event, old, planned(_remembering(self._new[name], answers), event.new, self._context))


def differences(found: Mapped, applied_hash: bytes | None, counts: Counts) -> Iterator[ConfigDifference]:
    """Compare what each configuration makes of an entity; `applied_hash` is that of what was sent last in its lane."""
    event = found.event.new
    if event.body is None and (_needs_body(found.old) or _needs_body(found.new)):
        if not (found.event.is_evaluated and found.event.pair.reads_body):  # else it is counted already
            counts.without_payload.add(event.seq)
        return
    counts.entities += 1
    if isinstance(found.old, PlannedWrite) and found.old.hashes and applied_hash is not None:
        if applied_hash in found.old.hashes:
            counts.hash_agrees += 1
        else:
            counts.hash_differs.add(event.seq)
    if isinstance(found.old, Failed) and isinstance(found.new, Failed):
        counts.not_mapped.add(event.seq)
    for kind, name, before, after, why in _differing(found.old, found.new):
        yield ConfigDifference(kind, event.seq, event.source, event.route, name, before, after, why)


def _differing(
    old: PlannedWrite | Outcome | None, new: PlannedWrite | Outcome
) -> Iterator[tuple[Kind, str, Any, Any, str | None]]:
    if isinstance(new, Failed):
        if not isinstance(old, Failed):
            yield "fails", "sync", None if old is None else _change(old), None, new.error
    elif isinstance(old, Failed):
        yield "works", "sync", None, _change(new), old.error
    elif old is not None and _change(old) != _change(new):
        yield "change", "sync", _change(old), _change(new), None
    elif isinstance(old, PlannedWrite) and isinstance(new, PlannedWrite):
        for name, before, after in _changed(old, new):
            yield "value", name, before, after, None


def _needs_body(found: PlannedWrite | Outcome | None) -> bool:
    return isinstance(found, Failed) and found.error == str(BodyErased())


def _change(found: PlannedWrite | Outcome) -> str:
    return found.change if isinstance(found, PlannedWrite) else "none"


def _changed(old: PlannedWrite, new: PlannedWrite) -> Iterator[tuple[str, Any, Any]]:
    before, after = old.fields or {}, new.fields or {}
    for name in {**before, **after}:
        if before.get(name) != after.get(name):
            yield f"sync.map.{name}", before.get(name), after.get(name)
    key = f"sync.{old.change}"
    if old.request != new.request:
        yield key, old.request, new.request
    if before == after and old.body != new.body:
        yield f"{key}.body", _text(old.body), _text(new.body)


def _text(body: bytes | None) -> str | None:
    return None if body is None else body.decode("utf-8", "replace")


def _syncs(config: Config, names: frozenset[str]) -> dict[str, Sync]:
    routes = {name: route for name, route in config.routes.items() if name in names}
    made = build(msgspec.structs.replace(config, routes=routes))
    return {name: deliverer for name, deliverer in made.items() if isinstance(deliverer, Sync)}


def _sharing(sync: Sync, name: str, configs: tuple[Config, Config], others: Mapping[str, Sync]) -> Sync:
    """Return the sync with the clients of its counterpart, as far as these call the same endpoints in the same way."""
    if name not in others:
        return sync
    (old_api, old_destination), (api, destination) = (_endpoints(config, name) for config in configs)
    return Sync(
        sync.plan,
        others[name].api if same(old_api, api) else sync.api,
        others[name].destination if same(old_destination, destination) else sync.destination,
    )


def _endpoints(config: Config, name: str) -> tuple[object, object]:
    route = config.routes[name]
    api = None if route.sync is None else config.apis[route.sync.fetch.api]
    return api, config.destinations[route.destination]


def _concurrency(configs: Iterable[Config], names: frozenset[str]) -> int:
    """Return as many calls at a time as each of the endpoints takes."""
    limits = [
        min(config.destinations[route.destination].concurrency, config.apis[route.sync.fetch.api].concurrency)
        for config in configs
        for name, route in config.routes.items()
        if name in names and route.sync is not None
    ]
    return min(limits, default=1)


def _remembering(sync: Sync, answers: dict[tuple[object, ...], Answer]) -> Sync:
    return Sync(sync.plan, _Remembering(sync.api, answers), _Remembering(sync.destination, answers))


class _Remembering:
    """A client that makes each call of one entity once."""

    def __init__(self, client: Caller, answers: dict[tuple[object, ...], Answer]) -> None:
        self._client = client
        self._answers = answers

    @property
    def base(self) -> str:
        return self._client.base

    def call(self, request: Request, limits: Limits) -> Answer:
        own = tuple(sorted(request.own_headers.items()))
        key = (id(self._client), request.step, request.method, request.path, request.query, request.body, own)
        if key not in self._answers:
            self._answers[key] = self._client.call(request, limits)
        return self._answers[key]

    def close(self) -> None:
        self._client.close()
