"""Gauges of all relays together, read from the database every 15 s, and the meters of this process.

Scrapes do not query the database. A thread reads backlog, alerts, clock and disk; slow readings are made less often.
`relay.observe` counts events.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import get_args

from sqlalchemy.exc import SQLAlchemyError

from inbox.clock import SystemClock
from inbox.config.model import Config
from inbox.db.dialect import classify_failure
from inbox.events.states import OPEN_STATES
from inbox.observe import metrics
from inbox.observe.metrics import OFF, Meters
from inbox.observe.recorder import ExporterProcess, make_recorder
from relay.delivery.facts import KINDS
from relay.delivery.gates import BreakerState
from relay.observe import BREAKER_VALUES, Observer
from relay.steps import Step
from relay.store import alerts, reads
from relay.store.database import Database

READ_EVERY_SECONDS = 15.0
_SHARE_OF_TIME = 1 / 30
"""The largest share of time spent on readings. With a million open deliveries, one reading scans a million rows."""


def make_meters(config: Config) -> Meters:
    """Make the meters of this process. Counters with known labels start at zero."""
    if config.metrics.relay is None:
        return OFF
    meters = make_recorder(metrics.RELAY)
    endpoints: dict[str, Iterable[str]] = {"destination": config.destinations, "api": config.apis}
    for kind, names in endpoints.items():
        for name in names:
            meters.put(metrics.BREAKER, BREAKER_VALUES.index(BreakerState.CLOSED), kind, name)
    pausable: dict[str, Iterable[str]] = {"source": config.sources, "route": config.routes, **endpoints}
    for kind, names in pausable.items():
        for name in names:
            meters.put(metrics.PAUSED, 0, kind, name)
    for step in get_args(Step):  # Prometheus misses the first increase of a counter that starts at 1
        meters.count(metrics.STEP_FAILURES, step, by=0)
        meters.count(metrics.FAILED_ALONE, step, by=0)
    for route in config.routes:
        meters.count(metrics.DELIVERY_SECONDS, route, by=0)
        for kind in KINDS:
            meters.count(metrics.FACTS, route, kind, by=0)
    return meters


class Gauges:
    """Reads the gauges of all relays together, each in its own transaction."""

    def __init__(
        self, database: Database, observer: Observer, config: Config, exporter: ExporterProcess | None = None
    ) -> None:
        """Prepare the readings. Each round of them restarts the `exporter` if that has ended."""
        self._database = database
        self._observer = observer
        self._put = observer.meters.put
        self._now = SystemClock().now
        self._file = reads.sqlite_file(config)
        self._routes = set(config.routes)
        """Every route published so far; one without open deliveries is set to zero."""
        self._exporter = exporter

    def publish(self) -> float:
        """Make all readings. Returns the seconds until the next ones."""
        began = time.monotonic()
        readings = [self.backlog, self.alerts, self.clock, self.disk]
        for read in readings if self._exporter is None else [self._exporter.ensure, *readings]:
            try:
                read()
            except SQLAlchemyError as error:
                self._observer.on_database_trouble(f"reading gauges: {read.__name__}", error)
                if classify_failure(error) == "unreachable":  # the other readings would time out too
                    break
            except Exception as error:  # noqa: BLE001  # the other gauges are still read
                self._observer.log("bug_in_thread", bug=error, subject=f"gauges: {read.__name__}")
        return max(READ_EVERY_SECONDS, (time.monotonic() - began) / _SHARE_OF_TIME)

    def backlog(self) -> None:
        """Publish the open deliveries of each route."""
        found = {row["route"]: row for row in reads.read_backlog(self._database)}
        self._routes |= set(found)
        for route in sorted(self._routes):
            row = found.get(route, {})
            for state in OPEN_STATES:
                self._put(metrics.OPEN, row.get(state, 0), route, state)
            self._put(metrics.OLDEST, max(float(row.get("oldest_age_seconds") or 0), 0), route)
        self._put(metrics.LOOKED, self._now().timestamp())

    def alerts(self) -> None:
        """Publish the newest alert of each subject, even a recovered one: another relay may have published its firing."""
        for row in alerts.read_newest(self._database):
            self._put(metrics.ALERT_FIRING, float(row["firing"]), row["kind"], row["subject"])

    def clock(self) -> None:
        """Publish the clock skew between this host and the database, corrected by half the round trip."""
        with self._database.read() as transaction:
            before = self._now()
            there = transaction.now()
            after = self._now()
        self._put(metrics.CLOCK_SKEW, (there - before - (after - before) / 2).total_seconds())

    def disk(self) -> None:
        """Publish the size of the database and the free space."""
        with self._database.read() as transaction:
            disk = reads.read_disk(transaction, self._file)
        for metric, value in ((metrics.DATABASE_BYTES, disk.size), (metrics.DISK_FREE, disk.free)):
            if value is not None:
                self._put(metric, value)
