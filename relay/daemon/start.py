"""Wiring of `relay run`: logging, configuration, database and metrics, for one relay process or their supervisor."""

from __future__ import annotations

import contextlib
import gc
import logging
import queue
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack

import msgspec
from sqlalchemy import Engine
from sqlalchemy.exc import DBAPIError

from inbox.db import engine, guarantees, migrate
from inbox.db.dialect import failure_of
from inbox.exposure import exposure_warnings
from inbox.loader.load import config_path, load_file
from inbox.observe import logs
from inbox.observe.recorder import exporter_at
from inbox.observe.traces import make_tracer
from relay.daemon.gauges import meters_of, publishing_gauges
from relay.daemon.generation import prepare
from relay.daemon.loop import Relay
from relay.daemon.process import Order, Orders, Supervisor, orders_of_signals, read_parent_orders, run_relay
from relay.observe import Observer
from relay.store.database import Database

AGAIN_SECONDS = 2.0
"""The wait between two tries of a relay that starts while its database is down."""


class RunOptions(msgspec.Struct, frozen=True):
    """The options of `relay run`."""

    grace_seconds: float
    processes: int = 1
    drain: bool = False
    verbose: bool = False
    supervised: bool = False
    """True for the child of a supervisor."""

    @property
    def of_child(self) -> list[str]:
        """The command-line options that a supervisor gives each child."""
        return ["--grace", str(self.grace_seconds), *["--drain"] * self.drain, *["--verbose"] * self.verbose]


def start(options: RunOptions, reporting: Callable[[], AbstractContextManager[None]]) -> int:
    """Run a relay, or the supervisor of several, until it is stopped.

    While the database does not answer, it waits; with `drain`, that is an error.

    Args:
        options: those of the command line.
        reporting: reports an error of the configuration or the database that is raised before anything runs.

    Returns:
        The exit status.
    """
    _log_to_stderr(verbose=options.verbose, several=options.processes > 1 or options.supervised)
    observer, orders = Observer(), orders_of_signals()
    if options.supervised:
        read_parent_orders(orders, observer)
    with reporting():
        prepared = load_file().make(prepare)
        config = prepared.config
        logs.escape_lines(logging.getLogger().handlers, form=config.logs.format)
        connections = engine.connect(config.database.url, application="inbox-relay")
        if not _is_fit(connections, orders, observer, is_patient=not options.drain):
            return 0
        if not options.supervised:
            for what in exposure_warnings(config_path(), config):
                observer.tell("exposed", what=what)
    with ExitStack() as leaving:
        served = None if config.metrics.relay is None else config.metrics.relay.place
        exporter = None if options.supervised else exporter_at(served, config.logs.format)
        if exporter is not None:
            leaving.callback(exporter.stop)
            exporter.ensure()
        if options.processes > 1:
            connections.dispose()
            return Supervisor(
                options.of_child,
                config,
                processes=options.processes,
                drain=options.drain,
                orders=orders,
                observer=observer,
                exporter=exporter,
            ).run()
        database = Database(connections)
        observer.meters = meters_of(config)
        leaving.callback(observer.meters.close)
        observer.tracer = make_tracer(config.traces.endpoint, config.traces.ratio, "inbox-relay")
        leaving.callback(observer.tracer.close)
        relay = Relay(database, prepared, observer=observer, grace_seconds=options.grace_seconds)
        gc.freeze()  # as the receiver does
        with publishing_gauges(database, config, observer, exporter):
            run_relay(relay, config, orders, observer, drain=options.drain)
        return 0


def _is_fit(connections: Engine, orders: Orders, observer: Observer, *, is_patient: bool) -> bool:
    """Check the schema and the guarantees, as soon as the database answers.

    A relay that gave up here would stay away: after a power cut it may well start before its database does. A reload that is
    ordered meanwhile stays ordered: the configuration was read before.

    Returns:
        False: a stop came before the database did.

    Raises:
        ConfigError: the database is not fit.
        DBAPIError: it does not answer, and the caller is not patient; or it can't do what is asked.
    """
    is_to_reload = False
    while True:
        try:
            migrate.require_current(connections)
            guarantees.require(connections)
        except DBAPIError as error:
            if not is_patient or failure_of(error) == "fault":
                raise
            observer.database_trouble("starting", error)
        else:
            if is_to_reload:
                orders.put(Order.RELOAD)
            return True
        with contextlib.suppress(queue.Empty):
            order = orders.get(timeout=AGAIN_SECONDS)
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
