"""A function of the user's own: `package.module:name`, called in a thread of its own.

A thread can't be ended from outside. One whose function does not return in time is left behind, and keeps its place among
the destination's `concurrency` until it does: so a function that hangs can't take up more threads than that.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

from inbox.clock import steady
from inbox.config.model import PythonDestination, Route
from inbox.logs.traces import place_of
from relay.delivery.outcome import Call, Delivered, Delivery, ErrorClass, Failed, Outcome, Sent, Skipped
from relay.destinations.base import Clients, Context
from relay.handler import Event, GiveUp, Retry, Skip
from relay.sync.importing import Function, function_of
from relay.sync.plan import event_scope

_log = logging.getLogger(__name__)

_TICK = 0.05
"""Seconds between two looks at the lease, which may end sooner than it was to."""
_LONGEST_WHY = 500


class Places:
    """Where the functions of one destination run, those left behind too: `size` at once."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.left_behind = 0
        self._taken = 0
        self._changed = threading.Condition()

    def take(self, is_over: Callable[[], bool]) -> bool:
        """Take a place as soon as there is one; False when it is over, or all are held by those left behind."""
        with self._changed:
            while not is_over():
                if self._taken < self.size:
                    self._taken += 1
                    return True
                if self.left_behind >= self.size:
                    break
                self._changed.wait(_TICK)
            return False

    def leave(self, running: Running) -> bool:
        """Leave it behind; False when it has just ended."""
        with self._changed:
            if running.ended.is_set():
                return False
            running.is_left_behind = True
            self.left_behind += 1
            self._changed.notify_all()
            return True

    def give_back(self, running: Running) -> None:
        """It has ended, and so has the right to its place."""
        with self._changed:
            running.ended.set()
            self._taken -= 1
            self.left_behind -= running.is_left_behind
            self._changed.notify_all()


class Running:
    """One call of the function, in its thread."""

    def __init__(self, function: Function, event: Event, places: Places) -> None:
        self.ended = threading.Event()
        self.is_left_behind = False
        self.error: BaseException | None = None
        self._function = function
        self._event = event
        self._places = places

    def start(self, name: str) -> None:
        """Begin; it has a place already.

        Raises:
            RuntimeError: the system has no thread for it.
        """
        threading.Thread(target=self._run, name=name, daemon=True).start()

    def _run(self) -> None:
        try:
            self._function(self._event)
        except BaseException as error:  # noqa: BLE001  # whatever it is, it ends this call alone
            self.error = error
        finally:
            self._places.give_back(self)


class Python:
    """The deliverer of one route to a python destination."""

    def __init__(self, shown: str, function: Function, timeout: float, places: Places) -> None:
        self._shown = shown
        self._function = function
        self._timeout = timeout
        self._places = places

    def deliver(self, delivery: Delivery, context: Context) -> Outcome:
        """Call the function; it succeeds when it returns, within `timeout` and the lease."""
        if delivery.body is None:
            return Skipped((), "the event's body was erased")
        running = Running(self._function, event_of(delivery), self._places)
        began = steady()
        if not self._places.take(lambda: self._over(began, context) is not None):
            if self._over(began, context) == "lease_lost":
                return self._failed(began, "lease_lost", "not called: the lease ended", "not_sent")
            why = f"not called: {self._places.size} calls before it have not returned yet"
            return self._failed(began, "not_sent", why, "not_sent")
        began = steady()  # a call that waited for its place has all of its time
        try:
            running.start(f"{delivery.route}-{delivery.seq}")
        except RuntimeError:
            self._places.give_back(running)
            return self._failed(began, "not_sent", "not called: the system has no thread for it", "not_sent")
        while not running.ended.wait(min(_TICK, self._timeout)):
            reason = self._over(began, context)
            if reason is not None and self._places.leave(running):
                return self._left_behind(delivery, began, reason)
        return self._ended(delivery, began, running.error)

    def close(self) -> None:
        """There is nothing to close."""

    def _over(self, began: float, context: Context) -> ErrorClass | None:
        """What ends a call, or the wait for its place, that began then; None: nothing yet."""
        now = steady()
        if now >= context.lease():
            return "lease_lost"
        return "unknown" if now >= began + self._timeout else None

    def _left_behind(self, delivery: Delivery, began: float, reason: ErrorClass) -> Failed:
        error = "left behind: the lease ended" if reason == "lease_lost" else f"no return within {self._timeout:g} s"
        _log.warning("handler %s left behind route=%s seq=%d: %s", self._shown, delivery.route, delivery.seq, error)
        return self._failed(began, reason, error, "unknown")

    def _ended(self, delivery: Delivery, began: float, error: BaseException | None) -> Outcome:
        calls = (self._call(began, "answered"),)
        match error:
            case None:
                return Delivered(calls, "handled")
            case Skip():
                return Skipped(calls, _text(error.why))
            case Retry():
                return Failed(calls, "put_off", f"handle: {_text(error.why)}", error.after)
            case GiveUp():
                return Failed(calls, "given_up", f"handle: {_text(error.why)}")
        # An error's text may hold anything, the event's data and secrets too: its type and place say enough.
        name = type(error).__name__
        _log.error(
            "handler %s raised %s at %s route=%s seq=%d",
            self._shown, name, place_of(error, skip=1) or "its call", delivery.route, delivery.seq,
        )  # fmt: skip
        return self._failed(began, "crashed", f"the function raised {name}", "answered")

    def _failed(self, began: float, error_class: ErrorClass, error: str, sent: Sent) -> Failed:
        return Failed((self._call(began, sent, error),), error_class, f"handle: {error}")

    def _call(self, began: float, sent: Sent, error: str | None = None) -> Call:
        milliseconds = round((steady() - began) * 1000, 2)
        return Call("handle", "CALL", self._shown, sent, milliseconds, error=error)


def build(route: Route, destination: PythonDestination, clients: Clients) -> Python:  # noqa: ARG001  # as every kind's
    """The deliverer of `route`.

    Raises:
        ConfigError: the function can't be imported, or can't be called with an event.
    """
    function = function_of(destination.function, f"destinations.{destination.name}.function")
    # What an earlier configuration left behind is still there after a reload.
    places = _PLACES.setdefault((destination.name, destination.function), Places(destination.concurrency))
    places.size = destination.concurrency
    return Python(destination.function, function, float(destination.timeout), places)


_PLACES: dict[tuple[str, str], Places] = {}


def event_of(delivery: Delivery) -> Event:
    """What the function is given of a delivery."""
    return Event(
        seq=delivery.seq,
        source=delivery.source,
        entity_type=delivery.entity_type,
        entity_id=delivery.entity_id,
        event_type=delivery.event_type,
        action=delivery.action,
        event_id=delivery.event_id,
        occurred_at=delivery.occurred_at,
        received_at=delivery.received_at,
        headers=dict(delivery.headers),
        body=event_scope(delivery)["body"],
        raw=delivery.body or b"",
        attempt=delivery.attempt,
        idempotency_key=delivery.idempotency_key,
    )


def _text(why: object) -> str:
    """What a handler said, as both databases can store it."""
    return str(why)[:_LONGEST_WHY].encode("utf-8", "replace").decode()
