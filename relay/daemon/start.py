"""Wiring of `relay run`: logging, configuration, database and metrics, for one relay process or their supervisor."""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack

import msgspec

from inbox.db import engine, guarantees, migrate
from inbox.exposure import exposure_warnings
from inbox.loader.load import config_path, load_file
from inbox.logs import lines
from inbox.telemetry.recorder import exporter_at
from relay.daemon.gauges import meters_of, publishing_gauges
from relay.daemon.generation import prepare
from relay.daemon.loop import Relay
from relay.daemon.process import orders_of_signals, read_parent_orders, run_relay
from relay.daemon.supervisor import Supervisor
from relay.observe import Observer
from relay.store.database import Database


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
        connections = engine.connect(config.database.url, application="inbox-relay")
        migrate.require_current(connections)
        guarantees.require(connections)
        if not options.supervised:
            observer.exposed(exposure_warnings(config_path(), config))
    with ExitStack() as leaving:
        exporter = None if options.supervised else exporter_at(config.metrics.relay)
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
        observer.meters, database.on_facts = meters_of(config), observer.appended
        leaving.callback(observer.meters.close)
        relay = Relay(database, prepared, observer=observer, grace_seconds=options.grace_seconds)
        with publishing_gauges(database, config, observer, exporter):
            run_relay(relay, config, orders, observer, drain=options.drain)
        return 0


def _log_to_stderr(*, verbose: bool, several: bool) -> None:
    pid = "%(process)d " if several else ""
    level = logging.INFO if verbose else logging.WARNING
    logging.basicConfig(level=level, format=f"%(asctime)s {pid}%(levelname)s %(message)s")
    lines.escape_lines(logging.getLogger().handlers)
    logging.getLogger("relay.node").setLevel(logging.INFO)  # starts, stops and reloads are always logged
    logging.getLogger("alembic").setLevel(logging.WARNING)  # it only reads which revision the database has
