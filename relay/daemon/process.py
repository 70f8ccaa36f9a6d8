"""Runs a relay process, or the parent of several, for `relay run`, and handles the signals that stop or reload it.

SIGTERM and SIGINT stop it gracefully, a second one cuts running calls; SIGHUP reloads the configuration.

`Supervisor` is the parent of `relay run --processes N`: it keeps N children running. They are started with exec, as a
bare fork would copy libpq's connections and any lock that a thread holds at that moment. The parent makes no calls and
keeps no connection, so little can go wrong in it. Each order to a child has its own signal. So a child does not count
a signal from the terminal or service manager as a second order. A child blocks the signals until it can
handle them. Linux stops the children of a dead parent.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import itertools
import logging
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from enum import Enum
from functools import partial
from typing import Any

import msgspec
from sqlalchemy import Engine
from sqlalchemy.exc import DBAPIError

from inbox.config.model import Config
from inbox.db import engine, guarantees, migrate
from inbox.db.dialect import classify_failure
from inbox.errors import ConfigError, collect_config_errors
from inbox.exposure import exposure_warnings
from inbox.loader.load import config_path, load_file
from inbox.observe import logs
from inbox.observe.metrics import OFF
from inbox.observe.recorder import ExporterProcess, exporter_at
from inbox.observe.traces import make_tracer
from relay.daemon.gauges import READ_EVERY_SECONDS, Gauges, make_meters
from relay.daemon.generation import PreparedConfig, prepare
from relay.daemon.loop import Relay
from relay.observe import Observer
from relay.steps import run_beside
from relay.store.database import Database

AGAIN_SECONDS = 2.0
"""Wait between two attempts to start while the database is down."""
HANDLED = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1)
NEEDING_RESTART = ("database.url", "database.wake_up", "metrics.relay", "logs", "traces")
"""The keys and tables that a reload can't change."""
LOOK_SECONDS = 0.2
"""The longest wait for an order, and the interval for checking on the children."""
_PR_SET_PDEATHSIG = 1


class Order(Enum):
    """An order to a relay process; the value is the signal that its parent sends."""

    STOP = signal.SIGTERM
    CUT = signal.SIGUSR1
    RELOAD = signal.SIGHUP


Orders = queue.SimpleQueue[Order | None]
"""None: the relay has ended."""


class RunOptions(msgspec.Struct, frozen=True):
    """The options of `relay run`."""

    grace_seconds: float
    processes: int = 1
    drain: bool = False
    verbose: bool = False
    parent: int | None = None
    """The process id of a child's supervisor."""

    @property
    def of_child(self) -> list[str]:
        """The command-line options of each child."""
        return ["--grace", str(self.grace_seconds), *["--drain"] * self.drain, *["--verbose"] * self.verbose]


def start(options: RunOptions) -> int:
    """Run a relay, or the supervisor of several, until it is stopped.

    It waits while the database does not respond; with `drain`, an unresponsive database is an error.

    Returns:
        The exit status.

    Raises:
        ConfigError: the configuration can't be used.
        RuntimeError: a critical step has failed for too long; a new process may succeed.
    """
    _log_to_stderr(verbose=options.verbose, several=options.processes > 1 or options.parent is not None)
    observer, orders = Observer(), receive_orders(options.parent)
    prepared = load_file().make(prepare)
    config = prepared.config
    logs.escape_lines(logging.getLogger().handlers, form=config.logs.format)
    connections = engine.connect(config.database.url, application="inbox-relay")
    if not _is_fit(connections, orders, observer, is_patient=not options.drain):
        return 0
    if options.parent is None:
        for what in exposure_warnings(config_path(), config):
            observer.log("exposed", what=what)
    with ExitStack() as leaving:
        served = None if config.metrics.relay is None else config.metrics.relay.place
        exporter = exporter_at(served, config.logs.format) if options.parent is None else None
        if exporter is not None:
            leaving.callback(exporter.stop)
            exporter.ensure()
        if options.processes > 1:
            connections.dispose()
            return Supervisor(options, config, orders, observer, exporter).run()
        database = Database(connections)
        observer.meters = make_meters(config)
        leaving.callback(observer.meters.close)
        observer.tracer = make_tracer(config.traces.endpoint, config.traces.ratio, "inbox-relay")
        leaving.callback(observer.tracer.close)
        relay = Relay(database, prepared, observer=observer, grace_seconds=options.grace_seconds)
        gc.freeze()  # the receiver does the same
        if observer.meters is not OFF:
            ended = threading.Event()
            gauges = Gauges(database, observer, config, exporter)
            run_beside("gauges", gauges.publish, every=READ_EVERY_SECONDS, stop=ended, observer=observer)
            leaving.callback(ended.set)
        try:
            run_relay(relay, config, orders, observer, drain=options.drain)
        except (
            ConfigError,
            DBAPIError,
        ) as error:  # as a command it would exit with 2, after which systemd does not restart it
            raise RuntimeError("the relay gave up, for another to be started") from error
        return 0


def _is_fit(connections: Engine, orders: Orders, observer: Observer, *, is_patient: bool) -> bool:
    """Check the schema and the guarantees as soon as the database responds.

    It keeps trying, as after a power cut a relay may start before its database. A reload ordered meanwhile is put back in
    the queue, since the configuration has already been read.

    Returns:
        False if a stop came before the database responded.

    Raises:
        ConfigError: the database does not meet the requirements.
        DBAPIError: the database does not respond and `is_patient` is false, or it can't run the checks.
    """
    is_to_reload = False
    while True:
        try:
            migrate.require_current(connections)
            guarantees.require(connections)
        except DBAPIError as error:
            if not is_patient or classify_failure(error) == "fault":
                raise
            observer.on_database_trouble("starting", error)
        else:
            if is_to_reload:
                orders.put(Order.RELOAD)
            return True
        again_at = time.monotonic() + AGAIN_SECONDS
        while time.monotonic() < again_at:
            with contextlib.suppress(queue.Empty):
                order = orders.get(timeout=LOOK_SECONDS)
                if order in {Order.STOP, Order.CUT}:
                    return False
                is_to_reload = is_to_reload or order is Order.RELOAD


def _log_to_stderr(*, verbose: bool, several: bool) -> None:
    pid = "%(process)d " if several else ""
    level = logging.INFO if verbose else logging.WARNING
    logging.basicConfig(level=level, format=f"%(asctime)s {pid}%(levelname)s %(message)s")
    logs.escape_lines(logging.getLogger().handlers)
    logging.getLogger("relay.node").setLevel(logging.INFO)  # starts, stops and reloads are always logged
    logging.getLogger("alembic").setLevel(logging.WARNING)  # it only reads which revision the database has


def receive_orders(parent: int | None = None) -> Orders:
    """Turn signals into orders from now on. On Linux, stop a child when its parent ends. Main thread only.

    Python runs signal handlers only between two instructions of the main thread. A signal may arrive just before a wait, so
    the main thread waits for orders at most `LOOK_SECONDS` at a time.
    """
    orders: Orders = queue.SimpleQueue()
    stops = itertools.count()

    def handle(number: int, _frame: object) -> None:
        if number in {Order.CUT.value, Order.RELOAD.value}:
            orders.put(Order(number))
        else:
            orders.put(Order.CUT if next(stops) and parent is None else Order.STOP)

    for number in HANDLED:
        signal.signal(number, handle)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, HANDLED)  # the parent blocks them while it starts a child
    if parent is not None and sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, int(Order.STOP.value))
        if os.getppid() != parent:  # the parent has already ended
            orders.put(Order.STOP)
    return orders


def ignore_signals() -> None:
    """Ignore late signals. While Python shuts down, it restores the default handlers, which would kill the process."""
    for number in HANDLED:
        signal.signal(number, signal.SIG_IGN)


def run_relay(relay: Relay, config: Config, orders: Orders, observer: Observer, *, drain: bool) -> None:
    """Run the relay in a thread until it ends, and carry out orders meanwhile.

    Raises:
        Exception: a bug ended the relay.
    """
    with ThreadPoolExecutor(1, "relay") as pool:
        running = pool.submit(relay.run, drain=drain)
        running.add_done_callback(lambda _: orders.put(None))
        try:
            while not running.done():
                with contextlib.suppress(queue.Empty):
                    match orders.get(timeout=LOOK_SECONDS):
                        case Order.STOP:
                            relay.stop()
                        case Order.CUT:
                            relay.cut()
                        case Order.RELOAD:
                            if (prepared := read_again(config, observer)) is not None:
                                relay.reload(prepared)
                        case None:
                            pass
        finally:
            relay.stop()
    ignore_signals()
    running.result()


def read_again(config: Config, observer: Observer) -> PreparedConfig | None:
    """Read and prepare the present configuration, for a process that was started with `config`.

    Returns:
        The configuration; None if it can't be used, which is logged.
    """

    def check_and_prepare(new: Config) -> PreparedConfig:
        parts: dict[str, Callable[[], Any]] = {
            "same": partial(config.require_same, new, *NEEDING_RESTART),
            "prepared": partial(prepare, new),
        }
        prepared: PreparedConfig = collect_config_errors(parts)["prepared"]
        return prepared

    try:
        return load_file().make(check_and_prepare)
    except ConfigError as error:
        observer.on_reload_refused(error)
        return None


FIRST_WAIT_SECONDS = 1.0
"""Wait between a child's unexpected exit and its restart. It doubles while children keep exiting quickly."""
LONGEST_WAIT_SECONDS = 30.0
"""The longest wait; a child that ran for longer did not exit quickly."""


class Supervisor:
    """The parent process. Main thread only, as `subprocess` requires."""

    def __init__(
        self, options: RunOptions, config: Config, orders: Orders, observer: Observer, exporter: ExporterProcess | None
    ) -> None:
        """Prepare the children. With `drain`, children that succeed are not replaced."""
        self._children = [Child(options, observer, exporter) for _ in range(options.processes)]
        self._config = config
        self._orders = orders
        self._observer = observer
        self._exporter = exporter

    def run(self) -> int:
        """Keep the children running until a stop, or until all have drained.

        Returns:
            The exit status: 0 if the last process of each child succeeded.
        """
        stopping = False
        while any([child.runs(stopping=stopping) for child in self._children]):  # noqa: C419  # all are looked after
            if self._exporter is not None:
                self._exporter.ensure()
            with contextlib.suppress(queue.Empty):
                order = self._orders.get(timeout=LOOK_SECONDS)
                # Read it here first, so that mistakes are logged once and not by every child.
                if order is None or (order is Order.RELOAD and read_again(self._config, self._observer) is None):
                    continue
                stopping = stopping or order is not Order.RELOAD
                for child in self._children:
                    child.send(order)
        ignore_signals()
        return int(any(child.status for child in self._children))


class Child:
    """One of the N children: its running process, or the time of its next start."""

    def __init__(self, options: RunOptions, observer: Observer, exporter: ExporterProcess | None) -> None:
        self.status = 0
        """The exit status of the last process; a negative one is the signal that killed it."""
        self._command = [sys.executable, "-m", "relay", "run", "--parent", str(os.getpid()), *options.of_child]
        self._drain = options.drain
        self._observer = observer
        self._pipes = () if exporter is None else (exporter.pipe,)
        self._process: subprocess.Popen[bytes] | None = None
        self._is_over = False
        self._start_at = self._started_at = 0.0
        self._wait = FIRST_WAIT_SECONDS / 2

    def runs(self, *, stopping: bool) -> bool:
        """Handle an exit, and start the next process when due. Returns False once no more processes are to run."""
        if self._process is not None and self._process.poll() is not None:
            self._on_exit(self._process, stopping=stopping)
        if self._process is None and not stopping and not self._is_over and time.monotonic() >= self._start_at:
            self._start()
        return self._process is not None or not (stopping or self._is_over)

    def send(self, order: Order) -> None:
        """Send an order if the child is running."""
        if self._process is not None:
            self._process.send_signal(order.value)

    def _start(self) -> None:
        self._started_at = time.monotonic()
        before = signal.pthread_sigmask(signal.SIG_BLOCK, HANDLED)  # the child unblocks them once it handles them
        try:
            self._process = subprocess.Popen(  # noqa: S603  # our own Python, our own arguments
                self._command, stdin=subprocess.DEVNULL, pass_fds=self._pipes
            )
        except OSError as error:  # no memory, or too many processes: the other children go on
            self.status = 1
            self._observer.log("child_not_started", error=str(error), seconds=self._postpone())
        else:
            self._observer.log("child_started", child=self._process.pid)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)

    def _on_exit(self, process: subprocess.Popen[bytes], *, stopping: bool) -> None:
        self._process, self.status = None, process.returncode
        ending = describe_exit(self.status)
        if stopping or (self._drain and self.status == 0):
            self._is_over = True
            level = logging.ERROR if self.status else logging.INFO
            self._observer.log("child_ended", level, child=process.pid, ending=ending)
            return
        self._observer.log("child_lost", child=process.pid, ending=ending, seconds=self._postpone())

    def _postpone(self) -> float:
        """Schedule the next process. Returns the seconds until it starts."""
        now = time.monotonic()
        soon = now - self._started_at < LONGEST_WAIT_SECONDS
        self._wait = min(self._wait * 2, LONGEST_WAIT_SECONDS) if soon else FIRST_WAIT_SECONDS
        self._start_at = now + self._wait
        return self._wait


def describe_exit(status: int) -> str:
    """Return a `Popen.returncode` in words."""
    names = {number.value: number.name for number in signal.Signals}  # real-time signals have none
    return f"exit status {status}" if status >= 0 else f"killed by {names.get(-status, f'signal {-status}')}"
