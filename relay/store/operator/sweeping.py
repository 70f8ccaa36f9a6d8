"""Sweeps by command: the sweep becomes due, a relay runs it as any other, and the command answers with its result."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial

from inbox.config.mistakes import nearest
from inbox.config.model import Config
from inbox.errors import UnusableCommand
from relay.store import sweeps
from relay.store.database import Database
from relay.store.operator.commands import AskedTask, BatchResult
from relay.store.sweeps import SweepResult
from relay.store.transaction import Transaction

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
