"""The demo's events: put by any thread, handled by the main thread, which alone counts, prints and stops."""

from __future__ import annotations

import queue
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType

from relay.demo.commercial import CallMade
from relay.demo.webhooks import WebhookSent

_STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
OUTAGE_SIGNAL = signal.SIGUSR1
"""Stops the commercial service of a running demo, and starts it again."""


@dataclass(frozen=True, slots=True)
class NoCallNeeded:
    """The relay has logged what no call shows: it had nothing new to send (`same`), or what it read was too old (`stale`)."""

    entity_type: str
    entity_id: str
    why: str


@dataclass(frozen=True, slots=True)
class CommandRun:
    """One of the relay's own commands was started, or has reported something `about` a subject."""

    command: str
    about: str
    report: str = ""


DemoEvent = WebhookSent | CallMade | NoCallNeeded | CommandRun


class Stopped(Exception):
    """A signal asked the demo to stop. Raised by `DemoEvents.wait` and nowhere else, so between two steps."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.number = number


class DemoEvents:
    """A queue of events with one listener, on the main thread."""

    def __init__(self, listener: Callable[[DemoEvent], None]) -> None:
        self._listener = listener
        # SimpleQueue.put may be called by a signal handler while get waits.
        self._queue: queue.SimpleQueue[DemoEvent | int] = queue.SimpleQueue()
        self.put: Callable[[DemoEvent], None] = self._queue.put
        """Queues an event, from any thread."""

    def handle(self, event: DemoEvent) -> None:
        """Handle an event of the main thread itself at once, after all that happened before. Raises as `wait`."""
        self.wait(0)
        self._listener(event)

    def wait(self, seconds: float) -> None:
        """Let time pass, and hand events to the listener meanwhile. Raises Stopped after a signal inside `stopping`."""
        deadline = time.monotonic() + seconds
        while True:
            try:
                event = self._queue.get(timeout=max(0.0, deadline - time.monotonic()))
            except queue.Empty:
                return
            if isinstance(event, int):
                raise Stopped(event)
            self._listener(event)

    @contextmanager
    def on_outage_signal(self, act: Callable[[], None]) -> Iterator[None]:
        """Call `act` for each SIGUSR1, inside a signal handler; main thread only."""
        previous = signal.signal(OUTAGE_SIGNAL, lambda _number, _frame: act())
        try:
            yield
        finally:
            signal.signal(OUTAGE_SIGNAL, previous)

    @contextmanager
    def stopping(self) -> Iterator[None]:
        """Make SIGINT, SIGTERM and SIGHUP raise Stopped in `wait` instead of ending the process; main thread only."""

        def stop(number: int, _: FrameType | None) -> None:
            self._queue.put(number)

        previous = {number: signal.signal(number, stop) for number in _STOPPING}
        try:
            yield
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)
