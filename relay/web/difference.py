"""`/entities/{source}/{type}/{id}/difference?route=`: both sides of a sync route, field by field. Nothing is written.

It calls other systems, so it has threads of its own: a system that hangs holds up no reader of the page.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, TypeVar

import falcon
import msgspec
from falcon.asgi import Request, Response

from inbox.clock import Clock, steady
from inbox.config.endpoint import SyncDestination
from inbox.config.model import Config
from inbox.errors import BadFilter, ConfigError, NotAllowed, NothingThere, PageError, TooManyComparisons
from relay.delivery.outcome import Delivery
from relay.destinations import sync
from relay.destinations.base import Clients, Context
from relay.destinations.preview import Preview, preview
from relay.store import entities
from relay.web import render
from relay.web.access.accounts import Actor
from relay.web.encoding import encode
from relay.web.problems import set_status
from relay.web.query import Text, of_path, parameters, parse
from relay.web.reading import Readers
from relay.web.screen import Reading
from relay.web.screens import entity as entity_screen
from relay.web.screens.entity import Identifier, can_compare

ENTITY_DIFFERENCE = f"{entity_screen.SCREEN.path}/difference"
LONGEST_SECONDS = 30.0
"""A comparison ends after so long, whatever the other systems do."""
AT_ONCE = 2
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
        self._free = threading.BoundedSemaphore(AT_ONCE)

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
            here=entity_screen.SCREEN.path,
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
            raise TooManyComparisons(f"{AT_ONCE} comparisons run, and no more may at a time; try again in some seconds")
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
    end = steady() + LONGEST_SECONDS
    try:
        return preview(made, delivery, Context(lambda: end, threading.Event(), clock.now))
    finally:
        made.close()
