"""`/entities/{source}/{type}/{id}`: everything about one entity: its lanes, what holds it, and its events."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from typing import Annotated

import msgspec

from inbox.cli.event_words import command, held_back
from inbox.config.model import Config, Route
from inbox.config.routing import ROUTE_LANE, entity_lane, routes_of
from inbox.db.entity_reads import EntityRead, entity
from inbox.db.reads import Row
from inbox.errors import NothingThere
from relay.web.query import Limit, Number
from relay.web.screen import Reading, Screen
from relay.web.screens.event import Hold

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


class TimelineLine(msgspec.Struct, frozen=True):
    """Something that happened to an event."""

    at: datetime
    what: str
    """`arrived`, `duplicate`, or a kind of fact."""
    route: str | None
    summary: str | None


class EventOfEntity(msgspec.Struct, frozen=True):
    """An event of the entity with all that happened to it, the oldest first."""

    seq: int
    event_type: str
    action: str
    occurred_at: datetime
    received_at: datetime
    timeline: tuple[TimelineLine, ...]


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
    holds = {hold.says: hold for route in routes for hold in _holds(about, route, reading.config, reading.now)}
    return EntityPage(
        events=tuple(_events(found)),
        before=found.before,
        is_cut=found.is_cut,
        lanes=tuple(_entity_lane(found, route, query) for route in routes if route.name in found.lanes),
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


def _holds(about: Row, route: Route, config: Config, now: datetime) -> Iterator[Hold]:
    for says, opens in held_back(about, {"route": route.name}, config, now):
        yield Hold(says, opens)


def _entity_lane(found: EntityRead, route: Route, query: EntityQuery) -> EntityLane:
    row = found.lanes[route.name]
    return EntityLane(
        route=route.name,
        destination=route.destination,
        unit="route" if route.lane == "route" else "entity",
        head_seq=row["head_seq"],
        head_state=row["head_state"],
        waiting=row["waiting"],
        dead=row["dead"],
        delivered_seq=row["delivered_seq"],
        can_compare=can_compare(route, query.type),
    )


def can_compare(route: Route, entity_type: str) -> bool:
    """Tell whether both sides of a route can be compared for entities of this type."""
    return route.sync is not None and (not route.when.entity_type or entity_type in route.when.entity_type)


def _events(found: EntityRead) -> Iterator[EventOfEntity]:
    for event in found.events:
        lines = (
            TimelineLine(line["at"], line["what"], line["route"], line["summary"]) for line in found.lines[event["seq"]]
        )
        yield EventOfEntity(
            seq=event["seq"],
            event_type=event["event_type"],
            action=event["action"],
            occurred_at=event["occurred_at"],
            received_at=event["received_at"],
            timeline=tuple(lines),
        )


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
