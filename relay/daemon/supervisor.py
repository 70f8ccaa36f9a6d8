"""`relay run --processes N`: a parent that keeps N relay processes running and passes orders on to them.

Children are programs of their own, started by `subprocess`. A fork without exec would copy libpq's connections and any
lock that a thread holds at that moment; multiprocessing's spawn avoids that, but brings a process that tracks resources
and a pickled call, and has no use here: the children share a database and nothing else. `ps` shows each program, and
an operator can stop it alone.

The parent makes no calls and keeps no connection, so that little can go wrong with it. If it dies all the same, the
children stop gracefully: each has a pipe from it as standard input (`relay.daemon.process`).
"""

from __future__ import annotations

import contextlib
import logging
import queue
import signal
import subprocess
import sys
import time
from collections.abc import Sequence

from inbox.config.model import Config
from inbox.errors import ConfigError
from inbox.observe.recorder import ExporterProcess
from relay.daemon.process import HANDLED, Order, Orders, capture_signal, ignore_signals, read_again
from relay.observe import Observer

FIRST_WAIT_SECONDS = 1.0
"""The wait between a child's unexpected exit and the start of the next; doubled while they keep exiting quickly."""
LONGEST_WAIT_SECONDS = 30.0
"""The longest wait; a child that ran for longer has not exited quickly."""


class Supervisor:
    """The parent process. Main thread only, as `subprocess` and signals require."""

    def __init__(
        self,
        options: Sequence[str],
        config: Config,
        *,
        processes: int,
        drain: bool,
        orders: Orders,
        observer: Observer,
        exporter: ExporterProcess | None = None,
    ) -> None:
        """`options` are those of each child's `relay run`; with `drain`, children that succeed are not replaced."""
        command = [sys.executable, "-m", "relay", "run", "--supervised", *options]
        pipes = () if exporter is None else (exporter.pipe,)
        self._slots = [ChildSlot(command, observer, pipes, drain=drain) for _ in range(processes)]
        self._config = config
        self._orders = orders
        self._observer = observer
        self._exporter = exporter
        self._stopping = False

    def run(self) -> int:
        """Keep the children running until a stop, or until all are drained.

        Returns:
            The exit status: 0 when the last child of each slot succeeded.
        """
        capture_signal(signal.SIGCHLD)
        while self._update_slots():
            self._carry_out(self._next_order())
        ignore_signals()
        return int(any(slot.status for slot in self._slots))

    def _update_slots(self) -> bool:
        """Handle exits, and start children that are due. Returns whether any slot is still in use."""
        now = time.monotonic()
        if self._exporter is not None:
            self._exporter.ensure()
        for slot in self._slots:
            slot.update(now, stopping=self._stopping)
        return not all(slot.is_over for slot in self._slots)

    def _next_order(self) -> Order | None:
        """Wait for an order. Returns None when a child has exited, or when it is time to start one."""
        start_at = min((slot.start_at for slot in self._slots if slot.is_vacant), default=None)
        try:
            return self._orders.get(timeout=None if start_at is None else max(start_at - time.monotonic(), 0))
        except queue.Empty:
            return None

    def _carry_out(self, order: Order | None) -> None:
        if order is None or (order is Order.RELOAD and not self._can_reload()):
            return
        if order is not Order.RELOAD:
            self._stopping = True
        for slot in self._slots:
            slot.send(order)

    def _can_reload(self) -> bool:
        """Check the configuration before the children read it, so that mistakes are logged once."""
        try:
            read_again(self._config)
        except ConfigError as error:
            self._observer.reload_refused(error)
            return False
        return True


class ChildSlot:
    """A slot of the N processes: the child that runs, or the time when the next one starts."""

    def __init__(self, command: Sequence[str], observer: Observer, pipes: Sequence[int], *, drain: bool) -> None:
        """`pipes` are the file descriptors that the child inherits besides its standard input."""
        self.start_at = 0.0
        self.is_over = False
        self.status = 0
        """The exit status of the last child; below 0, the signal that killed it."""
        self._command = command
        self._observer = observer
        self._pipes = pipes
        self._drain = drain
        self._child: subprocess.Popen[bytes] | None = None
        self._started_at = 0.0
        self._wait = FIRST_WAIT_SECONDS / 2

    @property
    def is_vacant(self) -> bool:
        """True when a child is to be started, now or later."""
        return self._child is None and not self.is_over

    def update(self, now: float, *, stopping: bool) -> None:
        """Handle the child's exit, and start the next child when it is due."""
        if self._child is not None and self._child.poll() is not None:
            self._on_child_exit(self._child, now, stopping=stopping)
        if self.is_vacant and stopping:
            self.is_over = True
        if self.is_vacant and now >= self.start_at:
            self._start(now)

    def send(self, order: Order) -> None:
        """Pass an order on to the child, if one runs."""
        if self._child is not None and self._child.stdin is not None:
            with contextlib.suppress(BrokenPipeError):  # it has just exited
                self._child.stdin.write(order.value)

    def _start(self, now: float) -> None:
        self._started_at = now
        before = signal.pthread_sigmask(signal.SIG_BLOCK, HANDLED)  # the child unblocks them once it handles them
        try:
            self._child = subprocess.Popen(  # noqa: S603  # our own Python, our own arguments
                self._command, stdin=subprocess.PIPE, bufsize=0, pass_fds=self._pipes
            )
        except OSError as error:  # no memory, or too many processes
            self.status = 1
            self._observer.tell("child_not_started", error=str(error), seconds=self._postpone(now))
        else:
            self._observer.tell("child_started", child=self._child.pid)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)

    def _on_child_exit(self, child: subprocess.Popen[bytes], now: float, *, stopping: bool) -> None:
        self._child, self.status = None, child.returncode
        if child.stdin is not None:
            child.stdin.close()
        if stopping or (self._drain and self.status == 0):
            self.is_over = True
            level = logging.ERROR if self.status else logging.INFO
            self._observer.tell("child_ended", level, child=child.pid, ending=_ending(self.status))
        else:
            ending, seconds = _ending(self.status), self._postpone(now)
            self._observer.tell("child_lost", child=child.pid, ending=ending, seconds=seconds)

    def _postpone(self, now: float) -> float:
        """Set when the next child starts. Returns in how many seconds that is."""
        soon = now - self._started_at < LONGEST_WAIT_SECONDS
        self._wait = min(self._wait * 2, LONGEST_WAIT_SECONDS) if soon else FIRST_WAIT_SECONDS
        self.start_at = now + self._wait
        return self._wait


def _ending(status: int) -> str:
    """Word a `Popen.returncode`."""
    names = {number.value: number.name for number in signal.Signals}
    return f"exit status {status}" if status >= 0 else f"killed by {names.get(-status, f'signal {-status}')}"
