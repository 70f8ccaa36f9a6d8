"""Deletes expired rows in a thread of its own, so that retention delays no delivery.

The database grants each turn (`inbox.db.pruning`), so that one relay process at a time prunes. Each kind of rows
is a step of its own: one that fails holds up no other.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta
from functools import partial

from sqlalchemy import Connection
from sqlalchemy.exc import SQLAlchemyError

from inbox.clock import steady
from inbox.config.model import Retention, RetentionKind
from inbox.db import leaves, pruning
from inbox.db.pruning import LeasedPruner, LeaseLost, PassedOver
from inbox.db.retention import STEPS, Pruned, expiry_of
from relay.observe import Observer
from relay.steps import Steps
from relay.store.database import Database
from relay.store.transaction import FailedAlone

LOOK_EVERY_SECONDS = 1.0
ROUND_SECONDS = 600.0
"""The longest round: then others may take their turn, and the clock of retention advances."""


class Pruner:
    """The pruning thread. It ends soon after `stop` is set: a batch takes about 100 ms, and all before it are kept."""

    def __init__(
        self,
        database: Database,
        node: str,
        retention: Retention,
        *,
        stop: threading.Event,
        observer: Observer,
        steps: Steps,
    ) -> None:
        self._database = database
        self._retention = retention
        self._stop = stop
        self._observer = observer
        self._steps = steps
        self._pruner = LeasedPruner(self._begin, node, rest=stop.wait)
        self._has_lease = False
        self._thread = threading.Thread(target=self._work, name="prune", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def replace_ages(self, retention: Retention) -> None:
        """Prune by other ages from the next batch of a kind on."""
        self._retention = retention

    def join(self, seconds: float) -> None:
        """Wait for the end of the thread, at most so long."""
        if self._thread.ident is not None:
            self._thread.join(seconds)

    def run_due(self) -> None:
        """Run a round, if one is due."""
        try:
            self._steps.run("prune", self._take_turn, None)
        except SQLAlchemyError as error:  # there was no connection either
            self._observer.database_trouble("pruning", error)

    def _work(self) -> None:
        while not self._stop.wait(LOOK_EVERY_SECONDS):
            try:
                self.run_due()
            except Exception as error:  # noqa: BLE001  # without this thread nobody prunes, and nobody notices
                self._observer.bug_in_thread("prune", error)

    def _take_turn(self) -> None:
        with self._database.read() as transaction:
            due = transaction.execute(pruning.is_due(self._database.sql), **pruning.seconds())
        if not due or not due[0].is_due:
            return
        turn = self._pruner.take()
        if turn is None:
            return
        self._has_lease = True
        clock = pruning.trusted_clock(turn.now, turn.clock)
        try:
            self._steps.run("prune", partial(self._prepare, turn.now), None, subject="leaves")
            self._round(clock)
        finally:
            if self._has_lease:
                self._pruner.give_back(None if self._stop.is_set() else clock)

    def _round(self, clock: datetime) -> None:
        """Prune every kind in turn, until nothing has expired or the round is over."""
        until = steady() + ROUND_SECONDS
        rest: list[RetentionKind] = [kind for kind in STEPS if not self._retention.age_of(kind).is_forever]
        while rest and self._has_lease and not self._stop.is_set() and steady() < until:
            rest = [kind for kind in rest if self._is_unfinished(kind, clock)]

    def _prepare(self, now: datetime) -> None:
        """Make the leaves that the next payloads go into; their size follows from the real time, not that of retention."""
        age = self._retention.payloads
        with self._begin(1) as connection:
            leaves.prepare(connection, now, None if age.is_forever else timedelta(seconds=float(age)))

    def _is_unfinished(self, kind: RetentionKind, clock: datetime) -> bool:
        """Prune a kind for a while. Returns whether more is to be done at once."""
        if not self._has_lease or self._stop.is_set():
            return False
        return self._steps.run("prune", partial(self._prune, kind, clock), otherwise=False, subject=kind)

    def _prune(self, kind: RetentionKind, clock: datetime) -> bool:
        rows = size = 0
        is_done = False
        batches = self._pruner.batches(kind, expiry_of(self._retention, kind, clock), is_stopped=self._stop.is_set)
        try:
            for event in batches:
                match event:
                    case Pruned():
                        rows, size, is_done = rows + event.rows, size + event.bytes, event.is_done
                    case PassedOver():
                        self._observer.failed_alone(FailedAlone("prune", f"{kind} {event.key}", event.error))
        except LeaseLost:
            self._has_lease = False
            return False
        with self._database.read() as transaction:
            behind = pruning.read(transaction.connection, kind).behind_seconds
        self._observer.pruned(kind, rows, size, behind)
        return not is_done

    @contextmanager
    def _begin(self, rows: int) -> Iterator[Connection]:
        with self._database.write() as transaction:
            transaction.rows = max(transaction.rows, rows)
            yield transaction.connection
