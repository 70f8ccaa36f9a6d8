"""`/entities/{source}/{type}/{id}`: everything about one entity, and both sides of its sync routes. Nothing is written."""

from __future__ import annotations

import threading
from typing import Annotated

import msgspec

from inbox.clock import SystemClock, steady
from inbox.config.model import Config, Route, SyncDestination
from inbox.config.routing import ROUTE_LANE, entity_lane, routes_of
from inbox.db.reads import EventOfEntity, Row, entity
from inbox.errors import BadFilter, ConfigError, NotAllowed, NothingThere
from relay.delivery.outcome import Delivery
from relay.destinations import sync
from relay.destinations.base import Clients, Context
from relay.destinations.preview import Preview, preview
from relay.store import events
from relay.web.query import Limit, Number, Text
from relay.web.reading import Reading, Screen
from relay.words import Hold, command, held_back

Identifier = Annotated[str, msgspec.Meta(min_length=1, max_length=10_000)]


class EntityQuery(msgspec.Struct, frozen=True, kw_only=True):
    """The entity, and the place in its events."""

    source: Identifier
    type: Identifier
    """Type of the entity, such as USER."""
    id: Identifier
    """Its id, as the source gives it."""
    before: Number | None = None
    """Only events below this seq."""
    limit: Limit = 20
    """Most events of a page."""


class EntityLane(msgspec.Struct, frozen=True):
    """A lane of the entity."""

    route: str
    destination: str
    unit: str
    """`entity`, or `route` where the whole route is one lane."""
    head_seq: int | None
    """The delivery that is worked on now, or blocks the lane; None: nothing is open."""
    head_state: str | None
    waiting: int
    """Counted up to 501."""
    dead: int
    delivered_seq: int | None
    """The newest event that was delivered there."""
    can_compare: bool
    """It is a sync route that takes this type: both sides can be compared."""


class EntityPage(msgspec.Struct, frozen=True):
    """An entity, and a page of its events, the newest first."""

    events: tuple[EventOfEntity, ...]
    before: int | None
    """Value of the parameter `before` for the next page; None: there is no more."""
    is_cut: bool
    """The last of these events have more lines than are shown; their own pages list them."""
    lanes: tuple[EntityLane, ...]
    holds: tuple[Hold, ...]
    """Gates that hold its deliveries back now."""
    is_paused: bool
    """The entity itself is paused."""
    cli: str
    sql: str
    """The same on the command line, and for psql or sqlite3."""


def read(reading: Reading, query: EntityQuery) -> EntityPage:
    """Read an entity."""
    routes = routes_of(query.source, reading.config.routes.values())
    lanes = [(route.name, lane) for route in routes if (lane := _lane(route, query)) is not None]
    name = (query.source, query.type, query.id)
    found = entity(reading.database.engine, name, lanes, before=query.before, limit=query.limit)
    if not found.events and query.before is None:
        raise NothingThere(f"no event of the source {query.source!r} is about {query.type}/{query.id}")
    about: Row = {"source": query.source, "entity_type": query.type, "entity_id": query.id, "gates": found.gates}
    holds = {hold.says: hold for route in routes for hold in held_back(about, route.name, reading.config, reading.now)}
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
        cli=command_for(query),
        sql=_sql(query),
    )


def _lane(route: Route, query: EntityQuery) -> str | None:
    """Return the lane of the entity on a route; None: each of its events is a lane there."""
    if route.lane == "route":
        return ROUTE_LANE
    return entity_lane(query.type, query.id) if route.lane == "entity" else None


def can_compare(route: Route, entity_type: str) -> bool:
    """Tell whether both sides of a route can be compared for entities of this type."""
    return route.sync is not None and (not route.when.entity_type or entity_type in route.when.entity_type)


def command_for(query: EntityQuery) -> str:
    """Return the command that lists the entity's events."""
    return command("list", "--source", query.source, "--entity", f"{query.type}/{query.id}").replace(
        "relay", "inbox", 1
    )


def _sql(query: EntityQuery) -> str:
    values = (("source", query.source), ("entity_type", query.type), ("entity_id", query.id))
    conditions = " AND ".join(f"{column} = {_literal(value)}" for column, value in values)
    return f"SELECT * FROM entity_timeline WHERE {conditions} ORDER BY at, seq, fact_id, what;"


def _literal(value: str) -> str:
    return "'" + value.replace("'", "''") + "'"


SCREEN = Screen(
    name="entity",
    path="/entities/{source}/{type}/{id}",
    title="Entity",
    query=EntityQuery,
    page=EntityPage,
    read=read,
    template="entity.html",
    in_menu=False,
)


LONGEST_COMPARISON_SECONDS = 30.0
"""A comparison ends after so long, whatever the other systems do."""


class DifferenceQuery(msgspec.Struct, frozen=True, kw_only=True):
    """The entity and the route."""

    source: Identifier
    type: Identifier
    """Type of the entity, such as USER."""
    id: Identifier
    """Its id, as the source gives it."""
    route: Text | None = None
    """Route whose two sides are compared; without it the answer names those that can be."""


def read_difference(reading: Reading, query: DifferenceQuery) -> Preview:
    """Compare both sides of a route for an entity, for operators: it shows values of both.

    Raises:
        NotAllowed: by a viewer.
        BadFilter: the route can't be compared.
        NothingThere: there is no such entity.
    """
    if not reading.actor.may_act:
        raise NotAllowed("only an operator may compare both sides: it shows their values")
    _check_route(reading.config, query)
    return _preview(reading.config, _newest(reading, query))


def _check_route(config: Config, query: DifferenceQuery) -> None:
    able = [
        route.name
        for route in config.routes.values()
        if route.source == query.source and can_compare(route, query.type)
    ]
    if query.route not in able:
        known = f"; those of this entity: {', '.join(able)}" if able else "; no route of this entity can"
        raise BadFilter(f"route {query.route!r} has no two sides that can be compared{known}", field="route")


def _newest(reading: Reading, query: DifferenceQuery) -> Delivery:
    found = events.newest_of_entity(reading.database, query.source, str(query.route), (query.type, query.id))
    if found is None:
        raise NothingThere(f"no event of the source {query.source!r} is about {query.type}/{query.id}")
    return found


def _preview(config: Config, delivery: Delivery) -> Preview:
    """Fetch both sides. The clients have their own time limits, and the lease ends all together."""
    route = config.routes[delivery.route]
    destination = config.destinations[route.destination]
    assert isinstance(destination, SyncDestination)  # noqa: S101  # as the loader requires of a sync route
    try:
        made = sync.build(route, destination, Clients(config))
    except ConfigError as error:
        raise BadFilter(f"the route can't be used: {error}", field="route") from None
    end = steady() + LONGEST_COMPARISON_SECONDS
    try:
        return preview(made, delivery, Context(lambda: end, threading.Event(), SystemClock().now))
    finally:
        made.close()


DIFFERENCE = Screen(
    name="difference",
    path=f"{SCREEN.path}/difference",
    title="Difference",
    query=DifferenceQuery,
    page=Preview,
    read=read_difference,
    template="difference.html",
    in_menu=False,
    is_live=False,
)
