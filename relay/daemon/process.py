"""A relay process: carries out the orders of signals and of its parent.

SIGTERM and SIGINT stop it gracefully, a second one cuts running calls; SIGHUP reloads the configuration. A parent
(`relay.daemon.supervisor`) gives the same orders through a pipe, the child's standard input. A pipe does what signals
can't. Two orders don't merge into one. An order sent while the child still starts waits for it instead of killing it.
When both get the same signal, as from a terminal or a service manager, it isn't mistaken for a second one. The pipe's
end shows that the parent is gone, for whatever reason.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import queue
import signal
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from enum import Enum
from typing import Any

from inbox.config.model import Config
from inbox.errors import ConfigError, collect_config_errors
from inbox.loader.load import load_file
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
