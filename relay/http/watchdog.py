"""Ends calls that have run out of time, whatever the other side does.

A timeout of `requests` is one per read, so a server that sends a byte now and then holds a call for ever. One thread
for the whole process looks at the running calls and shuts the socket of each that is due, which wakes its reader.
"""

from __future__ import annotations

import contextlib
import logging
import socket
import threading
import time
from collections.abc import Callable
from typing import Literal

from inbox.clock import steady
from inbox.logs.traces import without_message

_log = logging.getLogger(__name__)

CutBy = Literal["deadline", "lease"]

_TICK = 0.05
"""Seconds between two looks: a call is cut at most this much late."""


class CutOffError(TimeoutError):
    """The call was cut while it was still being set up."""


class RunningCall:
    """One running call: until when it may run, the socket that ends it, and whether anything of it has left."""

    __slots__ = ("_lock", "_socket", "cut_by", "deadline", "lease", "sent")

    def __init__(self, deadline: float, lease: Callable[[], float]) -> None:
        self.deadline = deadline
        """The instant of `inbox.clock.steady` at which the call's own time is over."""
        self.lease = lease
        """Gives the instant of that clock until which the lease is trusted, which may move meanwhile. It must not raise."""
        self.sent = False
        self.cut_by: CutBy | None = None
        self._socket: socket.socket | None = None
        self._lock = threading.Lock()

    def remaining(self) -> float:
        """Seconds until the deadline.

        Raises:
            CutOffError: there are none left, or the call was cut.
        """
        left = self.deadline - steady()
        if left <= 0 or self.cut_by is not None:
            raise CutOffError
        return left

    def hold(self, sock: socket.socket) -> None:
        """Name the socket that a cut shuts down.

        Raises:
            CutOffError: it is too late, the call was cut before.
        """
        with self._lock:
            if self.cut_by is not None:
                raise CutOffError
            self._socket = sock

    def let_go(self) -> CutBy | None:
        """The socket is not to be shut any more: it is closed, or goes to another call. Tells what cut the call."""
        with self._lock:
            self._socket = None
            return self.cut_by

    def revoke(self) -> None:
        """Cut it as if its lease had ended."""
        self._cut("lease")

    def cut_if_due(self, now: float) -> None:
        """Shut the socket down when the deadline or the lease has passed; once it has, each new socket too."""
        if self.cut_by is None and now < self.deadline and now < self.lease():
            return
        self._cut("deadline" if now >= self.deadline else "lease")

    def _cut(self, by: CutBy) -> None:
        with self._lock:
            if self.cut_by is None:
                self.cut_by = by
            if self._socket is not None:
                with contextlib.suppress(OSError):  # closed or reset by the other side: the call has ended
                    # Not sock.shutdown(): an SSLSocket's own drops its TLS state under the thread that reads from it.
                    socket.socket.shutdown(self._socket, socket.SHUT_RDWR)


class Watchdog:
    """The one thread; it starts with the first call, and again in a process forked afterwards."""

    def __init__(self) -> None:
        self._running: dict[RunningCall, None] = {}
        self._busy = threading.Event()
        self._starting = threading.Lock()
        self._thread: threading.Thread | None = None

    def watch(self, exchange: RunningCall) -> None:
        """Cut `exchange` when it is due, until `forget`."""
        self._running[exchange] = None
        if not self._busy.is_set():
            self._busy.set()
        if self._thread is None or not self._thread.is_alive():
            self._start()

    def forget(self, exchange: RunningCall) -> None:
        """The call has ended."""
        self._running.pop(exchange, None)

    def _start(self) -> None:
        with self._starting:
            if self._thread is None or not self._thread.is_alive():
                self._thread = threading.Thread(target=self._run, name="watchdog", daemon=True)
                self._thread.start()

    def _run(self) -> None:
        while True:
            if not self._running:
                self._busy.clear()
                if not self._running:  # nothing came between the look and the clear
                    self._busy.wait()
            time.sleep(_TICK)
            now = steady()
            for exchange in list(self._running):
                try:
                    exchange.cut_if_due(now)
                except Exception as error:  # noqa: BLE001  # a lease that can't be told is not trusted, and the other calls are watched on
                    _log.error("bug in the watchdog, which goes on", exc_info=without_message(error))
                    exchange.revoke()


WATCHDOG = Watchdog()
