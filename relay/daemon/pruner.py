"""Deletes expired rows in a thread of its own, so that retention delays no delivery.

The database grants each turn (`relay.store.retention`), so that one relay process at a time prunes. Each kind of rows
is a step of its own: one that fails holds up no other.
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
from relay.store.retention import STEPS, LeasedPruner, Pruned, expiry_of
from relay.store.transaction import FailedAlone
from relay.store.work import Work

ROUND_SECONDS = 600.0
"""The longest round: then others may take their turn, and the clock of retention advances."""


class Pruner(msgspec.Struct):
    """Prunes until soon after `stop` is set: a batch takes about 100 ms, and all before it are kept."""

    work: Callable[[], Work]
    """Gives the configuration that is active, whose ages count from the next batch of a kind on."""
    pruner: LeasedPruner
    stop: threading.Event
    observer: Observer
    steps: Steps

    def run_due(self) -> None:
        """Run a round, if one is due."""
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
        """Prune a batch of every kind in turn, until nothing has expired or the round is over. Returns whether it has ended."""
        until = steady() + ROUND_SECONDS
        kinds: list[RetentionKind] = [kind for kind in STEPS if not self._retention.age_of(kind).is_forever]
        rows, rest = Counter[RetentionKind](), kinds
        while rest and not self.stop.is_set() and steady() < until:
            rest = [kind for kind in rest if self._is_unfinished(kind, clock, rows)]
        with self.work().database.read() as transaction:
            for kind in kinds:
                behind = retention.state_of(transaction, kind).behind_seconds
                self.observer.pruned(kind, rows[kind], behind)
        return not self.stop.is_set()

    def _prepare(self) -> None:
        """Make a leaf that the next payloads go into."""
        age = self._retention.payloads
        with self.work().database.write() as transaction:
            leaves.prepare(transaction.connection, None if age.is_forever else timedelta(seconds=float(age)))

    def _is_unfinished(self, kind: RetentionKind, clock: datetime, rows: Counter[RetentionKind]) -> bool:
        """Prune a batch of a kind, and count its rows. Returns whether more is to be done at once."""
        if self.stop.is_set():
            return False
        batch = partial(self.pruner.batch, kind, expiry_of(self._retention, kind, clock))
        pruned = self.steps.run("prune", batch, None, subject=kind) or Pruned()
        rows[kind] += pruned.rows
        if pruned.error is not None:
            self.observer.failed_alone(FailedAlone("prune", kind, pruned.error))
        return not pruned.is_done
