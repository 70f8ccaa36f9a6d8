"""Gauges of the relay as a whole, read from the database every 15 s, and the meters of its process.

A scrape reads no table. A thread reads the backlog, and less often the longer that takes. `relay.observe` counts events.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from sqlalchemy.exc import SQLAlchemyError

from inbox.clock import SystemClock
from inbox.config.model import Config
from inbox.events.states import OPEN_STATES
from inbox.telemetry import metrics
from inbox.telemetry.metrics import OFF, Meters
from inbox.telemetry.recorder import ExporterProcess, make_recorder
from relay.delivery.facts import KINDS
from relay.delivery.gates import BreakerState
from relay.observe import BREAKER_VALUES, Observer
from relay.store import reads
from relay.store.database import Database

READ_EVERY_SECONDS = 15.0
_SHARE_OF_TIME = 1 / 30
"""The largest share of time for reading: with a million open deliveries, it scans as many rows."""
_JOIN_SECONDS = 1.0


def meters_of(config: Config) -> Meters:
    """Make the meters of this process. Counters whose labels are known stand at zero from the start."""
    if config.metrics.relay is None:
        return OFF
    meters = make_recorder(metrics.RELAY)
    for kind, names in (("destination", config.destinations), ("api", config.apis)):
        for name in names:
            meters.put(metrics.BREAKER, BREAKER_VALUES.index(BreakerState.CLOSED), kind, name)
    for route in config.routes:
        for kind in KINDS:
            meters.count(metrics.FACTS, route, kind, by=0)
    return meters


class Backlog:
    """The gauges of open deliveries on each route."""

    def __init__(self, database: Database, meters: Meters, config: Config) -> None:
        self._database = database
        self._meters = meters
        self._clock = SystemClock()
        self._routes = set(config.routes)
        """Every route published so far: one without open deliveries stands at zero."""

    def publish(self) -> None:
        """Read the backlog, and set the gauges."""
        found = {row["route"]: row for row in reads.backlog(self._database)}
        self._routes |= set(found)
        for route in sorted(self._routes):
            row = found.get(route, {})
            for state in OPEN_STATES:
                self._meters.put(metrics.OPEN, row.get(state, 0), route, state)
            self._meters.put(metrics.OLDEST, max(float(row.get("oldest_age_seconds") or 0), 0), route)
        self._meters.put(metrics.LOOKED, self._clock.now().timestamp())


@contextmanager
def publishing_gauges(
    database: Database, config: Config, observer: Observer, exporter: ExporterProcess | None
) -> Iterator[None]:
    """Keep the gauges up to date, and their exporter running, while the block runs; do nothing without metrics."""
    if observer.meters is OFF:
        yield
        return
    backlog, ended = Backlog(database, observer.meters, config), threading.Event()

    def publish() -> float:
        began = time.monotonic()
        try:
            if exporter is not None:
                exporter.ensure()
            backlog.publish()
        except SQLAlchemyError as error:
            observer.database_trouble("reading the backlog", error)
        except Exception as error:  # noqa: BLE001  # if this thread ended, the gauges would stand still unnoticed
            observer.gauges_broke(error)
        return max(READ_EVERY_SECONDS, (time.monotonic() - began) / _SHARE_OF_TIME)

    def keep() -> None:
        while not ended.wait(publish()):
            pass

    thread = threading.Thread(target=keep, name="gauges", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join(_JOIN_SECONDS)
