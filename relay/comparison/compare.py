"""The fate of one event under each of two configurations, without asking another system. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial

import msgspec

from inbox.config.model import Config, Route
from inbox.config.routing import lane_of, matches
from inbox.errors import collect_config_errors
from relay.comparison.differences import ConfigDifference, Counts, Kind, Noted
from relay.comparison.lanes import SeenKeys
from relay.comparison.parts import Failure
from relay.comparison.reading import (
    Arrived,
    Identified,
    NotAccepted,
    Payload,
    Reader,
    changed_fields,
    readers,
    stored_identity,
)
from relay.comparison.route_pair import RoutePair, pair_of
from relay.comparison.settings import masked, reads_alike
from relay.delivery.outcome import Delivery
from relay.sync.compiled_route import event_scope
from relay.sync.expressions import Scope


class SourcePair(msgspec.Struct, frozen=True):
    """A source in both configurations."""

    old: Reader | None
    """Reads requests as today; None: there is no such source."""
    new: Reader | None
    rereads: bool
    """The two may read a request to different events."""
    routes: tuple[RoutePair, ...]

    @property
    def needs_payload(self) -> bool:
        """True when none of its events can be compared by its columns alone."""
        return self.rereads or any(pair.needs_payload for pair in self.routes)

    def adds_by_payload(self, event: Arrived) -> bool:
        """Return True when a route newly takes the event, and a part of its request looks into the payload."""
        reading = [pair for pair in self.routes if pair.new_parts.reads_body]
        if not reading or self.new is None:
            return False
        identity = stored_identity(event)
        is_new = self.old is None or self.old.rejection(event) is not None
        return any(_takes(pair.new, identity) and (is_new or not _takes(pair.old, identity)) for pair in reading)


class RoutedEvent(msgspec.Struct, frozen=True):
    """An event on a route of the new configuration, as a delivery under each of both."""

    pair: RoutePair
    old: Delivery | None
    """None: today's configuration routes it to nothing that could be compared."""
    new: Delivery
    is_evaluated: bool
    """The parts of its request were evaluated."""


class Comparison:
    """Compares events under today's configuration and a new one."""

    def __init__(self, old: Config, new: Config, *, fetches: bool = False, only_route: str | None = None) -> None:
        """Compile both. With `fetches`, what entities decide is compared elsewhere: see `relay.comparison.fetching`.

        Raises:
            ConfigError: something in one of them can't be used. The text has a line for each mistake.
        """
        self.counts = Counts()
        self._noted: dict[int, int] = {}
        self._only_route = only_route
        pairs = partial(_route_pairs, old, new, fetches=fetches, only_route=only_route)
        names = dict.fromkeys((*old.sources, *new.sources))
        routes = collect_config_errors({name: partial(pairs, name) for name in names})
        before, after = readers(old), readers(new)
        self._sources: Mapping[str, SourcePair] = {
            name: SourcePair(before.get(name), after.get(name), _rereads(old, new, name), of_source)
            for name, of_source in routes.items()
        }

    @property
    def route_pairs(self) -> Iterator[RoutePair]:
        """Yield the routes of all sources."""
        for source in self._sources.values():
            yield from source.routes

    def needs_payload(self, event: Arrived) -> bool:
        """Return True when the comparison of this event looks into its payload."""
        source = self._sources.get(event.source)
        return source is not None and (source.needs_payload or source.adds_by_payload(event))

    def compare(
        self, event: Arrived, payload: Payload | None, seen: SeenKeys
    ) -> Iterator[ConfigDifference | RoutedEvent]:
        """Compare one event, and yield the differences; also the event on each route where what is sent may differ.

        `seen` remembers lanes and keys of all events.
        """
        self.counts.events += 1
        source = self._sources.get(event.source)
        if source is None:  # it was removed before
            self._note(self.counts.stored_otherwise, event)
            return
        old, new = self._identities(source, event, payload)
        if isinstance(new, NotAccepted):
            if isinstance(old, NotAccepted):
                self._note(self.counts.stored_otherwise, event)
            else:
                yield ConfigDifference("rejected", event.seq, event.source, why=new.why)
            return
        if isinstance(old, NotAccepted):
            yield ConfigDifference("accepted", event.seq, event.source, why=old.why)
            yield from self._routes(source, _Scopes(event, payload), None, new, seen)
            return
        if source.rereads:
            yield from _fields(event, old, new, seen)
        yield from self._routes(source, _Scopes(event, payload), old, new, seen)

    def _note(self, noted: Noted, event: Arrived) -> None:
        """Count an event, once though it may be so on several routes."""
        if self._noted.get(id(noted)) != event.seq:
            self._noted[id(noted)] = event.seq
            noted.add(event.seq)

    def _identities(
        self, source: SourcePair, event: Arrived, payload: Payload | None
    ) -> tuple[Identified | NotAccepted, Identified | NotAccepted]:
        """Return the event as each configuration reads it, or why it would reject it."""
        stored = stored_identity(event)
        old: Identified | NotAccepted = stored
        new: Identified | NotAccepted = stored
        if source.rereads and not event.is_swept:
            if payload is None:
                self._note(self.counts.without_payload, event)
            elif source.old is not None and source.new is not None:
                old, new = source.old.read(event, payload), source.new.read(event, payload)
                if isinstance(old, NotAccepted) and isinstance(new, NotAccepted):
                    # The request had more than what is stored of it.
                    self._note(self.counts.not_read_again, event)
                    old = new = stored
        return _accepted(source.old, event, old), _accepted(source.new, event, new)

    def _routes(
        self,
        source: SourcePair,
        scopes: _Scopes,
        old: Identified | None,
        new: Identified,
        seen: SeenKeys,
    ) -> Iterator[ConfigDifference | RoutedEvent]:
        event, taken = scopes.event, set()
        for pair in source.routes:
            was = old if old is not None and _takes(pair.old, old) else None
            if was is not None:
                taken.add(pair.name)
            if pair.new is None or not _takes(pair.new, new):
                if was is not None:
                    yield ConfigDifference("removed", event.seq, event.source, pair.name)
                continue
            if was is None:
                yield ConfigDifference("added", event.seq, event.source, pair.name)
            else:
                yield from _lane(pair, event, was, new, seen, rereads=source.rereads)
                yield from _settings(pair, event)
            is_evaluated = pair.evaluates_for(was, new)
            if is_evaluated:
                yield from self._parts(pair, pair.new, scopes, was, new)
            if pair.fetches and pair.differs_for(was, new):
                before = _comparable(pair, was)
                delivery = None if before is None else scopes.delivery(*before)
                yield RoutedEvent(pair, delivery, scopes.delivery(pair.new, new), is_evaluated)
        stored = event.routes if self._only_route is None else event.routes & {self._only_route}
        if taken != stored or (old is not None and source.rereads and old != stored_identity(event)):
            self._note(self.counts.stored_otherwise, event)

    def _parts(
        self, pair: RoutePair, route: Route, scopes: _Scopes, old: Identified | None, new: Identified
    ) -> Iterator[ConfigDifference]:
        event = scopes.event

        def found(kind: Kind, name: str, before: object, after: object, why: str | None = None) -> ConfigDifference:
            shown = masked(name, before), masked(name, after)
            return ConfigDifference(kind, event.seq, event.source, pair.name, name, *shown, why)

        compared = _comparable(pair, old)
        before = {} if compared is None else pair.old_parts.evaluate(scopes.scope(*compared))
        after = pair.new_parts.evaluate(scopes.scope(route, new))
        unknown = {*pair.new_parts.of} - {*after} | (set() if compared is None else {*pair.old_parts.of} - {*before})
        if unknown:
            self._note(self.counts.without_payload, event)
        for name in {**before, **after}:
            if name in unknown:
                continue
            was, value = before.get(name), after.get(name)
            if isinstance(value, Failure):
                if isinstance(was, Failure):
                    self._note(self.counts.fails_in_both, event)
                else:
                    yield found("fails", name, was, None, value.why)
            elif isinstance(was, Failure):
                yield found("works", name, None, value, was.why)
            elif compared is not None and was != value:
                yield found("value", name, was, value)


class _Scopes:
    """The scopes of an event, each made once: a large body is parsed once for all routes."""

    def __init__(self, event: Arrived, payload: Payload | None) -> None:
        self.event = event
        self._payload = payload
        self._made: dict[Identified, Scope] = {}

    def scope(self, route: Route, identity: Identified) -> Scope:
        if identity not in self._made:
            self._made[identity] = event_scope(self.delivery(route, identity))
        return {"event": self._made[identity], "entity": None, "target": None}

    def delivery(self, route: Route, identity: Identified) -> Delivery:
        """Return the event as if it were delivered now on this route."""
        payload = self._payload
        return Delivery(
            seq=self.event.seq,
            route=route.name,
            lane=_lane_of(route, identity),
            attempt=1,
            run=0,
            lease_token=0,
            source=self.event.source,
            received_at=self.event.received_at,
            content_type=self.event.content_type,
            traceparent=self.event.traceparent,
            headers={} if payload is None else payload.headers,
            body=None if payload is None else payload.body,
            **msgspec.structs.asdict(identity),
        )


def _route_pairs(
    old: Config, new: Config, source: str, *, fetches: bool, only_route: str | None
) -> tuple[RoutePair, ...]:
    before = {route.name: route for route in old.routes.values() if route.source == source}
    after = {route.name: route for route in new.routes.values() if route.source == source}
    made = collect_config_errors(
        {
            name: partial(pair_of, old, new, name, before.get(name), after.get(name), fetches=fetches)
            for name in dict.fromkeys((*before, *after))
            if only_route in {None, name}
        }
    )
    return tuple(made.values())


def _rereads(old: Config, new: Config, source: str) -> bool:
    before, after = old.sources.get(source), new.sources.get(source)
    return before is not None and after is not None and not reads_alike(before, after)


def _accepted(reader: Reader | None, event: Arrived, identity: Identified | NotAccepted) -> Identified | NotAccepted:
    if reader is None:
        return NotAccepted("there is no such source")
    if isinstance(identity, NotAccepted):
        return identity
    why = reader.rejection(event)
    return identity if why is None else NotAccepted(why)


def _takes(route: Route | None, identity: Identified) -> bool:
    return route is not None and matches(route.when, identity.entity_type, identity.event_type, identity.action)


def _comparable(pair: RoutePair, old: Identified | None) -> tuple[Route, Identified] | None:
    """Return today's route and event; None where what they send can't be compared with what the new route sends."""
    return None if old is None or pair.old is None or pair.is_replaced else (pair.old, old)


def _lane_of(route: Route, identity: Identified) -> str:
    return lane_of(route, entity_type=identity.entity_type, entity_id=identity.entity_id, key=identity.dedup_key)


def _fields(event: Arrived, old: Identified, new: Identified, seen: SeenKeys) -> Iterator[ConfigDifference]:
    """Yield the fields that are read otherwise, and whether the event would be a duplicate of a later one."""
    for name, before, after in changed_fields(old, new):
        yield ConfigDifference("event", event.seq, event.source, name=name, before=before, after=after)
    is_new_key = seen.first("new", event.source, new.dedup_key)
    is_old_key = seen.first("old", event.source, old.dedup_key)
    if is_old_key and not is_new_key:
        yield ConfigDifference("duplicate", event.seq, event.source, name="dedup_key", after=new.dedup_key)


def _lane(
    pair: RoutePair, event: Arrived, old: Identified, new: Identified, seen: SeenKeys, *, rereads: bool
) -> Iterator[ConfigDifference]:
    if pair.old is None or pair.new is None or (pair.old.lane == pair.new.lane and not rereads):
        return
    before, after = _lane_of(pair.old, old), _lane_of(pair.new, new)
    seen.add_lanes(event.source, pair.name, before, after, event.seq)
    if before != after:
        yield ConfigDifference("lane", event.seq, event.source, pair.name, before=before, after=after)


def _settings(pair: RoutePair, event: Arrived) -> Iterator[ConfigDifference]:
    for setting in pair.settings:
        yield ConfigDifference(
            "setting", event.seq, event.source, pair.name, setting.name, before=setting.before, after=setting.after
        )
