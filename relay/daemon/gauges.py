"""What is measured of the relay as a whole: who serves it, and the gauges that are read from the database now and then.

A scrape reads no table: how much is open is looked at every 15 s, in a thread of its own, and the less often the longer
that takes. What happens is counted where it is told, in `relay.observe`.
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
from inbox.telemetry.recorder import Exporter, make_recorder
from relay.delivery.facts import KINDS
from relay.delivery.gates import BreakerState
from relay.observe import BREAKER_VALUES, Observer
from relay.store import reads
from relay.store.database import Database

LOOK_EVERY_SECONDS = 15.0
_PART_OF_THE_TIME = 1 / 30
"""That looking may take: with a million open it is a scan of as many rows."""
_LET_FINISH_SECONDS = 1.0


def meters_of(config: Config) -> Meters:
    """What counts in this process. What is known by name stands at zero from the start."""
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
    """The gauges of what is open on each route."""

    def __init__(self, database: Database, meters: Meters, config: Config) -> None:
        self._database = database
        self._meters = meters
        self._clock = SystemClock()
        self._routes = set(config.routes)
        """Those that were ever shown: a route of which nothing is open any more stands at zero."""

    def look(self) -> None:
        """Read the backlog, and show it."""
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
    database: Database, config: Config, observer: Observer, exporter: Exporter | None
) -> Iterator[None]:
    """Keep the gauges up to date while the block runs, where metrics are asked for, and what serves them running."""
    if observer.meters is OFF:
        yield
        return
    backlog, ended = Backlog(database, observer.meters, config), threading.Event()

    def look() -> float:
        began = time.monotonic()
        try:
            if exporter is not None:
                exporter.ensure()
            backlog.look()
        except SQLAlchemyError as error:
            observer.database_trouble("reading the backlog", error)
        except Exception as error:  # noqa: BLE001  # who ends this thread leaves gauges that stand still, and say nothing of it
            observer.gauges_broke(error)
        return max(LOOK_EVERY_SECONDS, (time.monotonic() - began) / _PART_OF_THE_TIME)

    def keep() -> None:
        while not ended.wait(look()):
            pass

    thread = threading.Thread(target=keep, name="gauges", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join(_LET_FINISH_SECONDS)
