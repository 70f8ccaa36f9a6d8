"""Runs the sweeps that are due, in a thread of its own: a source that hangs delays no delivery.

Whose turn it is, the database decides (`relay.store.sweeps.take`), so that of all relay processes one is at each sweep.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from contextlib import closing
from datetime import datetime
from functools import partial

from sqlalchemy.exc import DBAPIError, SQLAlchemyError

from inbox.clock import steady
from inbox.config.model import Config
from inbox.db.dialect import error_text
from inbox.errors import SweepFailed
from relay.delivery.alerts import Alert
from relay.destinations.base import Context
from relay.observe import Observer
from relay.steps import Steps
from relay.store import sweeps
from relay.store.database import Database
from relay.store.gates import read_gates
from relay.sweep.run import Sweeping, Swept

LOOK_EVERY_SECONDS = 1.0
AGAIN_SECONDS = 300.0
"""After one that failed, where `every` is not shorter."""
RENEW_EVERY_SECONDS = 5.0


def scheduled(config: Config) -> tuple[Sweeping, ...]:
    """The sweeps that relays run by themselves.

    Raises:
        ConfigError: one of them can't be run as configured.
    """
    return tuple(
        Sweeping(config, name, number)
        for name, source in config.sources.items()
        for number, table in enumerate(source.sweeps)
        if table.every is not None
    )


def _missed(sweeping: Sweeping, swept: Swept) -> Alert:
    figures = {"missed": swept.missed, "compared": swept.compared} if swept.missed else {}
    return Alert("webhooks_missed", sweeping.subject, swept.missed > 0, figures)


class Sweeper:
    """The thread. It ends soon after `stop` is set: a call that runs then is cut, and what was compared is not lost."""

    def __init__(
        self,
        database: Database,
        node: str,
        sweepings: Sequence[Sweeping],
        *,
        stop: threading.Event,
        now: Callable[[], datetime],
        observer: Observer,
        steps: Steps,
    ) -> None:
        self._database = database
        self._node = node
        self._sweepings = sweepings
        self._stop = stop
        self._context = Context(self._lease, stop, now)
        self._observer = observer
        self._steps = steps
        self._so_far: Swept | None = None
        """Of the sweep that runs."""
        self._thread = threading.Thread(target=self._work, name="sweeps", daemon=True)

    def start(self) -> None:
        """Begin to look for what is due."""
        self._thread.start()

    def change_over(self, sweepings: Sequence[Sweeping]) -> None:
        """Work by another configuration from the next sweep on; one that runs comes to its end by the old."""
        self._sweepings = sweepings

    def join(self, seconds: float) -> None:
        """Wait until it has ended, but no longer."""
        if self._thread.ident is not None:
            self._thread.join(seconds)

    def _lease(self) -> float:
        """Nobody waits for a sweep when the process is to end."""
        return float("-inf") if self._stop.is_set() else float("inf")

    def look(self) -> None:
        """Run what is due, one after the other."""
        for sweeping in self._sweepings:
            if self._stop.is_set():
                return
            try:
                self._steps.run("sweep", partial(self._take_turn, sweeping), None, subject=sweeping.subject)
            except SQLAlchemyError as error:  # no connection was to be had, either
                self._observer.database_trouble("sweeping", error)

    def _work(self) -> None:
        while not self._stop.wait(LOOK_EVERY_SECONDS):
            try:
                self.look()
            except Exception as error:  # noqa: BLE001  # nobody else would sweep, and nobody would hear of it
                self._observer.thread_stumbled("sweeps", error)

    def _take_turn(self, sweeping: Sweeping) -> None:
        turn = self._turn(sweeping)
        if not sweeps.is_due(self._database, turn) or self._is_held_back(sweeping):
            return
        if not sweeps.take(self._database, turn):
            return
        self._so_far = None
        try:
            swept = self._sweep(sweeping, turn)
            self._ended(sweeping, turn, swept)
        except SweepFailed as error:
            if self._stop.is_set():
                self._ended(sweeping, turn, None)
            else:
                self._failed(sweeping, turn, str(error))
        except DBAPIError as error:
            self._observer.database_trouble("sweeping", error)
            # Once more, as it may have been this one transaction; else it is as due as before when its lease has run out.
            self._failed(sweeping, turn, f"the database: {error_text(error)}")
        except Exception as error:
            self._failed(sweeping, turn, error_text(error))
            raise
        finally:
            sweeping.close()

    def _sweep(self, sweeping: Sweeping, turn: sweeps.Turn) -> Swept | None:
        """None: it was broken off, since the process is to end, or since another relay may be at it."""
        since, _ = sweeping.begins(self._database)
        renew_at = steady() + RENEW_EVERY_SECONDS
        with closing(sweeping.run(self._database, self._context, since)) as running:
            for so_far in running:
                swept = self._so_far = so_far
                if self._stop.is_set():
                    return None
                if steady() >= renew_at:
                    if not sweeps.keep(self._database, turn):
                        return None
                    renew_at = steady() + RENEW_EVERY_SECONDS
        return swept

    def _ended(self, sweeping: Sweeping, turn: sweeps.Turn, swept: Swept | None) -> None:
        if swept is None:
            sweeps.give_back(self._database, turn, *self._found_so_far(sweeping))
            self._observe_so_far(sweeping)
            return
        alerts = [_missed(sweeping, swept), Alert("sweep_failed", sweeping.subject, firing=False)]
        sweeps.finish(self._database, swept.found, turn.node, alerts)
        self._observer.swept(sweeping.subject, swept.found)

    def _failed(self, sweeping: Sweeping, turn: sweeps.Turn, error: str) -> None:
        alert = Alert("sweep_failed", sweeping.subject, firing=True, detail={"error": error})
        missed, alerts = self._found_so_far(sweeping)
        sweeps.fail(self._database, turn, error, [alert, *alerts], missed)
        self._observer.sweep_failed(sweeping.subject, error)
        self._observe_so_far(sweeping)

    def _found_so_far(self, sweeping: Sweeping) -> tuple[int, list[Alert]]:
        """What one that was broken off has missed: it is added, so that the next one finds it told."""
        swept = self._so_far
        return (swept.missed, [_missed(sweeping, swept)]) if swept is not None and swept.missed else (0, [])

    def _observe_so_far(self, sweeping: Sweeping) -> None:
        if self._so_far is not None and self._so_far.missed:
            self._observer.swept_in_part(sweeping.subject, self._so_far.found)

    def _turn(self, sweeping: Sweeping) -> sweeps.Turn:
        table = sweeping.table
        every = float(table.every or 0)
        again = min(every, AGAIN_SECONDS)
        return sweeps.Turn(
            sweeping.source.name, table.entity_type, self._node, every, again, sweeps.lease_seconds(sweeping.api)
        )

    def _is_held_back(self, sweeping: Sweeping) -> bool:
        """By a person who has paused its source or its api, or by the api's breaker. Whether it is well again is seen here, too."""
        through = [("source", sweeping.source.name), ("api", sweeping.table.api)]
        return read_gates(self._database).admit(through) == "none"
