"""Plans of commands that change deliveries, and their execution: `relay replay`, `cancel`, `unblock` and `retry`."""

from __future__ import annotations

import shlex
import time
from collections.abc import Iterator
from contextlib import suppress
from datetime import datetime
from typing import TYPE_CHECKING, Any, cast

import msgspec
import typer
from rich.progress import BarColumn, MofNCompleteColumn, SpinnerColumn, TimeRemainingColumn
from rich.text import Text

from inbox.clock import SystemClock
from inbox.errors import UnusableCommand
from inbox.events.commands import says_why
from inbox.events.timestamps import rfc3339
from inbox.observe.visible import visible_text
from relay.cli.options import login_name, open_database, require_known_filters
from relay.cli.tables import Column, Format, show
from relay.cli.terminal import (
    FINDING,
    Doing,
    answer,
    as_document,
    bar,
    console,
    exit_on_error,
    fail,
    put,
    put_json,
    say,
)
from relay.operations.table import OPERATIONS, Operation, Words
from relay.words import counted, shown_state, stays_open

if TYPE_CHECKING:
    from inbox.config.model import Config
    from relay.operations.asks import Selection
    from relay.store.database import Database
    from relay.store.operator.commands import Progress
    from relay.store.operator.plan import Plan
    from relay.store.operator.selection import Act, Choice, Which

GROUP_COLUMNS = (
    Column("count", "number", "deliveries"),
    Column("route"),
    Column("state", "state"),
    Column("cause"),
    Column("first_due_at", "time", "first due"),
    Column("last_due_at", "time", "last due"),
)
COLUMNS = (
    Column("seq", "number"),
    Column("route"),
    Column("entity", "entity"),
    Column("state", "state"),
    Column("due_at", "time", "due"),
    Column("cause"),
    Column("attempts", "number"),
    Column("event_type", heading="event"),
    Column("error", last=True),
)
_FORM = Format(has_wide=False)
_SAMPLE = 5
_MOST_LISTED = 10_000
"""Deliveries that the JSON of a plan lists; its count is exact."""
_LOOK_AGAIN_SECONDS = 0.5


def carry_out(operation: Operation, chosen: Selection, reason: str | None, *, yes: bool, as_json: bool) -> None:
    """Show the plan; with `yes` carry it out, with a progress bar. Exits with 1 when it is about no delivery."""
    from relay.store.operator import commands
    from relay.store.operator.selection import Choice

    act, texts = cast("Act", operation.kind), operation.words
    if yes and not says_why(reason):
        fail("say why with --reason: it is kept in the log")
    with exit_on_error():
        config, database = open_database()
        require_known_filters(
            config,
            database.engine,
            route=chosen.route,
            source=chosen.source,
            destination=chosen.destination,
            cause=chosen.cause,
        )
        choice = Choice(act, chosen, config)
        if choice.mistake is not None:
            fail(choice.mistake)
        plan = _planned(database, choice, _MOST_LISTED if as_json else _SAMPLE)
        hints = list(_hints(database, choice, plan))
    if not as_json:
        _show(texts, plan, hints)
    done: Progress | None = None
    number = None
    if yes and reason and plan.count:
        with exit_on_error():
            number = commands.ask(database, act, chosen, who=login_name(), why=reason)
            done = follow(database, config, number, texts.doing, plan.count, done=texts.done)
    elif plan.count and not as_json:
        more = f", {_SAMPLE} of them shown" if plan.count > len(plan.deliveries) else ""
        needed = "" if says_why(reason) else "--reason '…' "
        say(f"{counted(plan.count, 'delivery')} {texts.planned}{more}; {needed}--yes does it")
    if as_json:
        put_json(as_document(_document(act, plan, number, done)))
    if not plan.count or (done is not None and done.failed):
        raise typer.Exit(FINDING)


def follow(database: Database, config: Config, number: int, doing: str, total: int | None, *, done: str) -> Progress:
    """Work on a command until it has ended, with a progress bar. An interrupted one can be resumed."""
    from sqlalchemy.exc import DBAPIError

    from relay.delivery.policy import policies
    from relay.store.operator import commands, execution

    columns = (Doing(), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    policies_of = policies(config)
    try:
        with bar(*columns) as progress:
            task = progress.add_task(doing, total=total)
            while not (now := _progress(database, number)).has_ended:
                progress.update(task, completed=now.affected, description=now.answer or doing)
                if (
                    not execution.work_on(database, config, policies_of, number)
                    and _progress(database, number).state == "running"
                ):
                    time.sleep(_LOOK_AGAIN_SECONDS)
    except KeyboardInterrupt:
        with suppress(UnusableCommand):  # it has just ended
            commands.turn(database, "stop", number, who=login_name(), why="interrupted at the command line")
        say(f"stopped after {_progress(database, number).affected}; `relay resume --command {number}` goes on")
        raise typer.Exit(FINDING) from None
    except DBAPIError:
        say(stays_open(number))
        raise
    if now.state != "done":
        fail(f"command {number}: {now.answer}")
    say(f"{counted(now.affected, 'delivery')} {done}")
    if now.failed:
        say(f"{counted(now.failed, 'delivery')} could not be changed, the last: {now.error}")
    return now


def command_text(act: Act, chosen: Selection) -> str:
    """Return the command line of an act, to be copied."""
    given = {name: getattr(chosen, name) for name in OPERATIONS[act].keys}
    entity_type, entity_id, seqs = given.pop("entity_type"), given.pop("entity_id"), given.pop("seqs") or ()
    given["entity"] = None if entity_id is None else f"{entity_type}/{entity_id}"
    given["all"] = given.pop("everything")
    words = ["relay", act, *map(str, seqs)]
    for name, value in given.items():
        if value is not None and value is not False:
            text = rfc3339(value) if isinstance(value, datetime) else str(value)
            words += [f"--{name.replace('_', '-')}", *(() if value is True else (shlex.quote(text),))]
    return " ".join([*words, "--reason '…'"])


def _planned(database: Database, choice: Choice, most: int) -> Plan:
    from relay.store.operator.plan import preview

    with bar(SpinnerColumn(), Doing("planning "), MofNCompleteColumn()) as progress:
        task = progress.add_task("", total=None)
        return preview(database, choice, most, seen=lambda number: progress.update(task, completed=number))


def _show(texts: Words, plan: Plan, hints: list[str]) -> None:
    if not plan.count:
        say(texts.nothing)
    elif plan.count > len(plan.deliveries):
        show([msgspec.structs.asdict(group) for group in plan.groups], GROUP_COLUMNS, _FORM, empty="")
        answer("")
    if plan.count:
        now = SystemClock().now()
        rows = [{**row, "state": shown_state(row, now)} for row in plan.deliveries]
        show(rows, COLUMNS, _FORM, empty="")
    from relay.store.operator.plan import LEFT_OUT

    for why, number in plan.left_out.items():
        say(f"{number} left out: {LEFT_OUT[why]}")
    for hint in hints:
        put(Text(visible_text(hint)), on=console(stderr=True))


def _document(act: Act, plan: Plan, number: int | None, done: Progress | None) -> dict[str, Any]:
    return {
        "command": act,
        "count": plan.count,
        "groups": [msgspec.structs.asdict(group) for group in plan.groups],
        "left_out": [{"why": why, "count": number} for why, number in plan.left_out.items()],
        "deliveries": plan.deliveries,
        "number": number,
        "state": None if done is None else done.state,
        "affected": None if done is None else done.affected,
        "failed": None if done is None else done.failed,
        "error": None if done is None else done.error,
    }


def _hints(database: Database, choice: Choice, plan: Plan) -> Iterator[str]:
    """Name the command that is meant when this one is about nothing, and the gates that hold a retry back."""
    if plan.count:
        yield from _gates_in_front(database, choice, plan) if choice.act == "retry" else ()
        return
    waiting = choice.act in {"replay", "unblock"} and _number_of(database, choice, "due later")
    dead = choice.act in {"retry", "unblock"} and _number_of(database, choice, "dead")
    if waiting:
        yield f"{counted(waiting, 'attempt')} waiting; due at once with {_other(choice, 'retry')}"
    if dead:
        yield f"{counted(dead, 'dead letter')}; delivered again with {_other(choice, 'replay')}"
    if choice.selection.seq is not None:
        yield _of_event(database, choice.selection.seq)
    elif choice.act == "retry" and not dead:
        yield "a delivery that is due or in flight needs no retry: `relay status` says what holds it back"


def _of_event(database: Database, seq: int) -> str:
    """Say where an event stands, about which there is nothing to do."""
    from inbox.db import reads

    event = reads.event(database.engine, seq)
    if event is None:
        return f"there is no event {seq}"
    states = ", ".join(f"{row['state']} on {row['route']}" for row in event["deliveries"])
    return f"event {seq} is {states or 'unrouted'}; `inbox show {seq}` has its history"


def _other(choice: Choice, act: Act) -> str:
    return f"`{command_text(act, _for(choice, act).selection)}`"


def _for(choice: Choice, act: Act) -> Choice:
    """Return the same conditions for another act."""
    chosen = msgspec.structs.replace(choice.selection, state=None)
    plain = msgspec.structs.replace(chosen, force=False, backfill=False, everything=chosen.is_empty)
    return msgspec.structs.replace(choice, act=act, selection=plain)


def _number_of(database: Database, choice: Choice, which: Which) -> int:
    from relay.store.operator import selected

    with database.read() as transaction:
        return selected.count(transaction, choice, which)


def _gates_in_front(database: Database, choice: Choice, plan: Plan) -> Iterator[str]:
    from relay.cli.pause import described
    from relay.delivery.gates import resume_command
    from relay.delivery.policy import policies
    from relay.store import gates

    known = policies(choice.config)
    passed = {key for group in plan.groups if group.route in known for key in known[group.route].gates}
    for row in gates.held_back(database):
        if (row["kind"], row["name"]) in passed:
            by_itself = row["paused_at"] is None and row["breaker"] == "closed"
            end = "" if by_itself else f"; end that with `{resume_command(row['kind'], row['name'])}`"
            yield f"held back until then: {described(row)}{end}"


def _progress(database: Database, number: int) -> Progress:
    from relay.store.operator import commands

    found = commands.progress(database, number)
    if found is None:
        fail(f"there is no command {number}")
    return found
