"""What happens while the demo runs: told from any thread, heard on the main thread, which alone counts, prints and stops."""

from __future__ import annotations

import queue
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import Any, Literal

_STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@dataclass(frozen=True, slots=True)
class WebhookSent:
    """The identity service tried to send a webhook. `status` is None when no answer came."""

    entity_type: str
    entity_id: str
    event_type: str
    status: int | None


@dataclass(frozen=True, slots=True)
class CallMade:
    """Somebody called the commercial service."""

    method: str
    path: str
    status: int
    body: dict[str, Any] | None
    """The JSON object that was sent, if any."""
    created: str | None = None
    """The path of the record that the call created."""


@dataclass(frozen=True, slots=True)
class Noted:
    """The relay has written down what it made of an event: nothing new was to be sent, or what it read was too old."""

    entity_type: str
    entity_id: str
    what: Literal["same", "stale"]


@dataclass(frozen=True, slots=True)
class Ordered:
    """One of the relay's own commands was given, or has said something."""

    command: str
    about: str
    """Its arguments, or what it has said something about."""
    said: str = ""


Happening = WebhookSent | CallMade | Noted | Ordered


class Stopped(Exception):
    """The demo was told to stop by a signal. Raised by `Happenings.wait` and nowhere else, so between two steps."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.number = number


class Happenings:
    """A queue of what happens, with one listener on the main thread."""

    def __init__(self, listener: Callable[[Happening], None]) -> None:
        self._listener = listener
        # SimpleQueue.put may be called by a signal handler while get waits.
        self._queue: queue.SimpleQueue[Happening | int] = queue.SimpleQueue()

    def webhook(self, payload: Mapping[str, str], status: int | None) -> None:
        """The identity service's `on_webhook`."""
        self._queue.put(WebhookSent(payload["entityType"], payload["id"], payload["eventType"], status))

    def call(self, call: CallMade) -> None:
        """The commercial service has answered, or is about to."""
        self._queue.put(call)

    def hear(self, happening: Noted | Ordered) -> None:
        """From the main thread itself: it is heard at once, after all that happened before. Raises as `wait`."""
        self.wait(0)
        self._listener(happening)

    def wait(self, seconds: float) -> None:
        """Let time pass; what happens meanwhile is handed to the listener.

        Raises:
            Stopped: a signal came while `stopping` was in force.
        """
        deadline = time.monotonic() + seconds
        while True:
            try:
                happening = self._queue.get(timeout=max(0.0, deadline - time.monotonic()))
            except queue.Empty:
                return
            if isinstance(happening, int):
                raise Stopped(happening)
            self._listener(happening)

    @contextmanager
    def stopping(self) -> Iterator[None]:
        """Inside, SIGINT, SIGTERM and SIGHUP make `wait` raise `Stopped` instead of ending the process; main thread only."""

        def stop(number: int, _: FrameType | None) -> None:
            self._queue.put(number)

        previous = {number: signal.signal(number, stop) for number in _STOPPING}
        try:
            yield
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)
