"""The active generation (one configuration with all that works by it), and older ones that still drain."""

from __future__ import annotations

import queue
import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from functools import partial
from typing import Any

import msgspec

from inbox.config.model import Config
from inbox.errors import collect_config_errors
from inbox.observe.traces import OFF, Tracer, require_extra
from relay.daemon.alert_sender import AlertSender, PostResult, alert_client
from relay.daemon.lease_renewal import Leases, claim_of
from relay.daemon.pool import FinishedAttempt, WorkerPool, begin_attempt
from relay.delivery.gates import Admission, GateKey, Gates, RateLimit
from relay.delivery.outcome import Delivery
from relay.delivery.policy import breaker_limits, policies
from relay.destinations import Context, Deliverer, build
from relay.http.client import HttpClient
from relay.store.claim import MOST_BYTES, Room
from relay.sweep.run import CompiledSweep
from relay.sweep.scheduler import scheduled


class PreparedConfig(msgspec.Struct, frozen=True):
    """A configuration with the clients that make its calls, compiled before any thread starts."""

    config: Config
    deliverers: Mapping[str, Deliverer] = {}
    alert_client: HttpClient | None = None
    """Posts alerts; None without a url."""
    sweeps: tuple[CompiledSweep, ...] = ()
    """The sweeps that the relay schedules itself."""


def prepare(config: Config) -> PreparedConfig:
    """Compile all that a configuration calls. Secrets are read now.

    Raises:
        ConfigError: a destination, the alerts' url or a sweep can't be used. The text has a line for each mistake.
    """
    parts: dict[str, Callable[[], Any]] = {
        "deliverers": partial(build, config),
        "alert_client": partial(alert_client, config),
        "sweeps": partial(scheduled, config),
    }
    require_extra(config.traces.endpoint)
    return PreparedConfig(config, **collect_config_errors(parts))


LoopEvent = FinishedAttempt | PostResult | PreparedConfig | None
"""An event that another thread hands to the loop; None only wakes it."""


class Generation:
    """A configuration at work: its policies, API clients, worker pools and alert sender.

    Each destination has one worker pool, which the routes to it share. Only the loop's thread calls it.
    """

    def __init__(
        self,
        prepared: PreparedConfig,
        *,
        context_of: Callable[[Delivery], Context],
        stop: threading.Event,
        now: Callable[[], datetime],
        put: Callable[[LoopEvent], None],
    ) -> None:
        """Start the threads. `put` gets every finished attempt and every result of a post."""
        self.config = config = prepared.config
        self.policies = policies(config)
        self.alert_sender = AlertSender(prepared.alert_client, config.alerts.format, stop=stop, now=now, done=put)
        self._deliverers = prepared.deliverers
        self._pools = deque[WorkerPool]()
        self._pool_of: dict[str, WorkerPool] = {}
        for name, destination in config.destinations.items():
            deliverers = {r: d for r, d in self._deliverers.items() if config.routes[r].destination == name}
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
        """The number of deliveries that its pools hold, started or not."""
        return sum(pool.in_hand for pool in self._pools)

    @property
    def suspects(self) -> int:
        """The number of those that may be the cause of a crash."""
        return sum(pool.suspects for pool in self._pools)

    def wanted(self) -> list[Room]:
        """The room of each pool that wants more. Each time another pool is the first."""
        self._pools.rotate(-1)
        share = MOST_BYTES // max(len(self._pools), 1)
        rooms = [
            Room(pool.take_turn(), pool.capacity, share - pool.bytes_in_hand) for pool in self._pools if pool.wants_more
        ]
        return [room for room in rooms if room.most_bytes > 0]

    def recently_failing(self, gates: Gates) -> frozenset[GateKey]:
        """The endpoints of its routes that have failed lately, as far as `gates` show."""
        return gates.recently_failing(breaker_limits(self.policies))

    def admitted(self, gates: Gates, routes: Sequence[str], *admissions: Admission) -> list[str]:
        """Return the routes among these to which `gates` give one of the admissions."""
        return [route for route in routes if gates.admit(self.policies[route].gates) in admissions]

    @property
    def limits(self) -> dict[str, tuple[RateLimit, ...]]:
        """The rate limits of each route."""
        return {route: policy.rate_limits for route, policy in self.policies.items()}

    def submit(self, delivery: Delivery) -> None:
        """Queue a delivery in the pool of its route."""
        self._pool_of[delivery.route].submit(delivery)

    def withdraw_unstarted(self) -> list[Delivery]:
        """Take unstarted deliveries out of every pool, and return them."""
        return [delivery for pool in self._pools for delivery in pool.withdraw_unstarted()]

    def close(self) -> None:
        """Let the threads end, and close the connections. Pools may share those, so all of them should be idle."""
        for pool in self._pools:
            pool.close()
        for deliverer in self._deliverers.values():
            deliverer.close()


class Generations:
    """The active generation, and those before it that still have calls to finish."""

    def __init__(
        self,
        first: PreparedConfig,
        *,
        leases: Leases,
        stop: threading.Event,
        now: Callable[[], datetime],
        events: queue.SimpleQueue[LoopEvent],
        tracer: Tracer = OFF,
    ) -> None:
        def context_of(delivery: Delivery) -> Context:
            span = begin_attempt(tracer, delivery) if tracer.is_on else None
            return Context(partial(leases.trusted_until, claim_of(delivery)), stop, now, span)

        self._start = partial(Generation, context_of=context_of, stop=stop, now=now, put=events.put)
        self._draining: list[Generation] = []
        self.active = self._start(first)

    def activate(self, new: PreparedConfig) -> list[Delivery]:
        """Start another generation; the one before finishes what it has started. Returns what nobody has started."""
        old = self.active
        unstarted = old.withdraw_unstarted()
        old.alert_sender.close()
        self._draining.append(old)
        self.active = self._start(new)
        return unstarted

    def close_drained(self) -> None:
        """Close older generations whose last calls have ended."""
        for generation in self._draining:
            if not generation.in_hand:
                generation.close()
        self._draining = [generation for generation in self._draining if generation.in_hand]

    def close(self) -> None:
        """Close all of them."""
        for generation in (self.active, *self._draining):
            generation.close()
        self.active.alert_sender.close()

    @property
    def in_hand(self) -> int:
        """The number of deliveries that all generations hold, started or not."""
        return sum(generation.in_hand for generation in (self.active, *self._draining))

    @property
    def suspects(self) -> int:
        """The number of those that may be the cause of a crash."""
        return sum(generation.suspects for generation in (self.active, *self._draining))
