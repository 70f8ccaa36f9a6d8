"""Generations: a configuration with its worker pools and clients. One is active; older ones finish their calls."""

from __future__ import annotations

import logging
import queue
import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from functools import partial
from typing import Any

import msgspec

from inbox.config.model import Config, Endpoint
from inbox.config.values import Duration
from inbox.errors import collect_config_errors
from inbox.observe.logs import fields, without_message
from inbox.observe.traces import OFF, Span, Tracer, require_extra
from relay.daemon.leases import Leases
from relay.delivery.gates import Admission, Gates
from relay.delivery.outcome import Delivered, Delivery, Failed, Outcome
from relay.delivery.policy import policies
from relay.destinations import Context, Deliverer, build
from relay.http.client import HttpClient
from relay.http.target import prepare as prepare_target
from relay.store.claim import MOST_BYTES, FreeCapacity
from relay.store.deliveries import lease_key_of
from relay.store.work import Work
from relay.sweep.run import CompiledSweep
from relay.sweep.scheduler import compile_sweeps

_log = logging.getLogger(__name__)

PREFETCH = 3
"""Claimed deliveries per thread: one in its call, and enough queued that no thread waits for the next claim
(measured by `benchmarks.drain`). A larger value would withhold deliveries from other relays.
"""


class FinishedAttempt(msgspec.Struct, frozen=True):
    """The outcome of an attempt, and the pool that made it: a reload may give the route another pool."""

    delivery: Delivery
    outcome: Outcome
    pool: WorkerPool


def attempt(delivery: Delivery, deliverer: Deliverer, context: Context) -> Outcome:
    """Make one attempt; every failure, even a bug, becomes an outcome."""
    try:
        return deliverer(delivery, context)
    except BaseException as error:  # noqa: BLE001  # a bug in a destination ends this attempt, not the relay or its thread
        trace = without_message(error)  # the message may hold a secret
        _log.error(
            "bug in the destination of route=%s seq=%d",
            delivery.route,
            delivery.seq,
            exc_info=trace,
            extra=fields("bug_in_destination", route=delivery.route, seq=delivery.seq),
        )
        return Failed((), "crashed", f"the destination's code failed: {type(error).__name__}")


class WorkerPool:
    """The threads of one destination, `concurrency` of them."""

    def __init__(
        self,
        name: str,
        size: int,
        deliverers: Mapping[str, Deliverer],
        *,
        context_of: Callable[[Delivery], Context],
        finished: Callable[[FinishedAttempt], None],
    ) -> None:
        """Start the threads. `context_of` returns the context of an attempt; the threads call `finished` after each."""
        self._routes = deque(deliverers)
        self._size = size
        self._deliverers = deliverers
        self._context_of = context_of
        self._finished = finished
        self._queue: queue.SimpleQueue[Delivery | None] = queue.SimpleQueue()
        self.in_hand = 0
        self.bytes_in_hand = 0
        self.suspects = 0
        """Deliveries in hand that may have caused a crash."""
        self._threads = [
            threading.Thread(target=self._work, name=f"{name}-{number}", daemon=True) for number in range(1, size + 1)
        ]
        for thread in self._threads:
            thread.start()

    @property
    def capacity(self) -> int:
        """The number of deliveries the pool can still take."""
        return self._size * PREFETCH - self.in_hand

    @property
    def wants_more(self) -> bool:
        """True when the pool can take one delivery per thread: few large claims cost less than many small ones."""
        return self.capacity >= self._size

    def take_turn(self) -> list[str]:
        """Return the pool's routes, rotated by one at each call so that every route gets its turn."""
        self._routes.rotate(-1)
        return list(self._routes)

    def submit(self, delivery: Delivery) -> None:
        """Queue a delivery; `finished` gets its outcome."""
        self.in_hand += 1
        self.bytes_in_hand += len(delivery.body or b"")
        self.suspects += delivery.is_suspect
        self._queue.put(delivery)

    def release(self, delivery: Delivery) -> None:
        """Free the capacity of a delivery that is recorded or given back."""
        self.in_hand -= 1
        self.bytes_in_hand -= len(delivery.body or b"")
        self.suspects -= delivery.is_suspect

    def withdraw_unstarted(self) -> list[Delivery]:
        """Remove unstarted deliveries from the queue, and return them."""
        unstarted: list[Delivery] = []
        while True:
            try:
                delivery = self._queue.get_nowait()
            except queue.Empty:
                return unstarted
            if delivery is not None:
                self.release(delivery)
                unstarted.append(delivery)

    def close(self) -> None:
        """End each thread once the queue is empty."""
        for _ in self._threads:
            self._queue.put(None)

    def _work(self) -> None:
        while (delivery := self._queue.get()) is not None:
            context, deliverer = self._context_of(delivery), self._deliverers[delivery.route]
            if context.span is None:
                outcome = attempt(delivery, deliverer, context)
            else:
                delivery = msgspec.structs.replace(delivery, trace_ids=context.span.ids)  # for its log lines
                with context.span.current():
                    outcome = attempt(delivery, deliverer, context)
                _end(context.span, outcome)
            self._finished(FinishedAttempt(delivery, outcome, self))


def begin_attempt(tracer: Tracer, delivery: Delivery) -> Span | None:
    """Begin the span of an attempt (OpenTelemetry's messaging conventions); None unless the event's trace is sampled."""
    if delivery.traceparent is None:
        return None
    span = tracer.begin(f"process {delivery.route}", "consumer", parent=delivery.traceparent)
    if span is not None:
        span.attributes |= {
            "messaging.system": "inbox_relay",
            "messaging.operation.name": "process",
            "messaging.operation.type": "process",
            "messaging.destination.name": delivery.route,
            "messaging.message.id": delivery.webhook_id,
            "inbox.source": delivery.source,
            "inbox.seq": delivery.seq,
            "inbox.attempt": delivery.attempt,
            "inbox.run": delivery.run,
        }
    return span


def _end(span: Span, outcome: Outcome) -> None:
    error = outcome.error_class if isinstance(outcome, Failed) else None
    did = outcome.did if isinstance(outcome, Delivered) else type(outcome).__name__.lower()
    span.attributes["inbox.outcome"] = "failed" if error is not None else did
    span.end(error=error)


class PreparedConfig(msgspec.Struct, frozen=True):
    """A configuration with its compiled clients, made before any thread starts."""

    config: Config
    deliverers: Mapping[str, Deliverer] = {}
    alert_client: HttpClient | None = None
    """The client that posts alerts; None without a url."""
    sweeps: tuple[CompiledSweep, ...] = ()
    """The scheduled sweeps."""


def prepare(config: Config) -> PreparedConfig:
    """Compile the destinations, alert client and sweeps of a configuration, and read their secrets.

    Raises:
        ConfigError: a destination, the alerts' url or a sweep can't be used. The text has one line per mistake.
    """
    parts: dict[str, Callable[[], Any]] = {
        "deliverers": partial(build, config),
        "alert_client": partial(alert_client, config),
        "sweeps": partial(compile_sweeps, config),
    }
    require_extra(config.traces.endpoint)
    return PreparedConfig(config, **collect_config_errors(parts))


def alert_client(config: Config) -> HttpClient | None:
    """Make the client that posts to the alerts' url; None without one.

    Raises:
        ConfigError: the url can't be used, or its secret is missing.
    """
    alerts = config.alerts
    if alerts.url is None:
        return None
    endpoint = Endpoint(
        timeout=Duration(10), concurrency=1, allow_private=alerts.allow_private, allow_http=alerts.allow_http
    )
    url = alerts.url.reveal(at="alerts.url")
    # The path of a chat webhook is its secret.
    return HttpClient(prepare_target(endpoint, url, "alerts", config.outbound, secrets=[url], shown_path="/…"))


LoopEvent = FinishedAttempt | PreparedConfig | None
"""An event from another thread to the loop; None only wakes it."""


class Generation:
    """A running configuration: its policies, API clients and worker pools.

    The routes to a destination share one worker pool. Only the loop's thread may call it.
    """

    def __init__(
        self,
        prepared: PreparedConfig,
        work: Work,
        *,
        context_of: Callable[[Delivery], Context],
        put: Callable[[LoopEvent], None],
    ) -> None:
        """Start the threads. `put` receives every finished attempt."""
        config = prepared.config
        self.work = msgspec.structs.replace(work, config=config, policies=policies(config))
        self.alert_client = prepared.alert_client
        self._pools = deque[WorkerPool]()
        self._pool_of: dict[str, WorkerPool] = {}
        for name, destination in config.destinations.items():
            deliverers = {r: d for r, d in prepared.deliverers.items() if config.routes[r].destination == name}
            if deliverers:
                pool = WorkerPool(name, destination.concurrency, deliverers, context_of=context_of, finished=put)
                self._pools.append(pool)
                self._pool_of |= dict.fromkeys(deliverers, pool)

    @property
    def routes(self) -> list[str]:
        """Every route that has a worker pool."""
        return list(self._pool_of)

    @property
    def in_hand(self) -> int:
        """The number of deliveries in the pools, started or not."""
        return sum(pool.in_hand for pool in self._pools)

    @property
    def suspects(self) -> int:
        """The number of those that may have caused a crash."""
        return sum(pool.suspects for pool in self._pools)

    def list_free_capacity(self) -> list[FreeCapacity]:
        """List the free capacity of each pool that wants more, starting with a different pool at each call."""
        self._pools.rotate(-1)
        share = MOST_BYTES // max(len(self._pools), 1)
        rooms = [
            FreeCapacity(pool.take_turn(), pool.capacity, share - pool.bytes_in_hand)
            for pool in self._pools
            if pool.wants_more
        ]
        return [room for room in rooms if room.most_bytes > 0]

    def select_admitted(self, gates: Gates, routes: Sequence[str], *admissions: Admission) -> list[str]:
        """Return those of `routes` that `gates` admit in one of the given ways."""
        return [route for route in routes if gates.admit(self.work.policies[route].gates) in admissions]

    def submit(self, delivery: Delivery) -> None:
        """Queue a delivery in the pool of its route."""
        self._pool_of[delivery.route].submit(delivery)

    def withdraw_unstarted(self) -> list[Delivery]:
        """Remove unstarted deliveries from every pool, and return them."""
        return [delivery for pool in self._pools for delivery in pool.withdraw_unstarted()]

    def close(self) -> None:
        """End the threads, which closes their connections."""
        for pool in self._pools:
            pool.close()


class Generations:
    """The active generation, and earlier ones that still finish calls."""

    def __init__(
        self,
        initial: PreparedConfig,
        work: Work,
        *,
        leases: Leases,
        stop: threading.Event,
        now: Callable[[], datetime],
        events: queue.SimpleQueue[LoopEvent],
        tracer: Tracer = OFF,
    ) -> None:
        def context_of(delivery: Delivery) -> Context:
            span = begin_attempt(tracer, delivery) if tracer.is_on else None
            return Context(partial(leases.trusts_until, lease_key_of(delivery)), stop, now, span)

        self._start = partial(Generation, work=work, context_of=context_of, put=events.put)
        self._draining: list[Generation] = []
        self.active = self._start(initial)

    def activate(self, new: PreparedConfig) -> list[Delivery]:
        """Start a new generation; the previous one finishes its calls. Returns the unstarted deliveries."""
        old = self.active
        unstarted = old.withdraw_unstarted()
        self._draining.append(old)
        self.active = self._start(new)
        return unstarted

    def close_drained(self) -> None:
        """Close earlier generations whose last calls have ended."""
        for generation in self._draining:
            if not generation.in_hand:
                generation.close()
        self._draining = [generation for generation in self._draining if generation.in_hand]

    def close(self) -> None:
        """Close all generations."""
        for generation in (self.active, *self._draining):
            generation.close()

    @property
    def in_hand(self) -> int:
        """The number of deliveries in all generations, started or not."""
        return sum(generation.in_hand for generation in (self.active, *self._draining))

    @property
    def suspects(self) -> int:
        """The number of those that may have caused a crash."""
        return sum(generation.suspects for generation in (self.active, *self._draining))
