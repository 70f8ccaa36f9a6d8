"""Retention on a database of a test, without pauses."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime

from sqlalchemy import Connection, Engine

from inbox.config.model import Retention, RetentionKind
from inbox.config.values import Age
from inbox.db.pruning import Event, LeasedPruner
from inbox.db.retention import STEPS, expiry_of
from inbox.events.timestamps import time_text

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

    @contextmanager
    def begin(_rows: int) -> Iterator[Connection]:
        with engine.begin() as connection:
            yield connection

    clock = (lambda: None) if now is None else (lambda: time_text(now()))
    return LeasedPruner(begin, holder, now=clock, rest=lambda _: None)


def prune(
    engine: Engine,
    *kinds: RetentionKind,
    retention: Retention = AFTER_A_MONTH,
    now: Callable[[], datetime] | None = None,
    seconds: float = 60.0,
) -> dict[RetentionKind, list[Event]]:
    """Prune these kinds, or all, until nothing is left; returns what happened."""
    pruner = a_pruner(engine, now=now)
    turn = pruner.take()
    assert turn is not None
    happened = {
        kind: list(pruner.batches(kind, expiry_of(retention, kind, turn.now), seconds=seconds))
        for kind in (kinds or tuple(STEPS))
    }
    pruner.give_back(turn.now)
    return happened
