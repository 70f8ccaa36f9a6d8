"""A relay process: carries out the orders of signals and of its parent.

SIGTERM and SIGINT stop it gracefully, a second one cuts running calls; SIGHUP reloads the configuration. A parent gives the
same orders through a pipe, the child's standard input. A pipe does what signals
can't. Two orders don't merge into one. An order sent while the child still starts waits for it instead of killing it.
When both get the same signal, as from a terminal or a service manager, it isn't mistaken for a second one. The pipe's
end shows that the parent is gone, for whatever reason.

`Supervisor` is the parent of `relay run --processes N`: it keeps N children running. They are programs of their own, started
by `subprocess`. A fork without exec would copy libpq's connections and any lock that a thread holds at that moment. The parent
makes no calls and keeps no connection, so that little can go wrong with it.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from enum import Enum
from typing import Any

from inbox.config.model import Config
from inbox.errors import ConfigError, collect_config_errors
from inbox.loader.load import load_file
from inbox.observe.recorder import ExporterProcess
from relay.daemon.generation import PreparedConfig, prepare
from relay.daemon.loop import Relay
from relay.observe import Observer

HANDLED = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
_STANDARD_INPUT = 0


class Order(Enum):
    """An order to a relay process; the value is the byte that its parent sends."""

    STOP = b"s"
    CUT = b"c"
    RELOAD = b"r"


Orders = queue.SimpleQueue[Order | None]
"""None: a child or the relay has ended."""


def orders_of_signals() -> Orders:
    """Turn signals into orders from now on. Main thread only.

    Python runs a handler only when the main thread gets to it; a thread that just begins to wait may never get there. One in
    some hundred signals was late until the next. So a thread reads the numbers, which Python writes to a pipe at once.
    """
    orders: Orders = queue.SimpleQueue()
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    signal.set_wakeup_fd(writing)
    threading.Thread(target=_translate, args=(reading, orders), name="signals", daemon=True).start()
    for number in HANDLED:
        capture_signal(number)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, HANDLED)  # a parent blocks them while a child starts
    return orders


def capture_signal(number: signal.Signals) -> None:
    """Replace a signal's default action by none, so that only its number is read."""
    signal.signal(number, lambda *_: None)


def ignore_signals() -> None:
    """Ignore signals that come too late. While Python ends, its handlers give way to the default, which kills."""
    for number in HANDLED:
        signal.signal(number, signal.SIG_IGN)


def _translate(reading: int, orders: Orders) -> None:
    stops = itertools.count()
    while True:
        for number in os.read(reading, 1):
            if number == signal.SIGHUP:
                orders.put(Order.RELOAD)
            elif number in HANDLED:
                orders.put(Order.CUT if next(stops) else Order.STOP)
            else:
                orders.put(None)


def read_parent_orders(orders: Orders, observer: Observer) -> None:
    """Put the orders that come through standard input into `orders`, too, and a stop when it ends."""

    def read() -> None:
        while sent := os.read(_STANDARD_INPUT, 1):
            with contextlib.suppress(
                ValueError
            ):  # an order of another version; the pipe's end must be read all the same
                orders.put(Order(sent))
        observer.tell("orphaned")
        orders.put(Order.STOP)

    threading.Thread(target=read, name="parent", daemon=True).start()


def run_relay(relay: Relay, config: Config, orders: Orders, observer: Observer, *, drain: bool) -> None:
    """Run the relay in a thread until it has ended, and carry out orders meanwhile.

    Raises:
        Exception: a bug ended it.
    """
    with ThreadPoolExecutor(1, "relay") as pool:
        running = pool.submit(relay.run, drain=drain)
        running.add_done_callback(lambda _: orders.put(None))
        try:
            while not running.done():
                match orders.get():
                    case Order.STOP:
                        relay.stop()
                    case Order.CUT:
                        relay.cut()
                    case Order.RELOAD:
                        _reload(relay, config, observer)
                    case None:
                        pass
        finally:
            relay.stop()
    ignore_signals()
    running.result()


def _reload(relay: Relay, config: Config, observer: Observer) -> None:
    try:
        relay.reload(read_again(config))
    except ConfigError as error:
        observer.reload_refused(error)


def read_again(config: Config) -> PreparedConfig:
    """Read and prepare the configuration as it is now, for a process that was started with `config`.

    Raises:
        ConfigError: it can't be used; the text has a line for each mistake.
    """

    def check_and_prepare(new: Config) -> PreparedConfig:
        parts: dict[str, Callable[[], Any]] = {
            "same": lambda: _require_same(config, new),
            "prepared": lambda: prepare(new),
        }
        prepared: PreparedConfig = collect_config_errors(parts)["prepared"]
        return prepared

    return load_file().make(check_and_prepare)


def _require_same(old: Config, new: Config) -> None:
    if new.database.url != old.database.url:
        raise ConfigError(f"{new.database.url.origin}: another database or password needs a restart")
    if new.database.wake_up != old.database.wake_up:
        raise ConfigError("[database] wake_up: another value needs a restart")
    if new.metrics.relay != old.metrics.relay:
        raise ConfigError("[metrics] relay: another address needs a restart")
    if new.logs != old.logs:
        raise ConfigError("[logs] needs a restart for another value")
    if new.traces != old.traces:
        raise ConfigError("[traces] needs a restart for another value")


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
