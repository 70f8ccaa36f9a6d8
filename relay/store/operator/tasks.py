"""Steps of operations about no delivery, and the table of the function of each kind."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from functools import partial
from typing import Any, cast

import msgspec

from inbox.config.model import Config
from inbox.db import erasure
from inbox.db.dialect import error_text
from inbox.db.erasure import ErasureStep, ErasureSubject
from inbox.db.throughput import DUPLICATE, SOURCE, STORED
from inbox.errors import UnusableCommand
from inbox.events.timestamps import time_text
from inbox.sources.normalize import ReadmitResult, readers_of
from relay.delivery.gates import Gate
from relay.operations.table import OPERATIONS
from relay.store import gates, sweeps
from relay.store.database import Database
from relay.store.operator import readmit
from relay.store.operator.commands import BatchResult, Command, CommandAct, end, turn_in
from relay.store.operator.plan import kinds_of, plan, quick, reason_mistake, subject_of, types_of
from relay.store.retention import LeasedPruner, Pruned, clock_by_hand, expiry_of
from relay.store.sweeps import SweepResult
from relay.store.transaction import FailedAlone, Transaction
from relay.words import counted

Act = Callable[[Transaction, datetime], BatchResult]
Task = Callable[[Database, Config, Command, Any], Act]
"""Finds the next short step of a command and its `asks` without a lock, and returns how to do it in the transaction that locks
the command and notes the result: `running` until it has ended.

Raises:
    UnusableCommand: it can't be done as it is asked; the command ends `refused` with this message.
"""


def answer_of(command: Command, *, now: int = 0) -> str:
    """Return the answer of a command that is done; `now` of it are changed by its last step."""
    words, changed = OPERATIONS[command.kind].words, command.affected + now
    said = [f"{counted(changed, words.thing)} {words.done}" if changed or command.failed else words.nothing]
    if command.failed:
        said.append(f"{command.failed} could not be: see error")
    if (left := (command.matched or 0) - changed - command.failed) > 0:
        said.append(f"{left} of the plan had changed meanwhile, and {'was' if left == 1 else 'were'} left alone")
    return "; ".join(said)


def _turn_gate(database: Database, config: Config, command: Command, asked: Any) -> Act:  # noqa: ANN401  # as `Task`
    """Pause or resume a gate. It locks the gate alone, and waits for no route."""
    gate = Gate(**msgspec.structs.asdict(asked))
    if mistake := gates.mistake_in(database, gate, command.kind, config):
        raise UnusableCommand(mistake)

    def act(transaction: Transaction, now: datetime) -> BatchResult:
        if command.kind == "pause":
            changed = gates.pause(transaction, gate.key, who=command.asked_by, why=command.reason)
        else:
            changed = gates.resume(transaction, gate.key, now)
        words = OPERATIONS[command.kind].words
        return BatchResult("done", answer=words.done if changed else words.nothing)

    return act


_ASKED = 1
"""The progress of a command whose sweeps are due."""


def _sweep(database: Database, config: Config, command: Command, asked: Any) -> Act:  # noqa: ANN401  # as `Task`
    """Make the sweeps due, or look whether they have ended."""
    source, types = asked.source, types_of(config, asked.source, asked.entity_type)
    if command.progress == _ASKED:
        result = _result(sweeps.results(database, source), types, command)
        return lambda *_: result

    def act(transaction: Transaction, _now: datetime) -> BatchResult:
        are_asked = [sweeps.ask(transaction, source, each, command.id) for each in types]
        if not all(are_asked):
            return BatchResult("running", answer="waits: a sweep of this source runs, or another command waits for one")
        return BatchResult("running", progress=_ASKED, answer="waits for a relay that sweeps")

    return act


def _result(results: Sequence[SweepResult], types: Sequence[str], command: Command) -> BatchResult:
    last = {result.entity_type: result for result in results}
    if any(each in last and last[each].command == command.id for each in types):
        return BatchResult("running", progress=_ASKED, answer="waits for the end of the sweep")
    ended = [last[each] for each in types if each in last]
    said = "; ".join(
        f"{result.entity_type}: {result.error}"
        if result.error is not None
        else f"{result.entity_type}: {result.compared} compared, {result.missed} missed, {result.added} added"
        for result in ended
    )
    added = sum(result.added or 0 for result in ended if result.error is None)
    failed = any(result.error is not None for result in ended)
    return BatchResult("failed" if failed else "done", changed=added, progress=_ASKED, answer=said)


def _prune(database: Database, config: Config, command: Command, asked: Any) -> Act:  # noqa: ANN401  # as `Task`
    """Prune the next rows of a kind, under the lease of pruners. The progress is the number of kinds that are done."""
    kinds, progress = kinds_of(asked.kinds or ()), command.progress or 0
    pruner = LeasedPruner(
        database, f"command {command.id}, process {os.getpid()} at {socket.gethostname()}", rest=lambda _: None
    )
    if pruner.take() is None:
        return lambda *_: BatchResult("running", progress=progress, answer="waits: a relay prunes")
    kind, done = kinds[progress], Pruned(is_held_up=True)
    try:
        with database.read() as transaction:
            before = expiry_of(config.retention, kind, clock_by_hand(transaction))
        for _ in range(2):  # after a batch that failed, one row alone
            done = pruner.batch(kind, before) or Pruned(is_held_up=True)
            if done.is_done or done.rows or done.passed_over:
                break
    finally:
        pruner.give_back()
    if done.is_held_up:
        return lambda *_: BatchResult("running", progress=progress, answer="waits: others use the rows, or prune")
    progress += done.is_done
    if done.is_done and progress == len(kinds):
        return lambda *_: BatchResult("done", done.rows, progress, answer_of(command, now=done.rows))
    return lambda *_: BatchResult("running", done.rows, progress, failed=int(done.error is not None), error=done.error)


def _erase(database: Database, config: Config, command: Command, asked: Any) -> Act:  # noqa: ANN401  # as `Task`
    """Erase the next events of an entity, or texts that name it."""
    subject = subject_of(asked)
    if mistake := reason_mistake(asked, command.reason):
        raise UnusableCommand(mistake)
    if command.progress is None and not command.affected:
        planned = plan(database, config, command.kind, asked, quick(erasure.COUNTED_EVENTS, 1.0))
        if planned.obstacle is not None:
            raise UnusableCommand(planned.obstacle)
    with database.read() as transaction:
        step = erasure.look(transaction.connection, subject, command.progress, own_command=command.id)
    return partial(_act_of_erasure, subject=subject, step=step, command=command)


def _act_of_erasure(
    transaction: Transaction, _now: datetime, *, subject: ErasureSubject, step: ErasureStep, command: Command
) -> BatchResult:
    now = transaction.lock_order()
    done = erasure.act(
        transaction.connection, subject, step, who=command.asked_by, why=command.reason, now=time_text(now)
    )
    if done.open:
        raise UnusableCommand(f"an event arrived meanwhile; {erasure.held_up_by(done.open)}")
    if not done.is_last:
        return BatchResult("running", done.erased, step.position)
    answer = answer_of(command)
    end(transaction, command.id, "done", answer)  # an open command keeps its selection
    erasure.end(transaction.connection, subject, command.id)
    return BatchResult("done", progress=step.position, answer=answer)


def _readmit(database: Database, config: Config, command: Command, asked: Any) -> Act:  # noqa: ANN401  # as `Task`
    """Readmit the next requests, as the receiver stores a request: one that is in the inbox by now is a duplicate."""
    if command.progress is None:
        plan(database, config, command.kind, asked, quick(0, 0.0))  # refuses names that nobody knows
    page = readmit.read_again(database, readers_of(config), asked, command.progress or 0)
    page = [each for each in page if command.until is None or each.id <= command.until]
    return partial(_act_of_readmission, database=database, page=page, command=command)


def _act_of_readmission(
    transaction: Transaction, _now: datetime, *, database: Database, page: Sequence[ReadmitResult], command: Command
) -> BatchResult:
    """Store them. What has been readmitted since they were read is left alone."""
    if not page:
        return BatchResult("done", progress=command.progress, answer=answer_of(command))
    readable = {each.id: each for each in page if each.rejected is None}
    taken, errors = readmit.take(transaction, [*readable.values()], by=command.asked_by, reason=command.reason)
    failed = {each.id: each.rejected for each in page if each.rejected is not None}
    failed |= {number: error_text(error) for number, error in errors.items()}
    transaction.left_out += (
        FailedAlone("commands", f"rejected={number}", error_text(error)) for number, error in errors.items()
    )
    for number, receipts in taken.items():
        transaction.rows += len(receipts)
        for event, receipt in zip(readable[number].events, receipts, strict=True):
            database.tally.add(SOURCE, event.source, DUPLICATE if receipt.duplicate else STORED, size=len(event.body))
    error = next((f"rejected request {number}: {why}" for number, why in reversed(failed.items())), None)
    return BatchResult("running", len(taken), page[-1].id, failed=len(failed), error=error)


def _turn_command(_database: Database, _config: Config, command: Command, asked: Any) -> Act:  # noqa: ANN401  # as `Task`
    """Stop the command that is named, or let it go on."""

    def act(transaction: Transaction, _now: datetime) -> BatchResult:
        kind = cast("CommandAct", command.kind)
        answer = turn_in(transaction, kind, asked.command, who=command.asked_by, why=command.reason)
        return BatchResult("done", answer=answer)

    return act


TASKS: Mapping[str, Task] = {
    "pause": _turn_gate,
    "resume": _turn_gate,
    "sweep": _sweep,
    "erase": _erase,
    "prune": _prune,
    "readmit": _readmit,
    "stop": _turn_command,
    "continue": _turn_command,
}
"""The function of each kind."""
