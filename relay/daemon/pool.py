"""Threads that make attempts: a claimed delivery in, its outcome out. They never touch the database."""

from __future__ import annotations

import logging
import queue
import threading
from collections import deque
from collections.abc import Callable, Mapping
from datetime import datetime

import msgspec

from inbox.config.model import Config
from inbox.logs.traces import without_message
from relay.daemon.leases import Leases, claim_of
from relay.delivery.outcome import Delivery, Failed, Outcome
from relay.destinations import Context, Deliverer

_log = logging.getLogger(__name__)

PREFETCH = 3
"""Claimed deliveries in hand for each thread: one at work, and enough behind it that no thread waits for the next claim
(`benchmarks.drain` shows the difference). More would mean more that no other relay can take.
"""


class Finished(msgspec.Struct, frozen=True):
    """What an attempt came to, and who made it: after a reload that need not be the crew its route has now."""

    delivery: Delivery
    outcome: Outcome
    crew: WorkerPool


def attempt(delivery: Delivery, deliverer: Deliverer, context: Context) -> Outcome:
    """Make one attempt; whatever happens is an outcome."""
    try:
        return deliverer.deliver(delivery, context)
    except BaseException as error:  # noqa: BLE001  # a bug in a destination ends this attempt, not the relay or its thread
        told = without_message(error)  # it may hold a secret
        _log.error("bug in the destination of route=%s seq=%d", delivery.route, delivery.seq, exc_info=told)
        return Failed((), "crashed", f"the destination's code failed: {type(error).__name__}")


class WorkerPool:
    """The threads of one destination, as many as its `concurrency`."""

    def __init__(
        self,
        name: str,
        size: int,
        deliverers: Mapping[str, Deliverer],
        *,
        leases: Leases,
        stop: threading.Event,
        now: Callable[[], datetime],
        finished: Callable[[Finished], None],
    ) -> None:
        self._routes = deque(deliverers)
        self._size = size
        self._deliverers = deliverers
        self._leases = leases
        self._stop = stop
        self._now = now
        self._finished = finished
        self._todo: queue.SimpleQueue[Delivery | None] = queue.SimpleQueue()
        self.in_hand = 0
        self.suspects = 0
        """How many of those in hand may be what kills the process."""
        self._threads = [
            threading.Thread(target=self._work, name=f"{name}-{number}", daemon=True) for number in range(1, size + 1)
        ]
        for thread in self._threads:
            thread.start()

    @property
    def room(self) -> int:
        """How many more deliveries it takes."""
        return self._size * PREFETCH - self.in_hand

    @property
    def wants_more(self) -> bool:
        """Whether it is at least half empty: few large claims cost less than many small ones."""
        return self.room >= self._size

    def take_turn(self) -> list[str]:
        """Its routes, each time another one first, so that none starves the others."""
        self._routes.rotate(-1)
        return list(self._routes)

    def hand_over(self, delivery: Delivery) -> None:
        """Have it delivered; the outcome comes as a `Finished`."""
        self.in_hand += 1
        self.suspects += delivery.is_suspect
        self._todo.put(delivery)

    def let_go(self, delivery: Delivery) -> None:
        """What it had in hand is settled, or goes back."""
        self.in_hand -= 1
        self.suspects -= delivery.is_suspect

    def take_back(self) -> list[Delivery]:
        """Those that nobody has begun."""
        untouched: list[Delivery] = []
        while True:
            try:
                delivery = self._todo.get_nowait()
            except queue.Empty:
                return untouched
            if delivery is not None:
                self.let_go(delivery)
                untouched.append(delivery)

    def end(self) -> None:
        """Let the threads end when they have nothing left."""
        for _ in self._threads:
            self._todo.put(None)

    def _work(self) -> None:
        while (delivery := self._todo.get()) is not None:
            key = claim_of(delivery)
            context = Context(lease=lambda key=key: self._leases.trusted_until(key), stop=self._stop, now=self._now)  # type: ignore[misc]  # mypy knows no type for a lambda's default
            outcome = attempt(delivery, self._deliverers[delivery.route], context)
            self._finished(Finished(delivery, outcome, self))


class WorkerPools:
    """All that works by one configuration: a crew for each destination, which the routes to it share."""

    def __init__(
        self,
        config: Config,
        deliverers: Mapping[str, Deliverer],
        *,
        leases: Leases,
        stop: threading.Event,
        now: Callable[[], datetime],
        finished: Callable[[Finished], None],
    ) -> None:
        self._deliverers = deliverers
        self._all: list[WorkerPool] = []
        self._of_route: dict[str, WorkerPool] = {}
        for name, destination in config.destinations.items():
            of_routes = {r: d for r, d in deliverers.items() if config.routes[r].destination == name}
            if of_routes:
                crew = WorkerPool(
                    name, destination.concurrency, of_routes, leases=leases, stop=stop, now=now, finished=finished
                )
                self._all.append(crew)
                self._of_route |= dict.fromkeys(of_routes, crew)

    @property
    def routes(self) -> list[str]:
        """Every route that is worked on."""
        return list(self._of_route)

    @property
    def in_hand(self) -> int:
        """How many deliveries they have, begun or not."""
        return sum(crew.in_hand for crew in self._all)

    @property
    def suspects(self) -> int:
        """How many of those may be what kills the process."""
        return sum(crew.suspects for crew in self._all)

    def wanted(self) -> list[tuple[list[str], int]]:
        """For each crew that wants more: its routes in turn, and how many deliveries it takes."""
        return [(crew.take_turn(), crew.room) for crew in self._all if crew.wants_more]

    def hand_over(self, delivery: Delivery) -> None:
        """Have it delivered by the crew of its route."""
        self._of_route[delivery.route].hand_over(delivery)

    def take_back(self) -> list[Delivery]:
        """Those that nobody has begun."""
        return [delivery for crew in self._all for delivery in crew.take_back()]

    def end(self) -> None:
        """Let the threads end, and close their connections. Crews may share those, so all of them should be idle."""
        for crew in self._all:
            crew.end()
        for deliverer in self._deliverers.values():
            deliverer.close()
