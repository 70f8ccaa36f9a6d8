"""Python handlers: calls a function of the operator, `package.module:name`, in a separate thread.

A thread can't be stopped from outside. If a function does not return in time, its thread is left behind. The thread keeps its
slot of the destination's `concurrency` until it returns. So a hanging function can't occupy more threads than that.
"""

from __future__ import annotations

import logging
import queue
import threading
from contextlib import nullcontext
from functools import partial

from inbox.clock import steady
from inbox.config.model import PythonDestination, Route
from inbox.errors import BodyErased
from inbox.observe.logs import fields, format_place
from inbox.observe.traces import Span
from relay.delivery.outcome import Call, Delivered, Delivery, ErrorClass, Failed, Outcome, Sent, Skipped
from relay.destinations.base import Clients, Context
from relay.handler import Event, GiveUp, Retry, Skip
from relay.sync.compiled_route import event_scope
from relay.sync.expressions import Function, load_function

_log = logging.getLogger(__name__)

_TICK = 0.05
"""Seconds between checks of the lease, which may end early."""
_LONGEST_WHY = 500


def _work(
    function: Function,
    event: Event,
    span: Span | None,
    slots: threading.Semaphore,
    ended: queue.SimpleQueue[BaseException | None],
) -> None:
    """Call the function, release its slot, and put its error or None into `ended`."""
    raised: BaseException | None = None
    try:
        with nullcontext() if span is None else span.current():
            function(event)
    except BaseException as error:  # noqa: BLE001  # any error ends only this call
        raised = error
    slots.release()
    ended.put(raised)


class Python:
    """The deliverer of one route to a python destination."""

    def __init__(self, shown: str, function: Function, timeout: float, slots: threading.Semaphore) -> None:
        self._shown = shown
        self._function = function
        self._timeout = timeout
        self._slots = slots
        """Limits concurrent calls, including those left behind."""

    def __call__(self, delivery: Delivery, context: Context) -> Outcome:
        """Call the function. It succeeds when it returns within `timeout` and the lease."""
        if delivery.body is None:
            return Skipped((), str(BodyErased()))
        began, tick = steady(), min(_TICK, self._timeout)
        while (reason := self._find_end(began, context)) is None and not self._slots.acquire(timeout=tick):
            pass
        if reason == "lease_lost":
            return self._fail(began, "lease_lost", "not called: the lease ended", "not_sent")
        if reason is not None:
            why = "not called: earlier calls occupy all slots of the destination's concurrency"
            return self._fail(began, "not_sent", why, "not_sent")
        began = steady()  # the wait for a slot does not reduce the call's time
        ended: queue.SimpleQueue[BaseException | None] = queue.SimpleQueue()
        work = partial(_work, self._function, make_event(delivery), context.span, self._slots, ended)
        try:
            threading.Thread(target=work, name=f"{delivery.route}-{delivery.seq}", daemon=True).start()
        except RuntimeError:
            self._slots.release()
            return self._fail(began, "not_sent", "not called: the system has no thread for it", "not_sent")
        while True:
            try:
                return self._conclude(delivery, began, ended.get(timeout=tick))
            except queue.Empty:
                reason = self._find_end(began, context)
                if reason is not None:
                    return self._left_behind(delivery, began, reason)

    def _find_end(self, began: float, context: Context) -> ErrorClass | None:
        """Return the reason to end a call, or the wait for its slot, that began at `began`; None if it may continue."""
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
        return self._fail(began, reason, error, "unknown")

    def _conclude(self, delivery: Delivery, began: float, error: BaseException | None) -> Outcome:
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
        # The text of an error may contain data of the event or secrets: log only its type and place.
        name = type(error).__name__
        _log.error(
            "handler %s raised %s at %s route=%s seq=%d",
            self._shown, name, format_place(error, skip=1) or "its call", delivery.route, delivery.seq,
            extra=fields("handler_raised", route=delivery.route, seq=delivery.seq, error=name),
        )  # fmt: skip
        return self._fail(began, "crashed", f"the function raised {name}", "answered")

    def _fail(self, began: float, error_class: ErrorClass, error: str, sent: Sent) -> Failed:
        return Failed((self._call(began, sent, error),), error_class, f"handle: {error}")

    def _call(self, began: float, sent: Sent, error: str | None = None) -> Call:
        milliseconds = round((steady() - began) * 1000, 2)
        return Call("handle", "CALL", self._shown, sent, milliseconds, error=error)


def build(route: Route, destination: PythonDestination, clients: Clients) -> Python:  # noqa: ARG001  # as every kind's
    """Make the deliverer of `route`.

    Raises:
        ConfigError: the function can't be imported, or does not accept an event.
    """
    function = load_function(destination.function, f"destinations.{destination.name}.function")
    # Calls left behind by an earlier configuration may still run after a reload.
    key = (destination.name, destination.function, destination.concurrency)
    slots = _SLOTS.setdefault(key, threading.Semaphore(destination.concurrency))
    return Python(destination.function, function, float(destination.timeout), slots)


_SLOTS: dict[tuple[str, str, int], threading.Semaphore] = {}


def make_event(delivery: Delivery) -> Event:
    """Convert a delivery to the event for the function."""
    same = {name: getattr(delivery, name) for name in Event.__struct_fields__ if name not in {"headers", "body", "raw"}}
    body = event_scope(delivery)["body"]
    return Event(**same, headers=dict(delivery.headers), body=body, raw=delivery.body or b"")


def _text(why: object) -> str:
    """Convert a handler's text to a form that both databases can store."""
    return str(why)[:_LONGEST_WHY].encode("utf-8", "replace").decode()
