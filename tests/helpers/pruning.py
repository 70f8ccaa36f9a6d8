"""Retention on a database of a test, without pauses."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import datetime

from sqlalchemy import Engine

from inbox.config.model import Retention, RetentionKind
from inbox.config.values import Age
from relay.store.database import Database
from relay.store.retention import STEPS, LeasedPruner, Pruned, expiry_of

DAY = 86400
MONTH = Age(30 * DAY)
AFTER_A_MONTH = Retention(
    payloads=MONTH,
    events=MONTH,
    attempts=MONTH,
    rejected=MONTH,
    duplicates=MONTH,
    relay_nodes=MONTH,
    alerts=MONTH,
    commands=MONTH,
    reveals=MONTH,
    throughput=MONTH,
)
"""Every kind expires after a month; tests' events are older."""


def a_pruner(engine: Engine, holder: str = "r1", now: Callable[[], datetime] | None = None) -> LeasedPruner:
    """A pruner that doesn't rest."""
    return LeasedPruner(Database(engine, now), holder, rest=lambda _: None)


def batches(pruner: LeasedPruner, kind: RetentionKind, before: datetime | None) -> Iterator[Pruned]:
    """Prune until nothing is left."""
    is_done = False
    while not is_done:
        pruned = pruner.batch(kind, before)
        assert pruned is not None, "the lease is lost"
        yield pruned
        is_done = pruned.is_done


def prune(
    engine: Engine,
    *kinds: RetentionKind,
    retention: Retention = AFTER_A_MONTH,
    now: Callable[[], datetime] | None = None,
) -> dict[RetentionKind, list[Pruned]]:
    """Prune these kinds, or all, until nothing is left; returns what happened."""
    pruner = a_pruner(engine, now=now)
    clock = pruner.take()
    assert clock is not None
    happened = {
        kind: list(batches(pruner, kind, expiry_of(retention, kind, clock))) for kind in (kinds or tuple(STEPS))
    }
    pruner.give_back(clock)
    return happened
