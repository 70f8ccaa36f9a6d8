"""Cuts calls at their deadline, whatever the other side does.

A timeout of `requests` applies to a single read, so a server that sends a byte now and then holds a call for ever. A
thread of the process checks the running calls and shuts down the socket of each that is due, which wakes its reader.
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
from inbox.logs.fields import fields
from inbox.logs.traces import without_message

_log = logging.getLogger(__name__)

CutBy = Literal["deadline", "lease"]

_TICK = 0.05
"""Seconds between two checks: a call is cut at most so much late."""


class CutOffError(TimeoutError):
    """The call was cut while it was still being set up."""


class RunningCall:
    """A running call: its deadline and lease, its socket, and a flag for a request that has left."""

    __slots__ = ("_lock", "_socket", "cut_by", "deadline", "lease", "sent")

    def __init__(self, deadline: float, lease: Callable[[], float]) -> None:
        self.deadline = deadline
        """The end of the call's own time, by `inbox.clock.steady`."""
        self.lease = lease
        """Returns the instant of that clock until which the lease is trusted. The instant may move. It must not raise."""
        self.sent = False
        self.cut_by: CutBy | None = None
        self._socket: socket.socket | None = None
        self._lock = threading.Lock()

    def remaining(self) -> float:
        """Return the seconds until the deadline.

        Raises:
            CutOffError: none are left, or the call was cut.
        """
        left = self.deadline - steady()
        if left <= 0 or self.cut_by is not None:
            raise CutOffError
        return left

    def attach(self, sock: socket.socket) -> None:
        """Attach the socket that a cut shuts down.

        Raises:
            CutOffError: the call was cut before.
        """
        with self._lock:
            if self.cut_by is not None:
                raise CutOffError
            self._socket = sock

    def detach(self) -> CutBy | None:
        """Detach the socket, which is closed or goes to another call. Return the cause of a cut, if the call was cut."""
        with self._lock:
            self._socket = None
            return self.cut_by

    def revoke(self) -> None:
        """Cut the call as if its lease had ended."""
        self._cut("lease")

    def cut_if_due(self, now: float) -> None:
        """Shut the socket down when the deadline or the lease has passed. A socket attached later is refused."""
        if self.cut_by is None and now < self.deadline and now < self.lease():
            return
        self._cut("deadline" if now >= self.deadline else "lease")

    def _cut(self, by: CutBy) -> None:
        with self._lock:
            if self.cut_by is None:
                self.cut_by = by
            if self._socket is not None:
                with contextlib.suppress(OSError):  # closed or reset by the other side: the call has ended
                    # Not sock.shutdown(): that of an SSLSocket drops its TLS state under the thread that reads from it.
                    socket.socket.shutdown(self._socket, socket.SHUT_RDWR)


class Watchdog:
    """The thread that cuts calls. It starts with the first call, and again in a process forked afterwards."""

    def __init__(self) -> None:
        self._running: dict[RunningCall, None] = {}
        self._busy = threading.Event()
        self._starting = threading.Lock()
        self._thread: threading.Thread | None = None

    def watch(self, running: RunningCall) -> None:
        """Cut `running` when it is due, until `forget`."""
        self._running[running] = None
        if not self._busy.is_set():
            self._busy.set()
        if self._thread is None or not self._thread.is_alive():
            self._start()

    def forget(self, running: RunningCall) -> None:
        """Stop watching a call that has ended."""
        self._running.pop(running, None)

    def _start(self) -> None:
        with self._starting:
            if self._thread is None or not self._thread.is_alive():
                self._thread = threading.Thread(target=self._run, name="watchdog", daemon=True)
                self._thread.start()

    def _run(self) -> None:
        while True:
            if not self._running:
                self._busy.clear()
                if not self._running:  # no call came between the check and the clear
                    self._busy.wait()
            time.sleep(_TICK)
            now = steady()
            for running in list(self._running):
                try:
                    running.cut_if_due(now)
                except Exception as error:  # noqa: BLE001  # an unknown lease is not trusted, and the other calls stay watched
                    _log.error(
                        "bug in the watchdog, which goes on", exc_info=without_message(error), extra=fields("bug")
                    )
                    running.revoke()


WATCHDOG = Watchdog()
