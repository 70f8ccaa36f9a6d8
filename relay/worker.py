"""Threads that make attempts: a claimed delivery in, its outcome out. They never touch the database."""

from __future__ import annotations

import logging
import queue
import threading
from collections import deque
from collections.abc import Callable, Mapping
from datetime import datetime

from inbox.config import Config
from relay.destinations import Context, Deliverer
from relay.leases import Leases, claim_of
from relay.outcome import Delivery, Failed, Outcome

_log = logging.getLogger(__name__)

PREFETCH = 3
"""Claimed deliveries in hand for each thread: one at work, and enough behind it that no thread waits for the next claim
(`benchmarks.drain` shows the difference). More would mean more that no other relay can take.
"""

Finished = tuple[Delivery, Outcome]


def attempt(delivery: Delivery, deliverer: Deliverer, context: Context) -> Outcome:
    """Make one attempt; whatever happens is an outcome."""
    try:
        return deliverer.deliver(delivery, context)
    except Exception as error:  # noqa: BLE001  # a bug in a destination ends this attempt, not the relay
        _log.exception("bug in the destination of route=%s seq=%d", delivery.route, delivery.seq)
        return Failed((), "crashed", f"the destination's code failed: {type(error).__name__}")


class Crew:
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
        finished: queue.SimpleQueue[Finished | None],
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
        """Have it delivered; the outcome comes through the queue of the finished."""
        self.in_hand += 1
        self._todo.put(delivery)

    def take_back(self) -> list[Delivery]:
        """Those that nobody has begun."""
        untouched: list[Delivery] = []
        while True:
            try:
                delivery = self._todo.get_nowait()
            except queue.Empty:
                self.in_hand -= len(untouched)
                return untouched
            if delivery is not None:
                untouched.append(delivery)

    def end(self) -> None:
        """Let the threads end when they have nothing left."""
        for _ in self._threads:
            self._todo.put(None)
        for deliverer in self._deliverers.values():
            deliverer.close()

    def _work(self) -> None:
        while (delivery := self._todo.get()) is not None:
            key = claim_of(delivery)
            context = Context(lease=lambda key=key: self._leases.trusted_until(key), stop=self._stop, now=self._now)  # type: ignore[misc]  # mypy knows no type for a lambda's default
            self._finished.put((delivery, attempt(delivery, self._deliverers[delivery.route], context)))


def crews(
    config: Config,
    deliverers: Mapping[str, Deliverer],
    *,
    leases: Leases,
    stop: threading.Event,
    now: Callable[[], datetime],
    finished: queue.SimpleQueue[Finished | None],
) -> dict[str, Crew]:
    """The crew of every route, by the route's name; routes to the same destination share one."""
    made: dict[str, Crew] = {}
    for name, destination in config.destinations.items():
        of_routes = {r: d for r, d in deliverers.items() if config.routes[r].destination == name}
        if of_routes:
            crew = Crew(name, destination.concurrency, of_routes, leases=leases, stop=stop, now=now, finished=finished)
            made |= dict.fromkeys(of_routes, crew)
    return made
