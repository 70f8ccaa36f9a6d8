"""Puts the receiver together: the routes of the Falcon app, and what lives as long as a worker."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from functools import cache, partial
from typing import Any

import falcon
import falcon.asgi
from falcon.asgi import Request, Response

from inbox.clock import Clock, SystemClock
from inbox.config.model import Config, Source
from inbox.db import engine
from inbox.db.dialect import SQLITE
from inbox.errors import CAUSES, RequestError, Unavailable, collect_config_errors
from inbox.http.limits import Bucket, Capacity, MemoryBudget
from inbox.http.problems import PROBLEM_TYPE, answer_bug, answer_problem, problem
from inbox.http.scope import CAPACITY, METERS
from inbox.receiver.outcome_waiter import OutcomeWaiter
from inbox.receiver.resource import Outcomes, SourceEndpoint, Webhooks, Writer
from inbox.receiver.writer import GroupCommit
from inbox.receiver.writers import WriterPair
from inbox.sources import preset_of
from inbox.sources.credentials import even_out, verifier_of
from inbox.telemetry.metrics import DUPLICATES, OFF, RECEIVED, RECEIVER, REJECTED, UNKNOWN, Meters
from inbox.telemetry.recorder import make_recorder

Receiver = falcon.asgi.App[Request, Response]

READY_CACHED_SECONDS = 1.0
"""A load balancer may ask as often as it likes."""


def app_of(config: Config) -> Receiver:
    """The receiver that `config` describes, writing to its database.

    Raises:
        ConfigError: as `create_app`.
    """
    clock = SystemClock()

    @cache
    def open_meters() -> Meters:
        if config.metrics.receiver is None:
            return OFF
        return _at_zero(make_recorder(RECEIVER), config)

    def open_writer() -> Writer:
        made = engine.connect_async(config.database.url, application="inbox-receiver")
        writer = GroupCommit(made, clock, meters=open_meters())
        if made.dialect.name == SQLITE:
            return writer
        return WriterPair(writer, GroupCommit(made, clock, meters=open_meters()))

    def open_outcomes() -> Outcomes:
        return OutcomeWaiter(engine.connect_async(config.database.url, application="inbox-receiver-waiting"))

    return create_app(config, open_writer, clock, open_outcomes, open_meters)


def create_app(
    config: Config,
    open_writer: Callable[[], Writer],
    clock: Clock,
    open_outcomes: Callable[[], Outcomes] | None = None,
    open_meters: Callable[[], Meters] = lambda: OFF,
) -> Receiver:
    """The receiver. What opens something is called in each worker, inside its event loop, when it starts.

    Nothing here needs an event loop, and nothing is open afterwards: processes that are forked later may share it.

    Raises:
        ConfigError: a source's preset or secret is not there. The text has a line for each that is not.
    """
    inlets = inlets_of(config)
    nobodys = even_out(inlet.verifier for inlet in inlets.values())
    webhooks = Webhooks(inlets, nobodys, clock, MemoryBudget(config.receiver.memory))
    health = Health()
    capacity = Capacity(
        connections=config.receiver.connections,
        requests=config.receiver.requests,
        per_connection=config.receiver.requests_per_connection,
    )
    lifespan = _Lifespan(
        webhooks, health, capacity, open_writer=open_writer, open_outcomes=open_outcomes, open_meters=open_meters
    )
    app = falcon.asgi.App(middleware=[lifespan])
    app.add_error_handler(RequestError, answer_problem)
    app.add_error_handler(Exception, answer_bug)
    app.set_error_serializer(_serialize_problem)
    app.add_route("/webhooks/{source}", webhooks)
    app.add_route("/webhooks/{source}/{token}", webhooks)
    app.add_route("/health/live", health, suffix="live")
    app.add_route("/health/ready", health, suffix="ready")
    return app


def inlets_of(config: Config) -> dict[str, SourceEndpoint]:
    """Each source with its preset and its verifier.

    Raises:
        ConfigError: as `create_app`.
    """
    return collect_config_errors({name: partial(_inlet, config, source) for name, source in config.sources.items()})


def _inlet(config: Config, source: Source) -> SourceEndpoint:
    preset = preset_of(source)
    routes = tuple(route for route in config.routes.values() if route.source == source.name)
    bucket = None if source.rate is None else Bucket(source.rate)
    return SourceEndpoint(
        source=source, preset=preset, verifier=verifier_of(source, preset), routes=routes, bucket=bucket
    )


def _at_zero(meters: Meters, config: Config) -> Meters:
    """What is known by name stands at zero from the start: what is not there can't be seen to rise."""
    causes = sorted(CAUSES)
    for source in (*config.sources, UNKNOWN):
        for cause in causes:
            meters.count(REJECTED, source, cause, by=0)
    for source in config.sources:
        meters.count(RECEIVED, source, by=0)
        meters.count(DUPLICATES, source, by=0)
    return meters


class Health:
    """`/health/live`: the process answers. `/health/ready`: it can write to the database, asked at most once a second."""

    def __init__(self) -> None:
        self.writer: Writer | None = None
        self._asked_at = float("-inf")
        self._problem: Unavailable | None = None
        self._asking = asyncio.Lock()

    async def on_get_live(self, _req: Request, resp: Response) -> None:
        """200 as long as the process serves."""
        resp.media = {"status": "live"}

    async def on_get_ready(self, _req: Request, resp: Response) -> None:
        """200 when a webhook could be stored now, or else 503."""
        async with self._asking:
            if time.monotonic() - self._asked_at >= READY_CACHED_SECONDS:
                self._problem = await self._ask()
                self._asked_at = time.monotonic()
        if self._problem is not None:
            raise Unavailable(self._problem.detail)
        resp.media = {"status": "ready"}

    async def _ask(self) -> Unavailable | None:
        if self.writer is None:
            return Unavailable("the receiver is starting")
        try:
            await self.writer.probe()
        except Unavailable as problem_now:
            return problem_now
        return None


class _Lifespan:
    """Opens what a worker needs when it starts, and closes it when it stops."""

    def __init__(
        self,
        webhooks: Webhooks,
        health: Health,
        capacity: Capacity,
        *,
        open_writer: Callable[[], Writer],
        open_outcomes: Callable[[], Outcomes] | None,
        open_meters: Callable[[], Meters],
    ) -> None:
        self._capacity = capacity
        self._open_writer = open_writer
        self._open_outcomes = open_outcomes
        self._open_meters = open_meters
        self._webhooks = webhooks
        self._health = health
        self._writer: Writer | None = None

    async def process_startup(self, scope: Mapping[str, Any], _event: Mapping[str, Any]) -> None:
        """Called by the ASGI server before the first request."""
        scope.get("state", {})[CAPACITY] = self._capacity
        self._writer = self._webhooks.writer = self._health.writer = self._open_writer()
        self._webhooks.meters = scope.get("state", {})[METERS] = self._open_meters()
        self._webhooks.waiting = None if self._open_outcomes is None else self._open_outcomes()

    async def process_shutdown(self, _scope: Mapping[str, Any], _event: Mapping[str, Any]) -> None:
        """Called by the ASGI server after the last request."""
        if self._webhooks.waiting is not None:
            await self._webhooks.waiting.close()
        if self._writer is not None:
            await self._writer.close()
        self._webhooks.meters.close()


def _serialize_problem(_req: Request, resp: Response, error: falcon.HTTPError) -> None:
    """What Falcon refuses by itself (no such path, no such method) looks like what we refuse."""
    resp.content_type = PROBLEM_TYPE
    resp.data = problem(error.status_code, error.title or str(error.status), error.description)
