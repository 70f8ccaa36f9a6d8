"""Operations about no delivery: sweep, prune, stop and continue, and the table of the function of each kind."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial

from sqlalchemy import text

from inbox.config.mistakes import nearest
from inbox.config.model import Config, RetentionKind
from inbox.errors import UnusableCommand
from relay.store import sweeps
from relay.store.database import Database
from relay.store.operator.commands import AskedTask, BatchResult, CommandAct, turn_in
from relay.store.operator.erase import erase
from relay.store.operator.readmit import readmit
from relay.store.retention import STEPS, plan, state_of
from relay.store.sweeps import SweepResult
from relay.store.transaction import Transaction

Act = Callable[[Transaction], BatchResult]
Task = Callable[[Database, Config, AskedTask], Act]
"""Finds the next short step without a lock, and returns how to do it in the transaction that locks the command and notes the
result: `running` until it has ended. With `dry_run` it changes nothing, and returns `done` with `matched` and `sample`.

Raises:
    UnusableCommand: it can't be done as it is asked; the command ends `refused` with this message.
"""

_ASKED = 1
"""The progress of a command whose sweeps are due."""


def sweep(database: Database, config: Config, task: AskedTask) -> Callable[[Transaction], BatchResult]:
    """Make the sweeps due, or look whether they have ended.

    Raises:
        UnusableCommand: the source has no such sweep.
    """
    source = task.asked.source
    types = types_of(config, source, task.asked.entity_type)
    if task.progress == _ASKED:
        result = _result(sweeps.results(database, source), types, task)
        return lambda _: result
    return partial(_ask, source=source, types=types, task=task)


def _ask(transaction: Transaction, *, source: str, types: Sequence[str], task: AskedTask) -> BatchResult:
    asked = [sweeps.ask(transaction, source, entity_type, task.number) for entity_type in types]
    if not all(asked):
        return BatchResult("running", answer="waits: a sweep of this source runs, or another command waits for one")
    return BatchResult("running", progress=_ASKED, answer="waits for a relay that sweeps")


def _result(results: Sequence[SweepResult], types: Sequence[str], task: AskedTask) -> BatchResult:
    last = {result.entity_type: result for result in results}
    if any(entity_type in last and last[entity_type].command == task.number for entity_type in types):
        return BatchResult("running", progress=_ASKED, answer="waits for the end of the sweep")
    return _ended([last[entity_type] for entity_type in types if entity_type in last])


def types_of(config: Config, source: str, entity_type: str | None) -> Sequence[str]:
    """List the types of entities that a sweep of this source would ask for.

    Raises:
        UnusableCommand: the source has no such sweep.
    """
    known: Mapping[str, object] = config.sources
    if source not in known:
        raise UnusableCommand(f"there is no source {source!r}; {nearest(source, known)}")
    types = sorted({table.entity_type for table in config.sources[source].sweeps})
    if not types:
        raise UnusableCommand(
            f"source {source} has no sweeps: [[sources.{source}.sweeps]] says how it is asked for changes"
        )
    if entity_type is not None and entity_type not in types:
        raise UnusableCommand(f"source {source} has no sweep of {entity_type!r}; {nearest(entity_type, types)}")
    return types if entity_type is None else [entity_type]


def _ended(results: Sequence[SweepResult]) -> BatchResult:
    said = "; ".join(
        f"{result.entity_type}: {result.error}"
        if result.error is not None
        else f"{result.entity_type}: {result.compared} compared, {result.missed} missed, {result.added} added"
        for result in results
    )
    added = sum(result.added or 0 for result in results if result.error is None)
    failed = any(result.error is not None for result in results)
    return BatchResult("failed" if failed else "done", changed=added, progress=_ASKED, answer=said)


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
        plans = plan(transaction, config.retention, transaction.now())
    found = [each for each in plans if each.kind in kinds and each.rows]
    rows = sum(each.rows for each in found)
    at_least = "" if all(each.are_all for each in found) else "at least "
    sample: dict[str, int] = {each.kind: each.rows for each in found}
    return BatchResult("done", matched=rows, sample=sample, answer=f"would delete {at_least}{rows} rows")


def _pruned(database: Database, kinds: Sequence[RetentionKind]) -> int:
    """Return the rows that were ever pruned of these kinds."""
    with database.read() as transaction:
        return sum(state_of(transaction, kind).rows for kind in kinds)


def turn(transaction: Transaction, act: CommandAct, task: AskedTask) -> BatchResult:
    """Stop the command that is named, or let it go on.

    Raises:
        UnusableCommand: there is none, it has ended, or nobody has stopped it.
    """
    answer = turn_in(transaction, act, task.asked.command, who=task.asked_by, why=task.reason)
    return BatchResult("done", answer=answer)


TASKS: Mapping[str, Task] = {
    "erase": erase,
    "prune": prune,
    "readmit": readmit,
    "sweep": sweep,
    "stop": lambda _database, _config, task: partial(turn, act="stop", task=task),
    "continue": lambda _database, _config, task: partial(turn, act="continue", task=task),
}
"""The function of each kind."""
