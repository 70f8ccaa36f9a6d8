"""`inbox erase`: erases what the database holds of one entity, such as a person who asked for it."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING, Annotated

import msgspec
import typer
from rich.progress import BarColumn, MofNCompleteColumn, SpinnerColumn, TimeRemainingColumn
from rich.text import Text

from inbox.events.commands import says_why
from inbox.observe.visible import visible
from relay.cli.options import AsJson, login_name, names_of, open_engine, parse_entity, require_known
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
from relay.words import byte_count, counted, stays_open

if TYPE_CHECKING:
    from sqlalchemy import Engine

    from inbox.db.erasure import ErasureOrder, ErasurePlan, ErasureResult, ErasureSubject, StepDone


def erase_command(
    *,
    source: Annotated[
        str, typer.Option("--source", help="The source of its events.", autocompletion=names_of("sources"))
    ],
    entity: Annotated[str, typer.Option("--entity", help="The entity: TYPE/ID.")],
    reason: Annotated[
        str | None,
        typer.Option(help="Why; it is kept for good, so don't name the person in it. Needed with --yes."),
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Do it; without it only the plan is shown.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only show the plan, even with --yes.")] = False,
    as_json: AsJson = False,
) -> None:
    """Erase what the database holds of one entity. Shows the plan; --yes does it, and nothing brings it back.

    Headers and bodies go, the entity's id, errors and calls in the log, and rejected requests and commands that name it. A
    pseudonym stays, so that order, deduplication and `relay verify` still hold. All its deliveries must have ended.

    Delete the person at the source and downstream first: later events of the same entity are stored as new ones.

    Examples:
      inbox erase --source trivore --entity USER/IDNUMBER1234
      inbox erase --source trivore --entity USER/IDNUMBER1234 --reason "request 2026-17" --yes
      inbox erase --source trivore --entity USER/IDNUMBER1234 --dry-run --json
    """
    from inbox.db.erasure import ErasureOrder, ErasureSubject
    from inbox.db.reads import has_source
    from inbox.loader.load import read_config

    entity_type, entity_id = parse_entity(entity)
    subject = ErasureSubject(source, entity_type or "", entity_id or "")
    if yes and not dry_run and not says_why(reason):
        fail("say why with --reason: it is kept in the log, so don't name the person in it")
    if reason and subject.is_named_in(reason):
        fail("the reason names the entity, and it is kept for good: say why without the id")
    with exit_on_error():
        config = read_config()
        with open_engine(config) as database:
            require_known("source", source, config.sources, stored=lambda name: has_source(database, name))
            planned = _plan(database, subject)
            if not yes or dry_run or planned.is_empty or planned.is_held_up:
                _show_plan(planned, reason, as_json=as_json, is_dry=dry_run)
                if planned.is_empty or planned.is_held_up:
                    raise typer.Exit(FINDING)
                return
            done = _do(database, ErasureOrder(subject, login_name(), reason or ""), planned)
    _report(done, planned, as_json=as_json)


def _plan(database: Engine, subject: ErasureSubject) -> ErasurePlan:
    from inbox.db.erasure import plan

    with bar(SpinnerColumn(), Doing()) as progress:
        task = progress.add_task("counting", total=None)
        return plan(
            database,
            subject,
            searching=lambda number: progress.update(task, description=f"searching rejected request {number}"),
        )


def _say_command(*words: str) -> None:
    """Print a command on a line of its own, which is never wrapped, so that it can be copied."""
    put(Text(f"  {visible(shlex.join(words))}"), on=console(stderr=True))


def _show_plan(planned: ErasurePlan, reason: str | None, *, as_json: bool, is_dry: bool) -> None:
    if as_json:
        put_json(as_document({**msgspec.to_builtins(planned), "warning": planned.warning}))
    else:
        for line in _lines(planned):
            answer(line)
    subject = planned.subject
    named = ("--source", subject.source, "--entity", f"{subject.entity_type}/{subject.entity_id}")
    if planned.open:
        first = planned.open[0]
        say(
            f"not erased: its deliveries have to end first, such as seq {first.seq} on route {first.route}, which is"
            f" {first.state}. To end them:"
        )
        _say_command("relay", "cancel", *named, "--reason", "…", "--yes")
    elif planned.open_commands:
        numbers = ", ".join(map(str, planned.open_commands))
        say(f"not erased: commands that name it are still at work ({numbers}); ask again when they have ended")
    elif planned.is_empty:
        say("nothing to erase. Type and id are compared letter by letter. To list some:")
        _say_command("inbox", "list", "--source", subject.source, "--entity", subject.entity_type)
    elif not is_dry:
        say(f"{'' if says_why(reason) else '--reason … '}--yes erases it; nothing brings it back")


def _lines(planned: ErasurePlan) -> list[str]:
    """Return the plan in lines, each with its consequence."""
    subject = planned.subject
    lines = [
        f"{subject.entity_type}/{subject.entity_id} of {subject.source}: {counted(planned.events, 'event')}",
    ]
    if planned.events:
        lines += [
            f"  {counted(planned.payloads, 'payload')} ({byte_count(planned.payload_bytes)}): no replay is possible any more",
            f"  {counted(planned.facts, 'fact')}: calls, URLs, errors and reasons go, states and times stay",
            f"  {counted(planned.duplicates, 'row')} of duplicate requests: bodies go, the count stays",
            f"  {counted(planned.lanes, 'lane')}: the next event of the entity begins a new one",
        ]
    if planned.pauses:
        lines.append("  the entity is paused: it no longer is, so that later events are delivered")
    lines += [
        f"  {counted(number, 'row')} of {table} {'name' if number > 1 else 'names'} it: {CONSEQUENCES.get(table, 'its texts go')}"
        for table, number in sorted(planned.naming.items())
    ]
    if planned.erased_before:
        lines.append(f"  {counted(planned.erased_before, 'event')} of it erased before")
    if planned.warning:
        lines.append(f"  {planned.warning}")
    return lines


CONSEQUENCES = {"rejected_request": "headers, body and address go, and it can't be readmitted"}


def _do(database: Engine, order: ErasureOrder, planned: ErasurePlan) -> ErasureResult:
    """Erase with a bar. After an interrupt the same command goes on with the rest."""
    from sqlalchemy.exc import DBAPIError

    from inbox.db.erasure import ask, carry_out, stop

    number = ask(database, order)
    erased = 0
    try:
        with bar(Doing(), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()) as progress:
            task = progress.add_task("erasing events", total=planned.events)

            def heard(done: StepDone) -> None:
                nonlocal erased
                erased += done.erased
                progress.update(task, completed=erased)
                if not done.erased:
                    progress.update(task, description="searching other tables")

            return carry_out(database, order, number, heard)
    except KeyboardInterrupt:
        stop(database, number)
        say(f"stopped after {erased} of {counted(planned.events, 'event')}; the same command goes on with the rest")
        raise typer.Exit(FINDING) from None
    except DBAPIError:
        say(stays_open(number))
        raise


def _report(done: ErasureResult, planned: ErasurePlan, *, as_json: bool) -> None:
    from inbox.db.erasure import answer_of

    if as_json:
        put_json(as_document({**msgspec.to_builtins(done), "answer": answer_of(done.open)}))
    else:
        others = sum(planned.naming.values())
        answer(
            f"erased {counted(done.erased, 'event')}, and {counted(others, 'row')} that named it (command {done.command})"
        )
    if done.is_done:
        return
    say(f"not all of it: {answer_of(done.open)}" if done.open else "stopped by somebody; the same command goes on")
    raise typer.Exit(FINDING)
