"""`relay run --processes N`: a parent that keeps N relay processes running and tells them what it is told.

Children are programs of their own, started by `subprocess`. A fork without exec would copy libpq's connections and any
lock that a thread holds at that moment; multiprocessing's spawn avoids that, but brings a process that tracks resources
and a pickled call, and gives nothing that is needed here: the children share a database and nothing else. A program of
its own is also what `ps` shows and what an operator can stop alone.

The parent makes no calls and keeps no connection, so that little can go wrong with it. If it goes all the same, the
children stop in order: each has a pipe from it as standard input (`relay.daemon.process`).
"""

from __future__ import annotations

import contextlib
import queue
import signal
import subprocess
import sys
import time
from collections.abc import Sequence

from inbox.config.model import Config
from inbox.errors import ConfigError
from inbox.telemetry.recorder import Exporter
from relay.daemon.process import HANDLED, Order, Orders, ignore_signals, notice, read_again
from relay.observe import Observer

FIRST_WAIT_SECONDS = 1.0
"""Between the end of a child that should have run on and the start of the next; doubled while they end soon."""
LONGEST_WAIT_SECONDS = 30.0
"""What the wait is doubled up to; a child that ran for longer has not ended soon."""


class Supervisor:
    """The parent. Main thread only: `subprocess` and signals want it."""

    def __init__(
        self,
        options: Sequence[str],
        config: Config,
        *,
        processes: int,
        drain: bool,
        orders: Orders,
        observer: Observer,
        exporter: Exporter | None = None,
    ) -> None:
        """`options` are those of each child's `relay run`; children that end well are not replaced when they `drain`."""
        command = [sys.executable, "-m", "relay", "run", "--supervised", *options]
        pipes = () if exporter is None else (exporter.pipe,)
        self._places = [_Place(command, observer, pipes, drain=drain) for _ in range(processes)]
        self._config = config
        self._orders = orders
        self._observer = observer
        self._exporter = exporter
        self._stopping = False

    def run(self) -> int:
        """Keep the children running until told to stop, or until all are drained.

        Returns:
            The exit status: 0 when the last child of each place ended in order.
        """
        notice(signal.SIGCHLD)
        while self._look_after_places():
            self._obey(self._next_order())
        ignore_signals()
        return int(any(place.status for place in self._places))

    def _look_after_places(self) -> bool:
        """Whether there is still anything to do."""
        now = time.monotonic()
        if self._exporter is not None:
            self._exporter.ensure()
        for place in self._places:
            place.look_after(now, stopping=self._stopping)
        return not all(place.is_over for place in self._places)

    def _next_order(self) -> Order | None:
        """None when a child has ended, or when it is time to start one."""
        start_at = min((place.start_at for place in self._places if place.is_vacant), default=None)
        try:
            return self._orders.get(timeout=None if start_at is None else max(start_at - time.monotonic(), 0))
        except queue.Empty:
            return None

    def _obey(self, order: Order | None) -> None:
        if order is None or (order is Order.RELOAD and not self._can_reload()):
            return
        if order is not Order.RELOAD:
            self._stopping = True
        for place in self._places:
            place.tell(order)

    def _can_reload(self) -> bool:
        """Look before the children do, so that mistakes are told once."""
        try:
            read_again(self._config)
        except ConfigError as error:
            self._observer.reload_refused(str(error).splitlines())
            return False
        return True


class _Place:
    """One of the processes there have to be: the child that runs, or when the next one is to start."""

    def __init__(self, command: Sequence[str], observer: Observer, pipes: Sequence[int], *, drain: bool) -> None:
        """`pipes` are what the child gets from the parent besides its standard input."""
        self.start_at = 0.0
        self.is_over = False
        self.status = 0
        """Of the child that ended last; below 0: the signal that killed it."""
        self._command = command
        self._observer = observer
        self._pipes = pipes
        self._drain = drain
        self._child: subprocess.Popen[bytes] | None = None
        self._started_at = 0.0
        self._wait = FIRST_WAIT_SECONDS / 2

    @property
    def is_vacant(self) -> bool:
        """Whether a child is to be started, now or later."""
        return self._child is None and not self.is_over

    def look_after(self, now: float, *, stopping: bool) -> None:
        """See whether the child has ended, and whether another is due."""
        if self._child is not None and self._child.poll() is not None:
            self._bury(self._child, now, stopping=stopping)
        if self.is_vacant and stopping:
            self.is_over = True
        if self.is_vacant and now >= self.start_at:
            self._start(now)

    def tell(self, order: Order) -> None:
        """Pass an order on to the child, if one runs."""
        if self._child is not None and self._child.stdin is not None:
            with contextlib.suppress(BrokenPipeError):  # it has just ended
                self._child.stdin.write(order.value)

    def _start(self, now: float) -> None:
        self._started_at = now
        before = signal.pthread_sigmask(signal.SIG_BLOCK, HANDLED)  # the child lets them in when it can handle them
        try:
            self._child = subprocess.Popen(  # noqa: S603  # our own Python, our own arguments
                self._command, stdin=subprocess.PIPE, bufsize=0, pass_fds=self._pipes
            )
        except OSError as error:  # no memory, or too many processes
            self.status = 1
            self._observer.child_not_started(error, self._postpone(now))
        else:
            self._observer.child_started(self._child.pid)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)

    def _bury(self, child: subprocess.Popen[bytes], now: float, *, stopping: bool) -> None:
        self._child, self.status = None, child.returncode
        if child.stdin is not None:
            child.stdin.close()
        if stopping or (self._drain and self.status == 0):
            self.is_over = True
            self._observer.child_ended(child.pid, self.status)
        else:
            self._observer.child_lost(child.pid, self.status, self._postpone(now))

    def _postpone(self, now: float) -> float:
        """When the next child starts; tells in how many seconds that is."""
        soon = now - self._started_at < LONGEST_WAIT_SECONDS
        self._wait = min(self._wait * 2, LONGEST_WAIT_SECONDS) if soon else FIRST_WAIT_SECONDS
        self.start_at = now + self._wait
        return self._wait
