"""Python handlers: calls a function of yours, `package.module:name`, in a separate thread.

A thread can't be ended from outside. When a function does not return in time, its thread is left behind, and keeps its slot
of the destination's `concurrency` until it returns. So a hanging function can't occupy more threads than that.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from contextlib import nullcontext

from inbox.clock import steady
from inbox.config.model import PythonDestination, Route
from inbox.errors import BodyErased
from inbox.observe.logs import fields, place_of
from inbox.observe.traces import Span
from relay.delivery.outcome import Call, Delivered, Delivery, ErrorClass, Failed, Outcome, Sent, Skipped
from relay.destinations.base import Clients, Context
from relay.handler import Event, GiveUp, Retry, Skip
from relay.sync.compiled_route import event_scope
from relay.sync.expressions import Function, function_of

_log = logging.getLogger(__name__)

_TICK = 0.05
"""Seconds between two checks of the lease, which may end early."""
_LONGEST_WHY = 500


class HandlerSlots:
    """The slots of one destination's functions: `size` run at once, those left behind included."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.left_behind = 0
        self._taken = 0
        self._changed = threading.Condition()

    def acquire(self, is_over: Callable[[], bool]) -> bool:
        """Wait for a slot and acquire it. False when `is_over`, or when calls left behind hold all slots."""
        with self._changed:
            while not is_over():
                if self._taken < self.size:
                    self._taken += 1
                    return True
                if self.left_behind >= self.size:
                    break
                self._changed.wait(_TICK)
            return False

    def leave_behind(self, running: Running) -> bool:
        """Leave a call behind; False when it has just ended."""
        with self._changed:
            if running.ended.is_set():
                return False
            running.is_left_behind = True
            self.left_behind += 1
            self._changed.notify_all()
            return True

    def release(self, running: Running) -> None:
        """Release the slot of a call that has ended."""
        with self._changed:
            running.ended.set()
            self._taken -= 1
            self.left_behind -= running.is_left_behind
            self._changed.notify_all()


class Running:
    """A call of the function in its thread."""

    def __init__(self, function: Function, event: Event, slots: HandlerSlots, span: Span | None = None) -> None:
        self.ended = threading.Event()
        self.is_left_behind = False
        self.error: BaseException | None = None
        self._function = function
        self._event = event
        self._slots = slots
        self._span = span

    def start(self, name: str) -> None:
        """Start the thread of a call that has its slot.

        Raises:
            RuntimeError: the system has no thread for it.
        """
        threading.Thread(target=self._run, name=name, daemon=True).start()

    def _run(self) -> None:
        try:
            with nullcontext() if self._span is None else self._span.current():
                self._function(self._event)
        except BaseException as error:  # noqa: BLE001  # any error ends this call alone
            self.error = error
        finally:
            self._slots.release(self)


class Python:
    """The deliverer of one route to a python destination."""

    def __init__(self, shown: str, function: Function, timeout: float, slots: HandlerSlots) -> None:
        self._shown = shown
        self._function = function
        self._timeout = timeout
        self._slots = slots

    def deliver(self, delivery: Delivery, context: Context) -> Outcome:
        """Call the function. It succeeds when it returns within `timeout` and the lease."""
        if delivery.body is None:
            return Skipped((), str(BodyErased()))
        running = Running(self._function, event_of(delivery), self._slots, context.span)
        began = steady()
        if not self._slots.acquire(lambda: self._over(began, context) is not None):
            if self._over(began, context) == "lease_lost":
                return self._failed(began, "lease_lost", "not called: the lease ended", "not_sent")
            why = f"not called: {self._slots.size} calls before it have not returned yet"
            return self._failed(began, "not_sent", why, "not_sent")
        began = steady()  # the wait for a slot does not reduce the call's time
        try:
            running.start(f"{delivery.route}-{delivery.seq}")
        except RuntimeError:
            self._slots.release(running)
            return self._failed(began, "not_sent", "not called: the system has no thread for it", "not_sent")
        while not running.ended.wait(min(_TICK, self._timeout)):
            reason = self._over(began, context)
            if reason is not None and self._slots.leave_behind(running):
                return self._left_behind(delivery, began, reason)
        return self._ended(delivery, began, running.error)

    def close(self) -> None:
        """Do nothing: a function has no connections."""

    def _over(self, began: float, context: Context) -> ErrorClass | None:
        """Return the reason to end a call, or the wait for its slot, that began then; None: it may go on."""
        now = steady()
        if now >= context.lease():
            return "lease_lost"
        return "unknown" if now >= began + self._timeout else None

    def _left_behind(self, delivery: Delivery, began: float, reason: ErrorClass) -> Failed:
        error = "left behind: the lease ended" if reason == "lease_lost" else f"no return within {self._timeout:g} s"
        _log.warning(
            "handler %s left behind route=%s seq=%d: %s",
            self._shown,
            delivery.route,
            delivery.seq,
            error,
            extra=fields("left_behind", route=delivery.route, seq=delivery.seq, error=error),
        )
        return self._failed(began, reason, error, "unknown")

    def _ended(self, delivery: Delivery, began: float, error: BaseException | None) -> Outcome:
        calls = (self._call(began, "answered"),)
        match error:
            case None:
                return Delivered(calls, "handled")
            case Skip():
                return Skipped(calls, _text(error.why))
            case Retry():
                return Failed(calls, "handler_retry", f"handle: {_text(error.why)}", error.after)
            case GiveUp():
                return Failed(calls, "handler_abort", f"handle: {_text(error.why)}")
        # An error's text may hold anything, such as the event's data and secrets: its type and place suffice.
        name = type(error).__name__
        _log.error(
            "handler %s raised %s at %s route=%s seq=%d",
            self._shown, name, place_of(error, skip=1) or "its call", delivery.route, delivery.seq,
            extra=fields("handler_raised", route=delivery.route, seq=delivery.seq, error=name),
        )  # fmt: skip
        return self._failed(began, "crashed", f"the function raised {name}", "answered")

    def _failed(self, began: float, error_class: ErrorClass, error: str, sent: Sent) -> Failed:
        return Failed((self._call(began, sent, error),), error_class, f"handle: {error}")

    def _call(self, began: float, sent: Sent, error: str | None = None) -> Call:
        milliseconds = round((steady() - began) * 1000, 2)
        return Call("handle", "CALL", self._shown, sent, milliseconds, error=error)


def build(route: Route, destination: PythonDestination, clients: Clients) -> Python:  # noqa: ARG001  # as every kind's
    """Make the deliverer of `route`.

    Raises:
        ConfigError: the function can't be imported, or can't be called with an event.
    """
    function = function_of(destination.function, f"destinations.{destination.name}.function")
    # Calls left behind by an earlier configuration still run after a reload.
    slots = _SLOTS.setdefault((destination.name, destination.function), HandlerSlots(destination.concurrency))
    slots.size = destination.concurrency
    return Python(destination.function, function, float(destination.timeout), slots)


_SLOTS: dict[tuple[str, str], HandlerSlots] = {}


def event_of(delivery: Delivery) -> Event:
    """Convert a delivery to the event that the function gets."""
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
    """Convert a handler's text to one that both databases can store."""
    return str(why)[:_LONGEST_WHY].encode("utf-8", "replace").decode()
