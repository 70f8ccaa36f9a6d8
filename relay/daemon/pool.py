"""Worker pools: threads that turn a claimed delivery into its outcome. They never touch the database."""

from __future__ import annotations

import logging
import queue
import threading
from collections import deque
from collections.abc import Callable, Mapping

import msgspec

from inbox.observe.logs import fields, without_message
from inbox.observe.traces import Span, Tracer
from relay.delivery.outcome import Delivered, Delivery, Failed, Outcome
from relay.destinations import Context, Deliverer

_log = logging.getLogger(__name__)

PREFETCH = 3
"""Claimed deliveries for each thread: one in its call, and enough behind it that no thread waits for the next claim
(`benchmarks.drain` shows the difference). More would keep more from other relays.
"""


class FinishedAttempt(msgspec.Struct, frozen=True):
    """The outcome of an attempt, and the pool that made it: after a reload, the route may have another pool."""

    delivery: Delivery
    outcome: Outcome
    pool: WorkerPool


def attempt(delivery: Delivery, deliverer: Deliverer, context: Context) -> Outcome:
    """Make one attempt; every failure, a bug too, becomes an outcome."""
    try:
        return deliverer.deliver(delivery, context)
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
    """The threads of one destination, as many as its `concurrency`."""

    def __init__(
        self,
        name: str,
        size: int,
        deliverers: Mapping[str, Deliverer],
        *,
        context_of: Callable[[Delivery], Context],
        finished: Callable[[FinishedAttempt], None],
    ) -> None:
        """Start the threads. `context_of` gives each attempt its bounds; `finished` is called from the threads."""
        self._routes = deque(deliverers)
        self._size = size
        self._deliverers = deliverers
        self._context_of = context_of
        self._finished = finished
        self._queue: queue.SimpleQueue[Delivery | None] = queue.SimpleQueue()
        self.in_hand = 0
        self.bytes_in_hand = 0
        self.suspects = 0
        """The number of deliveries in hand that may be the cause of a crash."""
        self._threads = [
            threading.Thread(target=self._work, name=f"{name}-{number}", daemon=True) for number in range(1, size + 1)
        ]
        for thread in self._threads:
            thread.start()

    @property
    def capacity(self) -> int:
        """The number of further deliveries that it takes."""
        return self._size * PREFETCH - self.in_hand

    @property
    def wants_more(self) -> bool:
        """True when it can take one for each thread: few large claims cost less than many small ones."""
        return self.capacity >= self._size

    def take_turn(self) -> list[str]:
        """Return its routes, each time with another one first, so that none starves the others."""
        self._routes.rotate(-1)
        return list(self._routes)

    def submit(self, delivery: Delivery) -> None:
        """Queue a delivery; its outcome comes as a `FinishedAttempt`."""
        self.in_hand += 1
        self.bytes_in_hand += len(delivery.body or b"")
        self.suspects += delivery.is_suspect
        self._queue.put(delivery)

    def release(self, delivery: Delivery) -> None:
        """Free the capacity of a delivery that is recorded, or goes back."""
        self.in_hand -= 1
        self.bytes_in_hand -= len(delivery.body or b"")
        self.suspects -= delivery.is_suspect

    def withdraw_unstarted(self) -> list[Delivery]:
        """Take unstarted deliveries out of the queue, and return them."""
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
        """Let each thread end when the queue is empty."""
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
    """Begin the span of an attempt, by the semantic conventions of messaging; None unless its event's trace is sampled."""
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
