"""Runs operators' commands batch by batch, in any relay process or in the command line's own.

One transaction stores a batch with the command's progress and counts. It locks the command's row, and does nothing if
another process has advanced the command since it was read. So several processes may work on one command: each batch is
done once, and any process may die.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial

import msgspec
from sqlalchemy.exc import DBAPIError

from inbox.db.dialect import as_json, blames_items, classify_failure, error_text, is_wait_timeout
from inbox.errors import UnusableCommand
from relay.operations.table import OPERATIONS, parse
from relay.store.operator import commands
from relay.store.operator.commands import Command
from relay.store.operator.plan import format_dry_run_answer, plan, quick, require_meant
from relay.store.operator.tasks import LONGEST_SECONDS, MOST_EXAMINED, TASKS, Act, Batch, Item, Working
from relay.store.transaction import FailedAlone
from relay.store.work import Work

MOST_AT_ONCE = 10
"""Number of commands that get one batch each in a step of a relay."""
FAULTY_SECONDS = 60.0
"""Wait after a command failed as a whole, such as for lack of a privilege."""


class OpenCommands:
    """Works on open commands, a few at a time and in turn. A failing command does not delay others."""

    def __init__(self, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._monotonic = monotonic
        self._after = 0
        self.are_open = False
        """True when the last call found open commands."""
        self._faulty: dict[int, float] = {}
        """Commands that failed as a whole, such as with a statement that can't run, and the times of their next tries."""

    def work(self, work: Work) -> int:
        """Run a batch of each of the next few commands. Returns the number of changed deliveries."""
        numbers = commands.read_next_open(work.database, after=self._after, most=MOST_AT_ONCE)
        self.are_open = bool(numbers)
        self._after = numbers[-1] if len(numbers) == MOST_AT_ONCE else 0
        now = self._monotonic()
        self._faulty = {number: again_at for number, again_at in self._faulty.items() if again_at > now}
        changed = 0
        for number in numbers:
            if number in self._faulty:
                continue
            try:
                changed += work_on(work, number)
            except Exception as error:
                failure = classify_failure(error)
                if failure == "unreachable":
                    raise
                if failure == "fault":
                    self._faulty[number] = now + FAULTY_SECONDS
                work.observer.on_database_trouble(f"working on command {number}", error)
                with suppress(DBAPIError):  # shows the error in its row
                    commands.say(work.database, number, f"waits: {error_text(error)}")
        return changed


def work_on(work: Work, number: int) -> int:
    """Run the next batch of this command, if it has not ended.

    An invalid command is `refused`. A command whose deliveries can't be found is `failed`. Deliveries or requests that can't be
    changed are skipped: `relay_command.failed` counts them, `relay_command.error` has the last one. If one is locked,
    the command waits. A pause or resume
    waits for older ones of its gate, and this function works on the oldest: so the last one wins, even without a relay.

    Returns:
        The number of changed deliveries; 0 also while a replay or retry waits for due deliveries.
    """
    command = None
    work = msgspec.structs.replace(work, node=None)  # its facts are the operator's
    try:
        command = commands.read_command(work.database, number)
        if command is None or command.has_ended:
            return 0
        if command.kind in {"pause", "resume"} and (
            older := commands.find_open_turn(work.database, command.selection, before=number)
        ):
            return work_on(work, older[0])
        after = _carry_out(work, command, _next_step(work, command))
    except Exception as error:
        if not blames_items(error):
            raise
        _fail(work, number, command, error)
        return 0
    return 0 if after is None else after.affected - command.affected


def _next_step(work: Work, command: Command) -> Act | Batch:
    """Find the next step of a command, whose row may have been inserted in SQL.

    Raises:
        UnusableCommand: the command is invalid.
    """
    kind, database, config = command.kind, work.database, work.config
    if command.dry_run and not OPERATIONS[kind].has_dry_run:
        raise UnusableCommand(f"a {kind} has no dry run: the page and `relay {kind}` without --yes show its plan")
    asked = parse(kind, as_json(command.selection))
    if command.dry_run:
        planned = plan(database, config, kind, asked, quick(MOST_EXAMINED, LONGEST_SECONDS))
        said = format_dry_run_answer(kind, planned)
        matched = command.matched if planned.count is None else planned.count
        return lambda *_: command.after("done", answer=said, matched=matched, sample=planned.sample)
    if command.progress is None:
        require_meant(database, config, kind, asked)
    return TASKS[kind](Working(work, command, asked))


def _carry_out(work: Work, command: Command, step: Act | Batch) -> Command | None:
    """Run a step. If its items are too slow together, or one is at fault, process them one by one.

    Returns:
        The command after the step; None if another process has advanced or stopped it since it was read.
    """
    if not isinstance(step, Batch):
        return _note(work, command, step)
    try:
        return _do(work, command, step, step.items)
    except Exception as error:
        if not (blames_items(error) or is_wait_timeout(error)):
            raise
    after: Command | None = command
    for item in step.items:
        try:
            after = after and _do(work, after, step, [item])
        except Exception as error:
            if not blames_items(error):
                raise
            after = after and _do(work, after, step, [item._replace(error=error_text(error))])
            work.observer.on_failed_alone(FailedAlone("commands", item.name, error_text(error)))
    return after


def _do(work: Work, command: Command, batch: Batch, items: Sequence[Item]) -> Command | None:
    """Process some items of a batch in one transaction."""
    routes = {item.route for item in items if item.route is not None and item.error is None}
    return _note(work, command, partial(batch.act, command, items=items), routes, opens=batch.opens)


def _note(
    work: Work, command: Command, act: Act, routes: set[str] | None = None, *, opens: bool = False
) -> Command | None:
    """Run a step and store its result in one transaction, under the lock of its routes."""
    with work.write() as transaction:
        now = transaction.take_order_lock(routes, keeps_payloads=opens) if routes else transaction.now()
        if not commands.is_as_it_was(transaction, command):
            return None
        after = act(transaction, now)
        commands.advance(transaction, after, now)
    return after


def _fail(work: Work, number: int, command: Command | None, error: Exception) -> None:
    """End a command with the error as its answer, unless another process has advanced it."""
    is_refused = isinstance(error, UnusableCommand)
    answer = str(error) if is_refused else error_text(error)
    with work.write() as transaction:
        if command is not None and not commands.is_as_it_was(transaction, command):
            return
        commands.end(transaction, number, "refused" if is_refused else "failed", answer)
    work.observer.on_failed_alone(FailedAlone("commands", f"command={number}", answer))
