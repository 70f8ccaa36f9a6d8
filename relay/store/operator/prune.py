"""The command `prune`: lets a relay run a round of retention now, and answers what it has deleted."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

from sqlalchemy import text

from inbox.config.mistakes import nearest
from inbox.config.model import Config, RetentionKind
from inbox.db import pruning
from inbox.db.retention import STEPS, plan
from inbox.errors import UnusableCommand
from relay.store.database import Database
from relay.store.operator.commands import AskedTask, BatchResult
from relay.store.transaction import Transaction

_MAKE_DUE = text("UPDATE pruner SET ran_at = NULL WHERE id = 1")
_IS_OVER = text("SELECT ran_at IS NOT NULL AS is_over FROM pruner")


def prune(database: Database, config: Config, task: AskedTask) -> Callable[[Transaction], BatchResult]:
    """Make a round due, and wait for its end. Rounds delete every kind; the answer counts those of the selection.

    Raises:
        UnusableCommand: the selection names an unknown kind.
    """
    kinds = _kinds(task.asked.kinds or ())
    if task.dry_run:
        planned = _dry_run(database, config, kinds)
        return lambda _: planned
    if task.progress is None:
        return partial(_make_due, before=_pruned(database, kinds))
    with database.read() as transaction:
        if not transaction.execute(_IS_OVER)[0].is_over:
            return lambda _: BatchResult("running", progress=task.progress, answer="a relay prunes")
    rows = max(_pruned(database, kinds) - task.progress, 0)
    return lambda _: BatchResult("done", changed=rows, progress=task.progress, answer=f"{rows} rows pruned")


def _make_due(transaction: Transaction, *, before: int) -> BatchResult:
    transaction.execute(_MAKE_DUE)
    return BatchResult("running", progress=before, answer="a relay prunes")


def _kinds(given: Sequence[str]) -> list[RetentionKind]:
    for name in given:
        if name not in STEPS:
            raise UnusableCommand(f"there is no kind of [retention] {name!r}; {nearest(name, STEPS)}")
    return [kind for kind in STEPS if not given or kind in given]


def _dry_run(database: Database, config: Config, kinds: Sequence[RetentionKind]) -> BatchResult:
    with database.read() as transaction:
        plans = plan(transaction.connection, config.retention, transaction.now())
    found = [each for each in plans if each.kind in kinds and each.rows]
    rows = sum(each.rows for each in found)
    at_least = "" if all(each.are_all for each in found) else "at least "
    sample: dict[str, int] = {each.kind: each.rows for each in found}
    return BatchResult("done", matched=rows, sample=sample, answer=f"would delete {at_least}{rows} rows")


def _pruned(database: Database, kinds: Sequence[RetentionKind]) -> int:
    """Return the rows that were ever pruned of these kinds."""
    with database.read() as transaction:
        return sum(pruning.read(transaction.connection, kind).rows for kind in kinds)
