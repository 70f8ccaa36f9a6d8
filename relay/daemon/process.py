"""One relay process: what signals, or its parent, tell it becomes orders, and its relay carries them out.

SIGTERM and SIGINT stop it in order, a second one cuts what still runs; SIGHUP has it read the configuration again. A
parent (`relay.daemon.supervisor`) tells the same through a pipe, which is the child's standard input. A pipe does what signals
can't: two orders don't merge into one, one that comes while the child still starts waits for it instead of killing it,
and when both get the same signal, as from a terminal or a service manager, it is told from a second one. Its end says
that the parent is gone, however it went.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import queue
import signal
import threading
from concurrent.futures import ThreadPoolExecutor
from enum import Enum

from inbox.config.model import Config
from inbox.errors import ConfigError
from inbox.loader.load import read_config
from relay.daemon.alert_sender import client_of
from relay.daemon.loop import Relay
from relay.destinations import Deliverer, build
from relay.http.client import HttpClient
from relay.observe import Observer

HANDLED = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
_STANDARD_INPUT = 0


class Order(Enum):
    """What a relay process can be told; the value is how its parent tells it."""

    STOP = b"s"
    CUT = b"c"
    RELOAD = b"r"


Orders = queue.SimpleQueue[Order | None]
"""None: something has ended, look what."""


def orders_of_signals() -> Orders:
    """What signals tell from now on. Main thread only.

    Python runs a handler when the main thread comes to it, and a thread that just begins to wait may never: one in some
    hundred signals was late until the next. So a thread of its own reads the numbers, which Python writes to a pipe at once.
    """
    orders: Orders = queue.SimpleQueue()
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    signal.set_wakeup_fd(writing)
    threading.Thread(target=_translate, args=(reading, orders), name="signals", daemon=True).start()
    for number in HANDLED:
        notice(number)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, HANDLED)  # a parent blocks them while a child starts
    return orders


def notice(number: signal.Signals) -> None:
    """Have a signal read, instead of what it does by default."""
    signal.signal(number, lambda *_: None)


def ignore_signals() -> None:
    """What comes from now on comes too late. While Python ends, its handlers give way to the default, which kills."""
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


def hear_parent(orders: Orders, observer: Observer) -> None:
    """Put what comes through standard input into `orders`, too, and a stop when it ends."""

    def hear() -> None:
        while told := os.read(_STANDARD_INPUT, 1):
            with contextlib.suppress(ValueError):  # no order of this version; the pipe's end must be heard all the same
                orders.put(Order(told))
        observer.orphaned()
        orders.put(Order.STOP)

    threading.Thread(target=hear, name="parent", daemon=True).start()


def work(relay: Relay, config: Config, orders: Orders, observer: Observer, *, drain: bool) -> None:
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
        relay.reload(*read_again(config))
    except ConfigError as error:
        observer.reload_refused(str(error).splitlines())


def read_again(config: Config) -> tuple[Config, dict[str, Deliverer], HttpClient | None]:
    """The configuration as it is now, for a process that has worked by `config` so far, with what makes its calls.

    Raises:
        ConfigError: it can't be used; the text has a line for each mistake.
    """
    new = read_config()
    if new.database != config.database:
        raise ConfigError("[database] url: another database needs a restart")
    if new.metrics.relay != config.metrics.relay:
        raise ConfigError("[metrics] relay: another address needs a restart")
    return new, build(new), client_of(new)
