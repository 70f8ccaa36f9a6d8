"""The receiver's Falcon app: its URLs, health checks, and the services of a worker."""

from __future__ import annotations

import asyncio
import gc
import ipaddress
import time
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any

import falcon
import falcon.asgi
from falcon.asgi import Request, Response

from inbox.clock import Clock, SystemClock
from inbox.config.model import Config
from inbox.config.routing import list_passed_headers, select_routes
from inbox.config.sources import Source
from inbox.db.dialect import SQLITE
from inbox.db.link import Notifier, link_to
from inbox.db.throughput import FLUSH_EVERY_SECONDS, Tally
from inbox.errors import CAUSES, ConfigError, RequestError, Unavailable, collect_config_errors
from inbox.http.bodies import PROBLEM_TYPE, answer_bug, answer_problem, problem
from inbox.http.limits import CAPACITY as CAPACITY_KEY
from inbox.http.limits import METERS, Bucket, Capacity, MemoryBudget
from inbox.observe.metrics import DUPLICATES, OFF, RECEIVED, RECEIVER, REJECTED, REQUEST_SECONDS, UNKNOWN, Meters
from inbox.observe.recorder import make_recorder
from inbox.observe.traces import make_tracer, require_extra
from inbox.receiver.reporting import ThroughputFlusher
from inbox.receiver.wait import OutcomeWaiter
from inbox.receiver.webhook import Services, SourceEndpoint, Webhooks
from inbox.receiver.writer import GroupCommit, WriterPair
from inbox.sources import build_preset
from inbox.sources.credentials import build_verifier, pad_work


def require_known_proxies(config: Config, trusted: Iterable[str]) -> None:
    """Reject a configuration that trusts every proxy while a source lists allowed addresses.

    Raises:
        ConfigError: gunicorn's `forwarded_allow_ips` trusts every address. The message has a line for each source.
    """
    listing = [name for name, source in config.sources.items() if source.allow_from is not None]
    if listing and any(_is_everybody(proxy.strip()) for proxy in trusted):
        told = "FORWARDED_ALLOW_IPS lets every sender claim any address; name your proxies there"
        raise ConfigError("\n".join(f"[sources.{name}] allow_from: {told}" for name in listing))


def _is_everybody(proxy: str) -> bool:
    try:
        return proxy == "*" or ipaddress.ip_network(proxy).prefixlen == 0
    except ValueError:  # gunicorn reports it
        return False


# --- the app


Receiver = falcon.asgi.App[Request, Response]

_STATUSES_FROM_THE_START = ("200", "500", "503")
"""Statuses whose response counts start at 0, as the service level objective compares them."""

CAPACITY = Capacity(connections=4000, requests=1000, per_connection=1000)
"""Limits of each worker process. Requests that wait for an outcome count too."""

MEMORY = 256 * 1024 * 1024
"""Bytes of memory for the bodies of a worker process: enough for two bodies of the largest `max_body`."""

READY_CACHED_SECONDS = 1.0
"""Seconds for which readiness is cached, so that load balancers may ask as often as they like."""


def make_app(config: Config) -> Receiver:
    """Create the receiver of a configuration, writing to its database.

    Raises:
        ConfigError: as `create_app`.
    """
    clock = SystemClock()
    require_extra(config.traces.endpoint)
    return create_app(config, partial(open_services, config, clock), clock)


def open_services(config: Config, clock: Clock) -> Services:
    """Open the services of a worker of `make_app`, inside its event loop and after the last fork."""
    meters = OFF if config.metrics.receiver is None else _start_at_zero(make_recorder(RECEIVER), config)
    tally = Tally()
    make_link = partial(link_to, config.database.url, application="inbox-receiver")
    figures_link = make_link()
    is_sqlite = figures_link.dialect == SQLITE
    notifier = Notifier(make_link()) if config.database.wake_up and not is_sqlite else None

    def make_writer() -> GroupCommit:
        return GroupCommit(make_link(), clock, meters=meters, tally=tally, notifier=notifier)

    writer = make_writer() if is_sqlite else WriterPair(make_writer(), make_writer())
    waiter = OutcomeWaiter(partial(link_to, config.database.url, application="inbox-receiver-waiting"))
    flusher = ThroughputFlusher(figures_link, tally, FLUSH_EVERY_SECONDS)
    tracer = make_tracer(config.traces.endpoint, config.traces.ratio, "inbox-receiver")
    return Services(writer, meters, waiter, tally, flusher, notifier, tracer)


def create_app(config: Config, open_services: Callable[[], Services], clock: Clock) -> Receiver:
    """Create the receiver. Each worker calls `open_services` at its start, inside its event loop.

    This needs no event loop and opens nothing, so that processes forked later can share it.

    Raises:
        ConfigError: a preset or secret of a source is missing. The message has a line for each.
    """
    endpoints = make_endpoints(config)
    decoy = pad_work(endpoint.verifier for endpoint in endpoints.values())
    lifespan = Lifespan(CAPACITY, open_services)
    webhooks = Webhooks(endpoints, decoy, clock, MemoryBudget(MEMORY), lifespan.services)
    health = Health(lifespan.services)
    app = falcon.asgi.App(middleware=[lifespan])
    app.add_error_handler(RequestError, answer_problem)
    app.add_error_handler(Exception, answer_bug)
    app.set_error_serializer(_serialize_problem)
    app.add_route("/webhooks/{source}", webhooks)
    app.add_route("/webhooks/{source}/{token}", webhooks)
    app.add_route("/health/live", health, suffix="live")
    app.add_route("/health/ready", health, suffix="ready")
    return app


def make_endpoints(config: Config) -> dict[str, SourceEndpoint]:
    """Create the endpoint of each source.

    Raises:
        ConfigError: as `create_app`.
    """
    return collect_config_errors({name: partial(_endpoint, config, source) for name, source in config.sources.items()})


def _endpoint(config: Config, source: Source) -> SourceEndpoint:
    preset = build_preset(source, list_passed_headers(source.name, config.routes.values(), config.destinations))
    return SourceEndpoint(
        source=source,
        preset=preset,
        verifier=build_verifier(source, preset),
        routes=select_routes(source.name, config.routes.values()),
        bucket=None if source.rate is None else Bucket(source.rate),
    )


def _start_at_zero(meters: Meters, config: Config) -> Meters:
    """Start every series with known labels at zero, so that its first increase is visible."""
    causes = sorted(CAUSES)
    for source in (*config.sources, UNKNOWN):
        for cause in causes:
            meters.count(REJECTED, source, cause, by=0)
    for source in config.sources:
        meters.count(RECEIVED, source, by=0)
        meters.count(DUPLICATES, source, by=0)
    for status in _STATUSES_FROM_THE_START:
        meters.count(REQUEST_SECONDS, status, by=0)
    return meters


class Health:
    """Health checks.

    `/health/live`: the process responds. `/health/ready`: it can write to the database, checked at most once a second.
    """

    def __init__(self, services: Callable[[], Services]) -> None:
        self._services = services
        self._probed_at = float("-inf")
        self._problem: Unavailable | None = None
        self._probing = asyncio.Lock()

    async def on_get_live(self, _req: Request, resp: Response) -> None:
        """Respond 200 as long as the process serves."""
        resp.media = {"status": "live"}

    async def on_get_ready(self, _req: Request, resp: Response) -> None:
        """Respond 200 if a webhook could be stored now, otherwise 503."""
        async with self._probing:
            if time.monotonic() - self._probed_at >= READY_CACHED_SECONDS:
                self._problem = None
                try:
                    await self._services().writer.probe()
                except Unavailable as problem_now:
                    self._problem = problem_now
                self._probed_at = time.monotonic()
        if self._problem is not None:
            raise Unavailable(self._problem.detail)
        resp.media = {"status": "ready"}


class Lifespan:
    """Opens a worker's services when it starts, and closes them when it stops."""

    def __init__(self, capacity: Capacity, open_services: Callable[[], Services]) -> None:
        self._capacity = capacity
        self._open = open_services
        self._services: Services | None = None

    def services(self) -> Services:
        """Return the worker's services.

        Raises:
            Unavailable: the worker has not started yet.
        """
        if self._services is None:
            raise Unavailable("the receiver is starting")
        return self._services

    async def process_startup(self, scope: Mapping[str, Any], _event: Mapping[str, Any]) -> None:
        """Open the services. The ASGI server calls this before the first request."""
        self._services = self._open()
        scope.get("state", {}).update({CAPACITY_KEY: self._capacity, METERS: self._services.meters})
        gc.freeze()  # otherwise full collections walk all loaded modules: 40 ms per 4,000 webhooks, with 64 open

    async def process_shutdown(self, _scope: Mapping[str, Any], _event: Mapping[str, Any]) -> None:
        """Close the services. The ASGI server calls this after the last request."""
        services = self.services()
        if services.outcomes is not None:
            await services.outcomes.close()
        await services.writer.close()
        if services.flusher is not None:
            await services.flusher.close()
        if services.notifier is not None:
            await services.notifier.close()
        services.meters.close()
        await asyncio.to_thread(services.tracer.close)


def _serialize_problem(_req: Request, resp: Response, error: falcon.HTTPError) -> None:
    """Write Falcon's own errors (no such path, no such method) as problem documents."""
    resp.content_type = PROBLEM_TYPE
    resp.data = problem(error.status_code, error.title or str(error.status), error.description)
