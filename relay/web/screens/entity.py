"""`/entities/{source}/{type}/{id}`: everything about one entity, and both sides of its sync routes. Nothing is written."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable, Iterator, Mapping
from datetime import datetime
from functools import partial
from typing import Annotated, Any, TypeVar

import falcon
import msgspec
from falcon.asgi import Request, Response

from inbox.clock import Clock, steady
from inbox.config.model import Config, Route, SyncDestination
from inbox.config.routing import ROUTE_LANE, entity_lane, routes_of
from inbox.db.entity_reads import EntityRead, entity
from inbox.db.reads import Row
from inbox.errors import BadFilter, ConfigError, NotAllowed, NothingThere, PageError, TooManyComparisons
from relay.delivery.outcome import Delivery
from relay.destinations import sync
from relay.destinations.base import Clients, Context
from relay.destinations.preview import Preview, preview
from relay.store import entities
from relay.web import render
from relay.web.access.accounts import Actor
from relay.web.problems import set_status
from relay.web.query import Limit, Number, Text, encode, of_path, parameters, parse
from relay.web.reading import Readers, Reading, Screen
from relay.web.screens.event import Hold
from relay.words import command, held_back

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


ENTITY_DIFFERENCE = f"{SCREEN.path}/difference"
LONGEST_COMPARISON_SECONDS = 30.0
"""A comparison ends after so long, whatever the other systems do."""
COMPARISONS_AT_ONCE = 2
"""Comparisons that run at a time."""

Made = TypeVar("Made")


class DifferenceQuery(msgspec.Struct, frozen=True, kw_only=True):
    """The entity and the route."""

    source: Identifier
    type: Identifier
    """Type of the entity, such as USER."""
    id: Identifier
    """Its id, as the source gives it."""
    route: Text | None = None
    """Route whose two sides are compared; without it the answer names those that can be."""


class DifferenceResource:
    """Compares both sides for operators."""

    def __init__(self, readers: Readers, renderer: render.Renderer, clock: Clock) -> None:
        self._readers, self._renderer, self._clock = readers, renderer, clock
        self._free = threading.BoundedSemaphore(COMPARISONS_AT_ONCE)

    async def on_get(self, req: Request, resp: Response, **path: Any) -> None:  # noqa: ANN401  # parts of the path
        """Show the difference as HTML."""
        actor = req.context.actor
        query = of_path(DifferenceQuery, path, self._clock.now())
        found, problem = None, None
        try:
            query = self._query(req.params, path)
            found = await self._compare(actor, query)
        except (NothingThere, NotAllowed):
            raise
        except PageError as error:
            problem = error
            set_status(resp, error)
        resp.content_type = render.TYPE
        resp.text = self._renderer.render(
            "difference.html",
            now=self._clock.now(),
            title="Difference",
            here=SCREEN.path,
            query=query,
            found=found,
            problem=problem,
            actor=actor,
            live=None,
        )

    async def on_get_json(self, req: Request, resp: Response, **path: Any) -> None:  # noqa: ANN401  # parts of the path
        """Answer with the difference as JSON."""
        found = await self._compare(req.context.actor, self._query(req.params, path))
        resp.content_type = falcon.MEDIA_JSON
        resp.data = encode(found)

    def _query(self, given: Mapping[str, object], path: Mapping[str, object]) -> DifferenceQuery:
        now = self._clock.now()
        of_path(DifferenceQuery, path, now)
        return parse(DifferenceQuery, parameters(given, path), now)

    async def _compare(self, actor: Actor, query: DifferenceQuery) -> Preview:
        """Make the comparison.

        Raises:
            NotAllowed: by a viewer, as it shows values of both sides.
            BadFilter: the route can't be compared.
            NothingThere: there is no such entity.
            TooManyComparisons: as many run as may.
        """
        if not actor.may_act:
            raise NotAllowed("only an operator may compare both sides: it shows their values")
        config = self._readers.config
        _check_route(config, query)
        delivery = await self._readers.read(actor, partial(_newest, query=query))
        return await self._apart(lambda: _preview(config, delivery, self._clock))

    async def _apart(self, make: Callable[[], Made]) -> Made:
        """Run `make` in a thread of its own. It counts as running until it has ended, whoever waits for it."""
        if not self._free.acquire(blocking=False):
            raise TooManyComparisons(
                f"{COMPARISONS_AT_ONCE} comparisons run, and no more may at a time; try again in some seconds"
            )
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Made] = loop.create_future()

        def answer(set_it: Callable[[], None]) -> None:
            if not future.done():  # who asked may have gone
                set_it()

        def work() -> None:
            try:
                made = make()
                done = partial(future.set_result, made)
            except Exception as error:  # noqa: BLE001  # who waits for it raises it
                done = partial(future.set_exception, error)
            finally:
                self._free.release()
            with contextlib.suppress(RuntimeError):  # the loop was closed
                loop.call_soon_threadsafe(answer, done)

        threading.Thread(target=work, name="web-difference", daemon=True).start()
        return await future


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
    found = entities.newest(reading.database, query.source, str(query.route), (query.type, query.id))
    if found is None:
        raise NothingThere(f"no event of the source {query.source!r} is about {query.type}/{query.id}")
    return found


def _preview(config: Config, delivery: Delivery, clock: Clock) -> Preview:
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
        return preview(made, delivery, Context(lambda: end, threading.Event(), clock.now))
    finally:
        made.close()
