"""`/events/{seq}`: an event and its deliveries; `/entity`: an entity and both sides of its sync routes."""

from __future__ import annotations

import shlex
import threading
from typing import Annotated, Literal

import msgspec

from inbox.clock import SystemClock, steady
from inbox.config.model import Route, SyncDestination
from inbox.config.routing import ROUTE_LANE, entity_lane, select_routes
from inbox.db import reads
from inbox.db.reads import Row
from inbox.errors import BadFilter, ConfigError, NotAllowed, NothingThere, QueryTooSlow
from relay.destinations import sync
from relay.destinations.base import Clients, Context
from relay.destinations.preview import Preview, make_preview
from relay.store import events
from relay.store.reads import read_reveals
from relay.web.query import Limit, Number, Text
from relay.web.reading import Reading, describe_rows
from relay.words import ACTS, Hold, RouteProgress, describe_progress, is_gone, list_holds


class EventQuery(msgspec.Struct, frozen=True, kw_only=True):
    """Parameters of an event's page."""

    seq: Number
    """Number of the event."""


class EventPage(msgspec.Struct, frozen=True):
    """An event without headers and body, which a reveal shows."""

    event: Annotated[Row, describe_rows("inbox", is_pruned={"type": "boolean"})]
    payload: Literal["stored", "pruned", "erased"]
    routes: tuple[RouteProgress, ...]
    has_earlier_facts: bool
    """True: there are older facts than those listed."""
    duplicates: tuple[
        Annotated[Row, describe_rows("duplicate_request", "seq", "body_sha256", "body", is_other={"type": "boolean"})],
        ...,
    ]
    times: int
    """Number of duplicate requests."""
    previous_seq: int | None
    """Previous event of the same entity."""
    next_seq: int | None
    reveals: tuple[Annotated[Row, describe_rows("payload_reveal", "seq")], ...]
    """Latest reveals of its payload, newest first: `at`, `who` and `reason`."""


def event(reading: Reading, query: EventQuery) -> EventPage:
    """Read an event."""
    found = reads.event(reading.database.engine, query.seq)
    if found is None:
        raise NothingThere(f"there is no event {query.seq}: it was never stored, or retention has deleted it")
    return EventPage(
        event={name: value for name, value in found.items() if name not in reads.PARTS},
        payload="erased" if found["erased_at"] is not None else "pruned" if found["is_pruned"] else "stored",
        routes=tuple(_progress(found, row, reading) for row in found["deliveries"]),
        has_earlier_facts=found["has_earlier_facts"],
        duplicates=tuple(found["duplicates"]),
        times=sum(row["times"] for row in found["duplicates"]),
        previous_seq=found["previous_seq"],
        next_seq=found["next_seq"],
        reveals=tuple(read_reveals(reading.database, query.seq)),
    )


def _progress(found: Row, row: Row, reading: Reading) -> RouteProgress:
    may_act = reading.actor.may_act
    made = describe_progress(found, row, reading.config, reading.now, with_excerpts=may_act)
    acts = (act for act in ACTS.get(made.state, ()) if not (is_gone(found) and act in {"replay", "retry"}))
    return msgspec.structs.replace(made, acts=tuple(acts)) if may_act else made


# --- entities

Identifier = Annotated[str, msgspec.Meta(min_length=1, max_length=10_000)]


class OfEntity(msgspec.Struct, frozen=True, kw_only=True):
    """Parameters that select an entity."""

    source: Identifier
    type: Identifier
    """Type of the entity, such as USER."""
    id: Identifier
    """Id of the entity at the source."""


class EntityQuery(OfEntity, frozen=True, kw_only=True):
    """Parameters of an entity's page."""

    before: Number | None = None
    """Only events with a lower seq."""
    limit: Limit = 20
    """Maximum number of events on a page."""


class EntityLane(msgspec.Struct, frozen=True):
    """A lane of the entity on one route."""

    route: str
    destination: str
    unit: str
    """`entity`, or `route` if the whole route is one lane."""
    head_seq: int | None
    """First open delivery, which is in progress or blocks the lane; None: nothing is open."""
    head_state: str | None
    waiting: int
    """Waiting deliveries, counted up to 501."""
    dead: int
    delivered_seq: int | None
    """Newest event delivered on this route."""
    can_compare: bool
    """True for a sync route of this type, whose two sides can be compared."""


class EntityPage(msgspec.Struct, frozen=True):
    """An entity and a page of its events, newest first."""

    events: tuple[reads.EventOfEntity, ...]
    before: int | None
    """Parameter `before` for the next page; None: this is the last page."""
    is_cut: bool
    """True if the last events have more lines than shown; the pages of those events list all."""
    lanes: tuple[EntityLane, ...]
    holds: tuple[Hold, ...]
    """Gates that hold the entity's deliveries back now."""
    is_paused: bool
    """True if the entity itself is paused."""
    cli: str
    """Equivalent command."""


def entity(reading: Reading, query: EntityQuery) -> EntityPage:
    """Read an entity."""
    routes = select_routes(query.source, reading.config.routes.values())
    lanes = [(route.name, lane) for route in routes if (lane := _lane(route, query)) is not None]
    name = (query.source, query.type, query.id)
    found = reads.entity(reading.database.engine, name, lanes, before=query.before, limit=query.limit)
    if not found.events and query.before is None:
        raise NothingThere(f"no event of the source {query.source!r} is about {query.type}/{query.id}")
    about: Row = {"source": query.source, "entity_type": query.type, "entity_id": query.id, "gates": found.gates}
    holds = {hold.says: hold for route in routes for hold in list_holds(about, route.name, reading.config, reading.now)}
    return EntityPage(
        events=found.events,
        before=found.before,
        is_cut=found.is_cut,
        lanes=tuple(
            EntityLane(
                **found.lanes[route.name],
                destination=route.destination,
                unit="route" if route.lane == "route" else "entity",
                can_compare=can_compare(route, query.type),
            )
            for route in routes
            if route.name in found.lanes
        ),
        holds=tuple(holds.values()),
        is_paused=any(gate["kind"] == "entity" and gate["paused_at"] is not None for gate in found.gates),
        cli=shlex.join(("inbox", "list", "--source", query.source, "--entity", f"{query.type}/{query.id}")),
    )


def _lane(route: Route, query: EntityQuery) -> str | None:
    """Return the lane of the entity on a route; None if each of its events has its own lane there."""
    if route.lane == "route":
        return ROUTE_LANE
    return entity_lane(query.type, query.id) if route.lane == "entity" else None


def can_compare(route: Route, entity_type: str) -> bool:
    """Return whether both sides of a route can be compared for entities of this type."""
    return route.sync is not None and (not route.when.entity_type or entity_type in route.when.entity_type)


LONGEST_COMPARISON_SECONDS = 30.0
"""Time limit of a comparison."""
_comparing = threading.Semaphore(2)
"""Concurrent comparisons: hanging systems must not occupy all threads of the page."""


class DifferenceQuery(OfEntity, frozen=True, kw_only=True):
    """Parameters of a comparison."""

    route: Text | None = None
    """Sync route to compare; without it, the error lists the possible ones."""


def difference(reading: Reading, query: DifferenceQuery) -> Preview:
    """Compare both sides of a route for an entity. Operators only, since it shows values of both sides.

    Raises:
        NotAllowed: the actor is a viewer.
        BadFilter: the route can't be compared.
        NothingThere: there is no such entity.
        QueryTooSlow: too many comparisons are running.
    """
    if not reading.actor.may_act:
        raise NotAllowed("only operators may compare both sides, since it shows their values")
    config, name = reading.config, str(query.route)
    able = [
        route.name for route in select_routes(query.source, config.routes.values()) if can_compare(route, query.type)
    ]
    if name not in able:
        known = f"; possible for this entity: {', '.join(able)}" if able else "; this entity has no such route"
        raise BadFilter(f"route {query.route!r} can't be compared{known}", field="route")
    newest = events.read_newest_of_entity(reading.database, config.routes[name], (query.type, query.id))
    if newest is None:
        raise NothingThere(f"no event of the source {query.source!r} for this route is about {query.type}/{query.id}")
    destination = config.destinations[config.routes[name].destination]
    assert isinstance(destination, SyncDestination)  # noqa: S101  # as the loader requires of a sync route
    try:
        made = sync.build(config.routes[name], destination, Clients(config))
    except ConfigError as error:
        raise BadFilter(f"the route can't be used: {error}", field="route") from None
    end = steady() + LONGEST_COMPARISON_SECONDS
    if not _comparing.acquire(blocking=False):
        raise QueryTooSlow("too many comparisons are running; try again")
    try:
        return make_preview(made, newest, Context(lambda: end, threading.Event(), SystemClock().now))
    finally:
        _comparing.release()
