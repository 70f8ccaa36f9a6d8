"""Erases an entity for a row of `relay_command`, step by step."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import msgspec

from inbox.config.mistakes import nearest
from inbox.config.model import Config
from inbox.db.erasure import (
    ErasureOrder,
    ErasurePlan,
    ErasureStep,
    ErasureSubject,
    act,
    answer_of,
    end,
    held_up_by,
    look,
    plan,
)
from inbox.db.reads import has_source
from inbox.errors import UnusableCommand
from inbox.events.timestamps import time_text
from relay.store.database import Database
from relay.store.operator.commands import AskedTask, BatchResult
from relay.store.transaction import Transaction


def erase(database: Database, config: Config, task: AskedTask) -> Callable[[Transaction], BatchResult]:
    """Find the next step; see `relay.store.operator.tasks`."""
    order = _order(task)
    if task.dry_run or (task.progress is None and not task.affected):
        planned = _planned(database, config, order.subject)
        if task.dry_run:
            return lambda _: _answer(planned)
    with database.read() as transaction:
        step = look(transaction.connection, order.subject, task.progress, own_command=task.number)
    return partial(_act, order=order, step=step, task=task)


def _act(transaction: Transaction, *, order: ErasureOrder, step: ErasureStep, task: AskedTask) -> BatchResult:
    now = transaction.lock_order()
    done = act(transaction.connection, order, step, now=time_text(now))
    if done.open:
        raise UnusableCommand(answer_of(done.open))
    if done.is_last:
        end(transaction.connection, order.subject, task.number, done)
    position = task.progress if done.position is None else done.position
    return BatchResult(
        "done" if done.is_last else "running", done.erased, position, answer_of(()) if done.is_last else None
    )


def _order(task: AskedTask) -> ErasureOrder:
    """The order that a command gives.

    Raises:
        UnusableCommand: it names no entity, or its reason names the person.
    """
    subject = ErasureSubject(**msgspec.structs.asdict(task.asked))
    if subject.is_named_in(task.reason):
        raise UnusableCommand("the reason names the entity, and it is kept for good: say why without the id")
    return ErasureOrder(subject, task.asked_by, task.reason)


def _planned(database: Database, config: Config, subject: ErasureSubject) -> ErasurePlan:
    """The plan.

    Raises:
        UnusableCommand: there is nothing to erase, or something open has to end first.
    """
    if subject.source not in config.sources and not has_source(database.engine, subject.source):
        raise UnusableCommand(f"there is no source {subject.source!r}; {nearest(subject.source, config.sources)}")
    planned = plan(database.engine, subject, quick=True)
    if planned.open:
        raise UnusableCommand(held_up_by(planned.open))
    if planned.open_commands:
        numbers = ", ".join(map(str, planned.open_commands))
        raise UnusableCommand(
            f"commands that name the entity are still at work ({numbers}); ask again when they have ended"
        )
    if planned.is_empty and not planned.erased_before:
        raise UnusableCommand("nothing to erase: type and id are compared letter by letter")
    return planned


def _answer(planned: ErasurePlan) -> BatchResult:
    """The answer to a dry run: what would go, without the entity itself."""
    sample = {name: value for name, value in msgspec.to_builtins(planned).items() if name != "subject"}
    rest = (
        ""
        if planned.is_whole
        else "; it searched a part of the rejected requests, `inbox erase --dry-run` searches all"
    )
    careful = f"; {planned.warning}" if planned.warning else ""
    events = f"at least {planned.events} events" if planned.has_more_events else f"{planned.events} events"
    answer = f"would erase {events}{rest}{careful}"
    return BatchResult("done", matched=planned.events, sample=sample, answer=answer)
