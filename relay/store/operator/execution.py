"""Executes the commands of operators, batch by batch, in any relay process or in the command line's own.

A batch, how far the command has come, and what it has changed so far are one transaction, which locks the command's row and
leaves it alone if another process has gone on with it since it was read. So several processes may work on one command, each
batch is done once, and any of them may die.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from datetime import datetime
from functools import partial
from typing import Any, cast

import msgspec
from sqlalchemy.exc import DBAPIError

from inbox.config.model import Config
from inbox.db.dialect import as_json, blames_items, error_text, failure_of, is_wait_timeout
from inbox.errors import UnusableCommand
from inbox.observe.traces import OFF, Span, Tracer
from relay.delivery import facts
from relay.delivery.policy import Policies
from relay.operations.asks import Selection
from relay.operations.table import OF_DELIVERIES, OPERATIONS, parse
from relay.store.database import Database
from relay.store.deliveries import Key, key_text
from relay.store.operator import commands, selected
from relay.store.operator.changes import end_or_unblock, replay, retry, that_fit
from relay.store.operator.commands import BatchResult, Command
from relay.store.operator.plan import dry_run_answer, instead, mistake_in, plan, quick
from relay.store.operator.selection import Choice, keys_of
from relay.store.operator.tasks import TASKS, Act, answer_of
from relay.store.transaction import FailedAlone, Transaction
from relay.store.work import Work

BATCH = 200
"""Deliveries in one transaction."""
MOST_AT_ONCE = 10
"""Commands that get one batch each in one step of a relay."""
DRY_RUN_ROWS = 5000
DRY_RUN_SECONDS = 0.5
"""A dry run ends after so many rows, or so long: a relay plans and delivers in the same thread."""
FAULTY_SECONDS = 60.0
"""The wait after a command failed for a reason that is no item's, such as a missing privilege."""


class OpenCommands:
    """Open commands, a few at a time and in turn. Each is a compartment of its own: none delays another."""

    def __init__(self, monotonic: Callable[[], float] = time.monotonic, tracer: Tracer = OFF) -> None:
        self._monotonic = monotonic
        self._tracer = tracer
        self._after = 0
        self._faulty: dict[int, float] = {}
        """Commands that failed for a reason that is no item's, and when each is tried again."""
        self.troubled: list[tuple[int, Exception]] = []
        """Commands that failed last time: a row they need was locked, or a statement can't run at all."""

    def work(self, work: Work) -> int:
        """Do a batch of each of the next few commands. Returns the number of changed deliveries."""
        numbers = commands.next_open(work.database, after=self._after, most=MOST_AT_ONCE)
        self._after = numbers[-1] if len(numbers) == MOST_AT_ONCE else 0
        now = self._monotonic()
        self._faulty = {number: again_at for number, again_at in self._faulty.items() if again_at > now}
        self.troubled = []
        changed = 0
        for number in numbers:
            if number in self._faulty:
                continue
            span = self._tracer.begin("command", "internal")
            try:
                batch = work_on(work, number)
                changed += batch
                _end(span, number, batch)
            except Exception as error:
                _end(span, number, 0, type(error).__name__)
                if failure_of(error) == "unreachable":
                    raise
                self._trouble(work, number, error, now)
        return changed

    def _trouble(self, work: Work, number: int, error: Exception, now: float) -> None:
        """Keep the failure, and say in the row what the command waits for."""
        self.troubled.append((number, error))
        if failure_of(error) == "fault":
            self._faulty[number] = now + FAULTY_SECONDS
        with suppress(DBAPIError):
            commands.say(work.database, number, f"waits: {error_text(error)}")


def _end(span: Span | None, number: int, changed: int, error: str | None = None) -> None:
    """End the span of a batch. One that changes nothing is not shown: a command that waits has one each second."""
    if span is not None and (changed or error is not None):
        span.attributes |= {"inbox.command": number, "inbox.changed": changed}
        span.end(error=error)


def work_on(work: Work, number: int) -> int:
    """Do the next batch of this command, if it has not ended.

    A command that can't be understood, or can't be meant, is `refused`. One whose deliveries can't be found is `failed`. A
    delivery that can't be changed is passed over: `relay_command.failed` counts it, `relay_command.error` has the last
    one. A locked one is not: the command waits for it.

    Returns:
        How many deliveries it has changed; of a replay or retry also none when too many are open already.
    """
    command = None
    work = msgspec.structs.replace(work, node=None)  # its facts are the operator's
    database, config = work.database, work.config
    try:
        with database.read() as transaction:
            command = commands.read_open(transaction, number)
        if command is None:
            return 0
        asked = _asked(command)
        if command.dry_run:
            after = _note(work, command, _dry_run(database, config, command, asked))
        elif command.kind in OF_DELIVERIES:
            after = _change_deliveries(work, _look(work, command, asked))
        else:
            after = _note(work, command, TASKS[command.kind](database, config, command, asked))
    except Exception as error:
        if not blames_items(error):
            raise
        _fail(work, number, command, error)
        return 0
    return 0 if after is None else after.affected - command.affected


def _asked(command: Command) -> Any:  # noqa: ANN401  # the operation's `asks`
    """Read a row, which anybody may have inserted in SQL.

    Raises:
        UnusableCommand: it can't be understood, or can't be meant.
    """
    if command.dry_run and not OPERATIONS[command.kind].has_dry_run:
        raise UnusableCommand(f"a {command.kind} has no dry run")
    return parse(command.kind, as_json(command.selection))


def _note(
    work: Work, command: Command, act: Act, routes: Collection[str] = (), *, opens: bool = False
) -> Command | None:
    """Do a step and note its result in one transaction, under the lock of its routes.

    Returns:
        The command as it is then; None: another process has gone on with it or stopped it since it was read.
    """
    with work.write() as transaction:
        now = transaction.lock_order({*routes}, keeps_payloads=opens) if routes else transaction.now()
        if not commands.is_as_it_was(transaction, command):
            return None
        return commands.advance(transaction, command, act(transaction, now), now)


def _dry_run(database: Database, config: Config, command: Command, asked: Any) -> Act:  # noqa: ANN401  # the operation's `asks`
    """Make the plan. It takes no longer than a relay can spare, as it plans and delivers in the same thread."""
    planned = plan(database, config, command.kind, asked, quick(DRY_RUN_ROWS, DRY_RUN_SECONDS))
    said = dry_run_answer(command.kind, planned)
    return lambda *_: BatchResult("done", answer=said, matched=planned.matched, sample=planned.sample)


class _Batch(msgspec.Struct, frozen=True):
    """The next batch of a command about deliveries, as it was read without a lock."""

    command: Command
    choice: Choice
    keys: Sequence[Key] = ()
    waits: str | None = None
    """The reason why it has to wait for deliveries that are open."""
    unreadable: Mapping[Key, Exception] = {}
    """Deliveries of `keys` that can't be looked up, so that nobody knows whether they are selected."""
    upto: int | None = None
    """Without any `keys`: the seq up to which none is selected; None at the end."""
    instead: Sequence[str] = ()
    """Of a command about nothing: what may be meant."""


def _look(work: Work, command: Command, asked: Selection) -> _Batch:
    """Read the next batch without a lock, since finding the deliveries may take long.

    Raises:
        UnusableCommand: it can't be meant.
    """
    database = work.database
    choice = Choice(cast("Any", command.kind), asked, work.config, until_seq=command.until)
    if command.progress is None and (mistake := mistake_in(database, choice)):
        raise UnusableCommand(mistake)
    page = selected.page(database, choice, after=command.progress or 0, most=BATCH)
    keys, waits = that_fit(work, choice.act, keys_of(page.rows), affected=command.affected)
    is_nothing = not page.rows and page.upto is None and command.progress is None and not command.matched
    hints = tuple(instead(database, choice)) if is_nothing else ()
    return _Batch(command, choice, keys, waits, page.unreadable, page.upto, hints)


def _change_deliveries(work: Work, batch: _Batch) -> Command | None:
    """Do a batch; one by one where that fails, as a statement took too long, or one can't be changed."""
    opens, routes = batch.choice.act == "replay", {route for _, route in batch.keys}
    try:
        if batch.waits or not batch.unreadable:
            return _note(work, batch.command, partial(_do, batch=batch, policies=work.policies), routes, opens=opens)
    except Exception as error:
        if not (blames_items(error) or is_wait_timeout(error)) or not batch.keys:
            raise
    after: Command | None = batch.command
    for place, key in enumerate(batch.keys):
        is_last_of_event = [following[0] for following in batch.keys[place + 1 : place + 2]] != [key[0]]
        progress = key[0] if is_last_of_event else key[0] - 1
        one = msgspec.structs.replace(batch, keys=[key])
        try:
            act = partial(_do, batch=one, policies=work.policies, progress=progress)
            after = after and _note(work, after, act, {key[1]}, opens=opens)
        except Exception as error:
            if not blames_items(error):
                raise
            why = f"{key_text(key)}: {error_text(error)}"
            failed = BatchResult("running", progress=progress, failed=1, error=why)
            after = after and _note(work, after, lambda *_, failed=failed: failed)
            work.observer.failed_alone(FailedAlone("commands", key_text(key), error_text(error)))
        if after is None:
            return None
    return after


def _do(
    transaction: Transaction, now: datetime, *, batch: _Batch, policies: Policies, progress: int | None = None
) -> BatchResult:
    """Change deliveries of a batch, or say why there are none."""
    command, keys = batch.command, batch.keys
    if batch.waits:
        return BatchResult("running", progress=command.progress, answer=batch.waits)
    if not keys and batch.upto is not None:
        return BatchResult("running", progress=batch.upto)
    if not keys:
        return BatchResult("done", progress=command.progress, answer="; ".join((answer_of(command), *batch.instead)))
    if unreadable := [batch.unreadable[key] for key in keys if key in batch.unreadable]:
        raise unreadable[0]
    changed = _change(transaction, batch.choice, command, keys, now, policies=policies)
    return BatchResult("running", changed, keys[-1][0] if progress is None else progress)


def _change(
    transaction: Transaction,
    choice: Choice,
    command: Command,
    keys: Sequence[Key],
    now: datetime,
    *,
    policies: Policies,
) -> int:
    said: Any = {"who": command.asked_by, "why": command.reason}
    if choice.act == "retry":
        return retry(transaction, keys, now, **said)
    more: Any = {"policies": policies, "states": choice.states}
    if choice.act == "replay":
        first = keys[0][0]
        if choice.selection.until_fact is not None:  # another command may have changed some since the batch was read
            keys = sorted(selected.among(transaction, choice, keys) & {*keys})
        too = None if choice.selection.force else partial(selected.among, transaction, choice, first=first)
        return replay(transaction, choice.config, keys, facts.Replayed(**said), now, too=too, **more)
    fact = facts.Cancelled(**said) if choice.act == "cancel" else facts.Unblocked(**said)
    return end_or_unblock(transaction, choice.config, keys, fact, now, **more)


def _fail(work: Work, number: int, command: Command | None, error: Exception) -> None:
    """End a command that can't be done, with the reason as its answer, unless another process has gone on with it."""
    is_refused = isinstance(error, UnusableCommand)
    answer = str(error) if is_refused else error_text(error)
    with work.write() as transaction:
        if command is not None and not commands.is_as_it_was(transaction, command):
            return
        commands.end(transaction, number, "refused" if is_refused else "failed", answer)
    work.observer.failed_alone(FailedAlone("commands", f"command={number}", answer))
