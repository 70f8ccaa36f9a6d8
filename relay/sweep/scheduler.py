"""Runs due sweeps in a thread for each api, so that a hanging or held sweep delays neither deliveries nor other sweeps.

The database grants each turn (`relay.store.sweeps.take`), so that one relay process at a time runs each sweep.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from contextlib import closing, nullcontext
from datetime import datetime
from functools import partial

import msgspec
from sqlalchemy.exc import DBAPIError

from inbox.clock import steady
from inbox.config.model import Config
from inbox.db.dialect import error_text
from inbox.errors import SweepFailed, collect_config_errors
from inbox.observe.traces import Span
from relay.delivery.alerts import Alert
from relay.destinations.base import Context
from relay.observe import Observer
from relay.steps import Steps, run_beside
from relay.store import sweeps
from relay.store.gates import read_gates
from relay.store.sweeps import SweepFindings
from relay.store.work import Work
from relay.sweep.run import CompiledSweep

LOOK_EVERY_SECONDS = 1.0
AGAIN_SECONDS = 300.0
"""Wait after a failed sweep, unless `every` is shorter."""
RENEW_EVERY_SECONDS = 5.0


def compile_sweeps(config: Config) -> tuple[CompiledSweep, ...]:
    """Compile all sweeps. Relays schedule those with `every`, and run the others on a command.

    Raises:
        ConfigError: a sweep can't be run as configured.
    """
    parts = {
        f"{name} {number}": partial(CompiledSweep, config, name, number)
        for name, source in config.sources.items()
        for number in range(len(source.sweeps))
    }
    return tuple(collect_config_errors(parts).values())


def _make_alert(sweeping: CompiledSweep, swept: SweepFindings) -> Alert:
    figures = {"missed": swept.missed, "compared": swept.compared} if swept.missed else {}
    return Alert("webhooks_missed", sweeping.subject, swept.missed > 0, figures)


class Sweeper:
    """The sweeping threads. They end soon after `stop` is set: running calls are cut, and events added so far stay."""

    def __init__(
        self,
        work: Work,
        sweepings: Sequence[CompiledSweep],
        *,
        stop: threading.Event,
        now: Callable[[], datetime],
        observer: Observer,
        steps: Steps,
    ) -> None:
        self._work, self._database = work, work.database
        self._sweepings = sweepings
        self._stop = stop
        self._context = Context(self._calls_until, stop, now)
        self._observer = observer
        self._steps = steps
        self._threads: dict[str, threading.Thread] = {}
        """One thread per api."""

    def start(self) -> None:
        """Start the missing threads."""
        for api in sorted({sweeping.table.api for sweeping in self._sweepings} - self._threads.keys()):
            run_due = partial(self.run_due, api)
            self._threads[api] = run_beside(
                f"sweeps {api}", run_due, every=LOOK_EVERY_SECONDS, stop=self._stop, observer=self._observer
            )

    def replace_sweeps(self, sweepings: Sequence[CompiledSweep]) -> None:
        """Use other sweeps from the next round on; a running sweep ends with the old configuration."""
        self._sweepings = sweepings
        self.start()

    def join(self, seconds: float) -> None:
        """Wait at most `seconds` for the threads to end."""
        until = steady() + seconds
        for thread in self._threads.values():
            thread.join(max(until - steady(), 0.0))

    def _calls_until(self) -> float:
        """Return the deadline of calls: infinite, but in the past once the process stops."""
        return float("-inf") if self._stop.is_set() else float("inf")

    def run_due(self, api: str | None = None) -> None:
        """Run the due sweeps one after the other: all of them, or those of one api."""
        for sweeping in self._sweepings:
            if self._stop.is_set():
                return
            if api not in {None, sweeping.table.api}:
                continue
            self._steps.run("sweep", partial(self._take_turn, sweeping), None, subject=sweeping.subject)

    def _take_turn(self, sweeping: CompiledSweep) -> None:
        turn = self._turn(sweeping)
        if not sweeps.is_due(self._database, turn) or self._is_held_back(sweeping):
            return
        if not sweeps.take(self._database, turn):
            return
        span = self._observer.tracer.begin(f"sweep {sweeping.subject}", "internal")
        with nullcontext() if span is None else span.current():
            self._run(sweeping, turn, span)

    def _run(self, sweeping: CompiledSweep, turn: sweeps.Turn, span: Span | None) -> None:
        """Run a sweep until it ends, the process stops, or another relay may hold its lease."""
        swept: SweepFindings | None = None
        failed: str | None = None
        try:
            since, _ = sweeping.find_start(self._database)
            renew_at = steady() + RENEW_EVERY_SECONDS
            context = msgspec.structs.replace(self._context, span=span)
            with closing(sweeping.run(self._work, context, since)) as running:
                for swept in running:
                    renews = steady() >= renew_at
                    if self._stop.is_set() or (renews and not sweeps.keep(self._database, turn)):
                        self._broke_off(sweeping, turn, swept, None)
                        return
                    if renews:
                        renew_at = steady() + RENEW_EVERY_SECONDS
            if swept is not None:
                alerts = [_make_alert(sweeping, swept), Alert("sweep_failed", sweeping.subject, firing=False)]
                sweeps.finish(self._work, swept, alerts)
                self._observer.on_swept(sweeping.subject, swept)
        except SweepFailed as error:
            failed = "sweep_failed"
            self._broke_off(sweeping, turn, swept, None if self._stop.is_set() else str(error))
        except DBAPIError as error:
            failed = "database"
            self._observer.on_database_trouble("sweeping", error)
            # Retry once, since only this transaction may have failed. Otherwise the sweep is due when its lease expires.
            self._broke_off(sweeping, turn, swept, f"the database: {error_text(error)}")
        except Exception as error:
            failed = type(error).__name__
            self._broke_off(sweeping, turn, swept, error_text(error))
            raise
        finally:
            if span is not None:
                names = () if swept is None else ("compared", "missed", "added")
                span.attributes |= {f"inbox.{name}": getattr(swept, name) for name in names}
                span.attributes |= {"inbox.source": turn.source, "inbox.entity_type": turn.entity_type}
                span.end(error=failed)

    def _broke_off(
        self, sweeping: CompiledSweep, turn: sweeps.Turn, swept: SweepFindings | None, error: str | None
    ) -> None:
        """Record a failed or stopped sweep and the number of events it added, as the next sweep won't find them again."""
        found = swept if swept is not None and swept.missed else None
        missed, alerts = (0, []) if found is None else (found.missed, [_make_alert(sweeping, found)])
        if error is not None:
            alerts = [Alert("sweep_failed", sweeping.subject, firing=True, detail={"error": error}), *alerts]
        sweeps.end_early(self._work, turn, error, missed, alerts)
        if error is not None:
            self._observer.log("sweep_failed", subject=sweeping.subject, error=error)
        if found is not None:
            self._observer.on_swept(sweeping.subject, found, in_part=True)

    def _turn(self, sweeping: CompiledSweep) -> sweeps.Turn:
        table = sweeping.table
        every = None if table.every is None else float(table.every)
        again = AGAIN_SECONDS if every is None else min(every, AGAIN_SECONDS)
        return sweeps.Turn(
            sweeping.source.name,
            table.entity_type,
            self._work.node or "",
            every,
            again,
            sweeps.lease_seconds(sweeping.api),
        )

    def _is_held_back(self, sweeping: CompiledSweep) -> bool:
        """Return whether a pause of its source or api, or the api's breaker, holds the sweep back. Probes a half-open breaker."""
        through = [("source", sweeping.source.name), ("api", sweeping.table.api)]
        return read_gates(self._work).admit(through) == "none"
