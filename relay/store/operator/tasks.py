"""The steps of each kind of command: found without a lock, then run in the transaction that stores their result."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Any, NamedTuple, cast

import msgspec

from inbox.db import erasure
from inbox.db.dialect import error_text
from inbox.db.throughput import DUPLICATE, SOURCE, STORED
from inbox.errors import UnusableCommand
from inbox.events.timestamps import time_text
from inbox.sources.normalize import ReadmitResult, make_readers
from relay.delivery.gates import Gate
from relay.operations.table import OF_DELIVERIES, OPERATIONS
from relay.store import gates, sweeps
from relay.store.deliveries import Key, format_key
from relay.store.operator import edits, readmit, selection
from relay.store.operator.changes import Changed, change, find_reason_to_wait
from relay.store.operator.commands import Command, CommandAct, end, turn_in
from relay.store.operator.plan import (
    describe_closed,
    describe_nothing,
    find_reason_mistake,
    list_skipped,
    list_types,
    make_subject,
    parse_kinds,
    plan,
    quick,
)
from relay.store.operator.selection import Choice, list_keys
from relay.store.retention import LeasedPruner, Pruned, compute_expiry, read_command_clock
from relay.store.transaction import Transaction
from relay.store.work import Work
from relay.words import format_count

BATCH = 200
"""Deliveries in one transaction."""
MOST_EXAMINED, LONGEST_SECONDS = 5000, 0.5
"""Limits of a plan in a relay, which plans and delivers in the same thread."""


class Working(msgspec.Struct, frozen=True):
    """A command as read, with the context of its next step."""

    work: Work
    command: Command
    asked: Any
    """The parsed selection of the command."""


Act = Callable[[Transaction, datetime], Command]
"""Runs a step in the transaction that locks the command and stores the result. Returns the command after the step."""


class Item(NamedTuple):
    """A delivery or request of a batch."""

    it: Any
    name: str
    progress: int
    """The progress of the command after this item."""
    route: str | None = None
    """The route whose lock the item needs."""
    error: str | None = None
    """The reason why the item can't be changed, if already known."""


class Batch(msgspec.Struct, frozen=True):
    """A step on items, which can also be processed one by one."""

    items: Sequence[Item]
    change: Callable[[Transaction, datetime, Sequence[Any]], Changed]
    opens: bool = False
    """True when the step opens deliveries: their payloads must be kept."""

    def act(self, command: Command, transaction: Transaction, now: datetime, items: Sequence[Item]) -> Command:
        """Process some of the items."""
        failed = [item for item in items if item.error is not None]
        good = [item.it for item in items if item.error is None]
        done = self.change(transaction, now, good) if good else Changed(0)
        error = f"{failed[-1].name}: {failed[-1].error}" if failed else command.error
        after = command.after(changed=done.number, failed=len(failed), progress=items[-1].progress, error=error)
        return after.skipping(done.skipped)


Task = Callable[[Working], Act | Batch]
"""Finds the next step of a command.

Raises:
    UnusableCommand: the command can't be done; it ends as `refused` with this message.
"""


def _answer_of(it: Working, *, now: int = 0) -> str:
    """Return the answer of a completed command; its last step has changed `now` items."""
    command = it.command
    words, changed = OPERATIONS[command.kind], command.affected + now
    if not (changed or command.failed or command.matched):
        bound = quick(MOST_EXAMINED, LONGEST_SECONDS)
        return describe_nothing(it.work.database, it.work.config, command.kind, it.asked, bound)
    said = [f"{format_count(changed, words.thing)} {words.done}" if changed or command.failed else words.nothing]
    said += [each.says for each in list_skipped(command.skipped)]
    if command.failed:
        said.append(f"{command.failed} failed: see error")
    if (left := (command.matched or 0) - changed - command.failed) > 0:
        said.append(f"{left} of the plan skipped, as {'it' if left == 1 else 'they'} had changed meanwhile")
    return "; ".join(said)


def _change_deliveries(it: Working) -> Act | Batch:
    """Change the next selected deliveries, all of each event."""
    command = it.command
    choice = Choice(cast("Any", command.kind), it.asked, it.work.config, until_seq=command.until)
    page = selection.read_page(it.work, choice, after=command.progress or 0, most=BATCH)
    keys = list_keys(page.rows)
    if waits := find_reason_to_wait(it.work, choice.act, keys, affected=command.affected):
        return lambda *_: command.after(answer=waits)
    fields = tuple[str, ...]()
    if it.asked.edited_body is not None and keys:
        if len(keys) > 1:
            raise UnusableCommand(edits.ask_for_route(route for _, route in keys), field="route")
        fields = edits.examine_named(it.work.database, it.work.config, it.asked).changed
    unreadable = [Item((seq, ""), f"seq={seq}", seq, error=error_text(error)) for seq, error in page.unreadable.items()]
    items = sorted([*map(_item, keys, [*keys[1:], (0, "")]), *unreadable])  # by seq and route
    if items:

        def some(transaction: Transaction, now: datetime, keys: Sequence[Key]) -> Changed:
            said: dict[str, Any] = {"who": command.asked_by, "why": command.reason}
            said |= {"command": command.id, "changed_fields": fields}
            return change(transaction, choice, keys, now, **said, policies=it.work.policies)

        return Batch(items, some, opens=choice.act == "replay")
    if page.upto is not None:
        return lambda *_: command.after(progress=page.upto)
    answer = _answer_of(it)
    return lambda *_: command.after("done", answer=answer)


def _item(key: Key, following: Key) -> Item:
    """Return the item of a delivery. The progress moves past an event only with its last delivery."""
    return Item(key, format_key(key), key[0] - (key[0] == following[0]), key[1])


def _turn_gate(it: Working) -> Act:
    """Pause or resume a gate. It locks only the gate, and does not wait for routes."""
    command, gate = it.command, Gate(**msgspec.structs.asdict(it.asked))
    words, closed = OPERATIONS[command.kind], describe_closed(it.work.database, gate)

    def act(transaction: Transaction, now: datetime) -> Command:
        if command.kind == "pause":
            changed = gates.pause(transaction, gate.key, who=command.asked_by, why=command.reason)
        else:
            changed = gates.resume(transaction, gate.key, now)
        answer = words.done if changed else "; ".join((words.nothing, *closed))
        return command.after("done", changed=int(changed), answer=answer)

    return act


_ASKED = 1
"""The progress of a command whose sweeps are due."""


def _sweep(it: Working) -> Act:
    """Make the sweeps due, or check whether they have ended."""
    source, types = it.asked.source, list_types(it.work.config, it.asked.source, it.asked.entity_type)
    if it.command.progress == _ASKED:
        last = {result.entity_type: result for result in sweeps.read_results(it.work.database, source)}
        return lambda *_: _result([last[each] for each in types if each in last], it.command)

    def act(transaction: Transaction, _now: datetime) -> Command:
        are_asked = [sweeps.ask(transaction, source, each, it.command.id) for each in types]
        if not all(are_asked):
            return it.command.after(answer="waits: a sweep of this source is running, or another command waits for one")
        return it.command.after(progress=_ASKED, answer="waits for a relay that sweeps")

    return act


def _result(last: Sequence[sweeps.SweepResult], command: Command) -> Command:
    if any(result.command == command.id for result in last):
        return command.after(answer="waits for the end of the sweep")
    said = "; ".join(
        f"{result.entity_type}: {result.error}"
        if result.error is not None
        else f"{result.entity_type}: {result.compared} compared, {result.missed} missed, {result.added} added"
        for result in last
    )
    added = sum(result.added or 0 for result in last if result.error is None)
    failed = any(result.error is not None for result in last)
    return command.after("failed" if failed else "done", changed=added, answer=said)


def _prune(it: Working) -> Act:
    """Prune the next rows of a kind under the pruner's lease. The progress is the number of completed kinds."""
    command, kinds, progress = it.command, parse_kinds(it.asked.kinds or ()), it.command.progress or 0
    holder = f"command {command.id}, process {os.getpid()} at {socket.gethostname()}"
    pruner = LeasedPruner(it.work.database, holder, rest=lambda _: None)
    if pruner.take() is None:
        return lambda *_: command.after(answer="waits: a relay is pruning")
    kind, done = kinds[progress], Pruned(is_held_up=True)
    try:
        with it.work.database.read() as transaction:
            before = compute_expiry(it.work.config.retention, kind, read_command_clock(transaction))
        done = pruner.prune_batch(kind, before) or done
    finally:
        pruner.give_back()
    if done.is_held_up:
        return lambda *_: command.after(answer="waits: the rows are locked, or a relay is pruning")
    progress += done.is_done
    if done.is_done and progress == len(kinds):
        answer = _answer_of(it, now=done.rows)
        return lambda *_: command.after("done", changed=done.rows, progress=progress, answer=answer)
    failed, error = int(done.error is not None), done.error or command.error
    return lambda *_: command.after(changed=done.rows, failed=failed, progress=progress, error=error)


def _erase(it: Working) -> Act:
    """Erase the next events of an entity."""
    command, subject = it.command, make_subject(it.asked)
    if mistake := find_reason_mistake(it.asked, command.reason):
        raise UnusableCommand(mistake)
    nothing = None
    if not command.affected:
        planned = plan(it.work.database, it.work.config, command.kind, it.asked, quick(erasure.COUNTED_EVENTS, 1.0))
        if planned.obstacle is not None and planned.count:
            raise UnusableCommand(planned.says)
        nothing = planned.obstacle and planned.says

    def act(transaction: Transaction, _now: datetime) -> Command:
        now, said = time_text(transaction.take_order_lock()), {"who": command.asked_by, "why": command.reason}
        done = erasure.erase_step(transaction.connection, subject, now=now, **said)
        if done.obstacle is not None:
            raise UnusableCommand(f"an event arrived meanwhile; {done.obstacle}")
        if not done.is_last:
            return command.after(changed=done.erased)
        answer = nothing or _answer_of(it)
        end(transaction, command.id, "done", answer)  # an open command keeps its selection
        erasure.forget_in_commands(transaction.connection, subject)
        return command.after("done", answer=answer)

    return act


def _readmit(it: Working) -> Act | Batch:
    """Readmit the next requests as the receiver stores them; those already in the inbox are duplicates."""
    command = it.command
    page = readmit.read_again(it.work.database, make_readers(it.work.config), it.asked, command.progress or 0)
    page = [each for each in page if command.until is None or each.id <= command.until]
    if not page:
        answer = _answer_of(it)
        return lambda *_: command.after("done", answer=answer)

    def some(transaction: Transaction, _now: datetime, requests: Sequence[ReadmitResult]) -> Changed:
        """Store the requests, except those still rejected or already readmitted."""
        rejected = sum(each.rejected is not None for each in requests)
        requests = [each for each in requests if each.rejected is None]
        taken = readmit.take(transaction, requests, by=command.asked_by, reason=command.reason)
        for each in requests:
            for event, receipt in zip(each.events, taken.get(each.id, ()), strict=False):
                outcome = DUPLICATE if receipt.duplicate else STORED
                it.work.database.tally.add(SOURCE, event.source, outcome, size=len(event.body))
        return Changed(len(taken), {"rejected": rejected})

    return Batch([Item(each, f"rejected request {each.id}", each.id) for each in page], some)


def _turn_command(it: Working) -> Act:
    """Stop the named command, or continue it."""
    command, kind = it.command, cast("CommandAct", it.command.kind)

    def act(transaction: Transaction, _now: datetime) -> Command:
        said = {"who": command.asked_by, "why": command.reason}
        return command.after("done", answer=turn_in(transaction, kind, it.asked.command, **said))

    return act


TASKS: Mapping[str, Task] = {
    **dict.fromkeys(OF_DELIVERIES, _change_deliveries),
    "pause": _turn_gate,
    "resume": _turn_gate,
    "sweep": _sweep,
    "erase": _erase,
    "prune": _prune,
    "readmit": _readmit,
    "stop": _turn_command,
    "continue": _turn_command,
}
"""The task of each kind."""
