"""Executes the commands of operators, batch by batch, in any relay process or in the command line's own.

A batch, how far the command has come, and what it has changed so far are one transaction, which locks the command's row and
leaves it alone if another process has gone on with it since it was read. So several processes may work on one command, each
batch is done once, and any of them may die.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from datetime import datetime
from functools import partial
from typing import Any

import msgspec
from sqlalchemy.exc import DBAPIError

from inbox.config.mistakes import nearest
from inbox.config.model import Config
from inbox.db.dialect import as_json, blames_items, error_text, failure_of, takes_too_long
from inbox.db.reads import has_route, has_source
from inbox.errors import UnusableCommand
from inbox.observe.traces import OFF, Span, Tracer
from relay.delivery import facts
from relay.delivery.gates import Gate
from relay.delivery.policy import Policies
from relay.operations.asks import OneGate, Selection
from relay.operations.table import OF_DELIVERIES, OF_GATES, OPERATIONS, parse
from relay.store import gates
from relay.store.bulkhead import in_parts
from relay.store.database import Database
from relay.store.operator import commands, plan, room, selected
from relay.store.operator.commands import BatchResult, Standing
from relay.store.operator.replay import end_or_unblock, replay, retry
from relay.store.operator.selection import Choice, keys_of
from relay.store.operator.tasks import TASKS
from relay.store.transaction import FailedAlone, Key, Transaction, key_text

BATCH = 200
"""Deliveries in one transaction."""
MOST_AT_ONCE = 10
"""Commands that get one batch each in one step of a relay."""
FAULTY_SECONDS = 60.0
"""The wait after a command failed for a reason that is no item's, such as a missing privilege."""


class OpenCommands:
    """Open commands, a few at a time and in turn. Each is a compartment of its own: none delays another."""

    def __init__(
        self, database: Database, monotonic: Callable[[], float] = time.monotonic, tracer: Tracer = OFF
    ) -> None:
        self._database = database
        self._monotonic = monotonic
        self._tracer = tracer
        self._after = 0
        self._faulty: dict[int, float] = {}
        """Commands that failed for a reason that is no item's, and when each is tried again."""
        self.troubled: list[tuple[int, Exception]] = []
        """Commands that failed last time: a row they need was locked, or a statement can't run at all."""

    def work(self, config: Config, policies: Policies) -> int:
        """Do a batch of each of the next few commands. Returns the number of changed deliveries."""
        numbers = commands.next_open(self._database, after=self._after, most=MOST_AT_ONCE)
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
                batch = work_on(self._database, config, policies, number)
                changed += batch
                _end(span, number, batch)
            except Exception as error:
                _end(span, number, 0, type(error).__name__)
                if failure_of(error) == "unreachable":
                    raise
                self._trouble(number, error, now)
        return changed

    def _trouble(self, number: int, error: Exception, now: float) -> None:
        """Keep the failure, and say in the row what the command waits for."""
        self.troubled.append((number, error))
        if failure_of(error) == "fault":
            self._faulty[number] = now + FAULTY_SECONDS
        if isinstance(error, DBAPIError) and "relay_command" in (error.statement or ""):
            return  # somebody has locked the row itself
        with suppress(DBAPIError):
            commands.say(self._database, number, f"waits: {error_text(error)}")


def _end(span: Span | None, number: int, changed: int, error: str | None = None) -> None:
    """End the span of a batch. One that changes nothing is not shown: a command that waits has one each second."""
    if span is not None and (changed or error is not None):
        span.attributes |= {"inbox.command": number, "inbox.changed": changed}
        span.end(error=error)


def work_on(database: Database, config: Config, policies: Policies, number: int) -> int:
    """Do the next batch of this command, if it has not ended.

    A command that can't be understood, or can't be meant, is `refused`. One whose deliveries can't be found is `failed`. A
    delivery that can't be changed is passed over: `relay_command.failed` counts it, `relay_command.error` has the last
    one. A locked one is not: the command waits for it.

    Returns:
        How many deliveries it has changed; of a replay or retry also none when too many are open already. Of a dry run: 1
        when there is more to look at.
    """
    command = None
    try:
        with database.read() as transaction:
            command = commands.read_open(transaction, number)
        if command is None:
            return 0
        asked = _asked(command)
        if command.kind in OF_DELIVERIES:
            return _work(database, policies, _look(database, config, policies, command, asked))
        if command.kind in OF_GATES:
            return _turn_gate(database, config, command, asked)
        return _do_task(database, config, command, asked)
    except Exception as error:
        if not blames_items(error):
            raise
        _fail(database, number, command, error)
        return 0


def _asked(command: Any) -> Any:  # noqa: ANN401  # a result row; the operation's `asks`
    """Read a row, which anybody may have inserted in SQL.

    Raises:
        UnusableCommand: it can't be understood, or can't be meant.
    """
    if command.dry_run and not OPERATIONS[command.kind].has_dry_run:
        raise UnusableCommand(f"a {command.kind} has no dry run")
    return parse(command.kind, as_json(command.selection))


class _Batch(msgspec.Struct, frozen=True):
    """The next batch of a command about deliveries, as it was read without a lock."""

    command: Any
    """The row."""
    choice: Choice
    keys: Sequence[Key] = ()
    waits: str | None = None
    """The reason why it has to wait for deliveries that are open."""
    unreadable: Mapping[Key, Exception] = {}
    """Deliveries of `keys` that can't be looked up, so that nobody knows whether they are selected."""
    upto: int | None = None
    """Without any `keys`: the seq up to which none is selected; None at the end."""

    @property
    def opens(self) -> bool:
        """Return whether it opens deliveries that have ended, whose payloads have to be there."""
        return self.choice.act == "replay"


def _look(database: Database, config: Config, policies: Policies, command: Any, asked: Selection) -> _Batch:  # noqa: ANN401  # a result row
    """Read the next batch without a lock, since finding the deliveries may take long.

    Raises:
        UnusableCommand: it can't be meant.
    """
    choice = Choice(command.kind, asked, config, until_seq=command.until_seq)
    if choice.mistake is not None:
        raise UnusableCommand(choice.mistake)
    if command.progress_seq is None and (mistake := unknown_name(database, choice)):
        raise UnusableCommand(mistake)
    if command.dry_run:
        return _Batch(command, choice)
    page = selected.page(database, choice, after=command.progress_seq or 0, most=BATCH)
    keys: Sequence[Key] = keys_of(page.rows)
    waits = None
    if choice.act == "replay":
        keys, full = room.that_fit(database, policies, keys)
        waits = None if full is None else f"waits: {room.MOST_OPEN} replayed deliveries are open on route {full}"
    elif choice.act == "retry" and command.affected >= room.MOST_OPEN:
        full = room.full_route(database, policies, keys)
        waits = None if full is None else f"waits: {room.MOST_OPEN} deliveries are due on route {full}"
    return _Batch(command, choice, keys, waits, page.unreadable, page.upto)


def _work(database: Database, policies: Policies, batch: _Batch) -> int:
    if batch.command.dry_run:
        return _look_on(database, batch.choice, batch.command)
    try:
        if batch.waits or not batch.unreadable:
            return _do(database, policies, batch)
    except Exception as error:  # a smaller part may succeed where a statement took too long
        if not (blames_items(error) or takes_too_long(error)) or not batch.keys:
            raise
    return _do_apart(database, policies, batch)


def _do(database: Database, policies: Policies, batch: _Batch) -> int:
    """Do a batch in one transaction, unless another process has done it meanwhile."""
    number, routes = batch.command.id, {route for _, route in batch.keys}
    with database.write() as transaction:
        now = transaction.lock_order(routes, keeps_payloads=batch.opens) if routes else transaction.now()
        if not commands.is_as_it_was(transaction, number, commands.standing_of(batch.command)):
            return 0
        step = _next(transaction, batch, policies, now)
        commands.advance(transaction, number, step, now)
    return step.changed


def _turn_gate(database: Database, config: Config, command: Any, asked: OneGate) -> int:  # noqa: ANN401  # a result row
    """Pause or resume a gate, unless another process has done so meanwhile. It locks the gate alone, and waits for no route."""
    gate = Gate(**msgspec.structs.asdict(asked))
    if mistake := gates.mistake_in(database, gate, command.kind, config):
        raise UnusableCommand(mistake)
    with database.write() as transaction:
        now = transaction.now()
        if not commands.is_as_it_was(transaction, command.id, commands.standing_of(command)):
            return 0
        if command.kind == "pause":
            changed = gates.pause(transaction, gate.key, who=command.asked_by, why=command.reason)
            answer = "paused" if changed else "was paused already"
        else:
            changed = gates.resume(transaction, gate.key, now)
            answer = "resumed" if changed else "nothing was held back"
        commands.advance(transaction, command.id, BatchResult("done", answer=answer), now)
    return 0


def _do_task(database: Database, config: Config, command: Any, asked: Any) -> int:  # noqa: ANN401  # a result row
    """Do the next step of a command about no delivery, unless another process has gone on with it or stopped it."""
    act = TASKS[command.kind](database, config, commands.request_of(command, asked))
    with database.write() as transaction:
        if not commands.is_as_it_was(transaction, command.id, commands.standing_of(command)):
            return 0
        step = act(transaction)
        commands.advance(transaction, command.id, step, transaction.now())
    return step.changed


def _look_on(database: Database, choice: Choice, command: Any) -> int:  # noqa: ANN401  # a result row
    """Examine the next deliveries of a dry run, and note the plan so far. Returns how many there are so far."""
    step = plan.dry_run_step(database, choice, command)
    with database.write() as transaction:
        if commands.is_as_it_was(transaction, command.id, commands.standing_of(command)):
            commands.advance(transaction, command.id, step, transaction.now())
    return 0 if step.state == "done" else 1


def _do_apart(database: Database, policies: Policies, batch: _Batch) -> int:
    """Do a batch in parts, after one of its deliveries has failed.

    Each part notes how far the command has come: whoever goes on with it, at the same time or after us, does none twice.
    """
    number, standing = batch.command.id, commands.standing_of(batch.command)

    def upto(last: Key) -> int:
        following = batch.keys[batch.keys.index(last) + 1 :][:1]
        return last[0] - int(bool(following) and following[0][0] == last[0])  # more of its event is to come

    def part(some: Sequence[Key]) -> int:
        nonlocal standing
        changed, standing = _part(database, policies, batch, some, standing=standing, upto=upto(some[-1]))
        return changed

    def alone(key: Key, error: Exception) -> int:
        nonlocal standing
        with database.write() as transaction:
            if commands.is_as_it_was(transaction, number, standing):
                why = f"{key_text(key)}: {error_text(error)}"
                standing = commands.advance_part(transaction, number, upto(key), failed=1, error=why)
        return 0

    return sum(in_parts(database, "commands", batch.keys, part=part, alone=alone, name=key_text))


def _part(
    database: Database,
    policies: Policies,
    batch: _Batch,
    some: Sequence[Key],
    *,
    standing: Standing,
    upto: int,
) -> tuple[int, Standing]:
    """Do a part of a batch in one transaction, unless another process goes on with the command."""
    number = batch.command.id
    for key in some:
        if key in batch.unreadable:
            raise batch.unreadable[key]
    with database.write() as transaction:
        now = transaction.lock_order({route for _, route in some}, keeps_payloads=batch.opens)
        if not commands.is_as_it_was(transaction, number, standing):
            return 0, standing
        changed = _change(transaction, batch.choice, batch.command, some, now, policies=policies)
        return changed, commands.advance_part(transaction, number, upto, changed=changed)


def unknown_name(database: Database, choice: Choice) -> str | None:
    """The mistake in a route or source that neither the configuration nor the database has; rows of a removed one stay."""
    chosen, config = choice.selection, choice.config
    for kind, given, names, is_stored in (
        ("route", chosen.route, config.routes, has_route),
        ("source", chosen.source, config.sources, has_source),
    ):
        if given is not None and given not in names and not is_stored(database.engine, given):
            return f"there is no {kind} {given!r}; {nearest(given, names)}"
    return None


def _next(transaction: Transaction, batch: _Batch, policies: Policies, now: datetime) -> BatchResult:
    command = batch.command
    if batch.waits:
        return BatchResult("running", progress=command.progress_seq, answer=batch.waits)
    if not batch.keys and batch.upto is not None:
        return BatchResult("running", progress=batch.upto)
    if not batch.keys:
        return BatchResult("done", progress=command.progress_seq, answer=_answer(command))
    changed = _change(transaction, batch.choice, command, batch.keys, now, policies=policies)
    return BatchResult("running", changed, batch.keys[-1][0])


def _answer(command: Any) -> str:  # noqa: ANN401  # a result row
    """The answer of a command that is done; of one that was planned also how many of the plan it has left alone."""
    answer = "done" if command.affected else "done: nothing was to change"
    if command.failed:
        answer = f"done, but for {command.failed} that could not be changed: see error"
    left = (command.matched or 0) - command.affected - command.failed
    if left <= 0:
        return answer
    return f"{answer}; {left} of the plan had changed meanwhile, by a relay or another command, and were left alone"


def _change(
    transaction: Transaction,
    choice: Choice,
    command: Any,  # noqa: ANN401  # a result row
    keys: Sequence[Key],
    now: datetime,
    *,
    policies: Policies,
) -> int:
    said, first = {"who": command.asked_by, "why": command.reason}, keys[0][0]
    if choice.act == "retry":
        return retry(transaction, keys, now, **said)
    states = choice.states
    if choice.act == "replay":
        if choice.selection.until_fact is not None:  # another command may have changed some since the batch was read
            keys = sorted(selected.among(transaction, choice, keys) & {*keys})
        too = None if choice.selection.force else partial(selected.still_to_come, transaction, choice, first)
        return replay(
            transaction, choice.config, keys, facts.Replayed(**said), now, policies=policies, too=too, states=states
        )
    fact = facts.Cancelled(**said) if choice.act == "cancel" else facts.Unblocked(**said)
    return end_or_unblock(transaction, choice.config, keys, fact, now, policies=policies, states=states)


def _fail(database: Database, number: int, command: Any, error: Exception) -> None:  # noqa: ANN401  # a result row
    """End a command that can't be done, with the reason as its answer, unless another process has gone on with it."""
    is_refused = isinstance(error, UnusableCommand)
    answer = str(error) if is_refused else error_text(error)
    with database.write() as transaction:
        if command is not None and not commands.is_as_it_was(transaction, number, commands.standing_of(command)):
            return
        commands.end(transaction, number, "refused" if is_refused else "failed", answer)
    database.failed_alone(FailedAlone("commands", f"command={number}", answer))
