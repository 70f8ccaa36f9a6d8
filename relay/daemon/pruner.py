"""Deletes expired rows in a separate thread, so that retention does not delay deliveries.

A lease in the database (`relay.store.retention`) lets only one relay process prune at a time. Each kind of row is a
separate step: a failure of one does not stop the others.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable
from datetime import datetime, timedelta
from functools import partial

import msgspec

from inbox.clock import steady
from inbox.config.model import Retention, RetentionKind
from inbox.db import leaves
from relay.observe import Observer
from relay.steps import Steps
from relay.store import retention
from relay.store.retention import STEPS, LeasedPruner, Pruned, compute_expiry
from relay.store.transaction import FailedAlone
from relay.store.work import Work

ROUND_SECONDS = 600.0
"""The longest round. Afterwards, other relays may take the lease, and the clock of retention advances."""


class Pruner(msgspec.Struct):
    """Prunes until `stop` is set. A batch takes about 100 ms and is committed on its own."""

    work: Callable[[], Work]
    """Returns the active configuration. A changed age applies from the next batch on."""
    pruner: LeasedPruner
    stop: threading.Event
    observer: Observer
    steps: Steps

    def run_due(self) -> None:
        """Run a round if one is due."""
        self.steps.run("prune", self._take_turn, None)

    @property
    def _retention(self) -> Retention:
        return self.work().config.retention

    def _take_turn(self) -> None:
        with self.work().database.read() as transaction:
            is_due = retention.is_due(transaction)
        if not is_due or (clock := self.pruner.take()) is None:
            return
        is_whole = False
        try:
            self.steps.run("prune", self._prepare, None, subject="leaves")
            is_whole = self._round(clock)
        finally:
            self.pruner.give_back(clock if is_whole else None)

    def _round(self, clock: datetime) -> bool:
        """Prune batches of all kinds in turn until nothing is expired or the round is over. Returns False after a stop."""
        until = steady() + ROUND_SECONDS
        kinds: list[RetentionKind] = [kind for kind in STEPS if not self._retention.get_age(kind).is_forever]
        rows, rest = Counter[RetentionKind](), kinds
        while rest and not self.stop.is_set() and steady() < until:
            rest = [kind for kind in rest if self._is_unfinished(kind, clock, rows)]
        with self.work().database.read() as transaction:
            for kind in kinds:
                behind = retention.read_kind_state(transaction, kind).behind_seconds
                self.observer.on_pruned(kind, rows[kind], behind)
        return not self.stop.is_set()

    def _prepare(self) -> None:
        """Create the partition that the next payloads need."""
        age = self._retention.payloads
        with self.work().database.write() as transaction:
            leaves.prepare(transaction.connection, None if age.is_forever else timedelta(seconds=float(age)))

    def _is_unfinished(self, kind: RetentionKind, clock: datetime, rows: Counter[RetentionKind]) -> bool:
        """Prune a batch of a kind, and count its rows. Returns whether there is more to do at once."""
        if self.stop.is_set():
            return False
        batch = partial(self.pruner.prune_batch, kind, compute_expiry(self._retention, kind, clock))
        pruned = self.steps.run("prune", batch, None, subject=kind) or Pruned()
        rows[kind] += pruned.rows
        if pruned.error is not None:
            self.observer.on_failed_alone(FailedAlone("prune", kind, pruned.error))
        return not pruned.is_done
