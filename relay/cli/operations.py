"""Commands of operators, made from the table of operations: each shows a plan, and with --yes runs a command to its end."""

from __future__ import annotations

import inspect
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Annotated, Any, cast

import msgspec
import typer
from rich.text import Text

from inbox.errors import UnusableCommand
from inbox.events.states import MOST_SEQS
from inbox.observe.visible import visible_text
from relay.cli import edits, options
from relay.cli.edits import Editing
from relay.cli.options import as_command, login_name, open_database, option, parse_entity, require_reason
from relay.cli.output import FINDING, answer, bar, fail, put, put_json, say, show
from relay.operations.asks import OneCommand
from relay.operations.table import OPERATIONS, Operation, parse
from relay.words import format_count

if TYPE_CHECKING:
    from inbox.config.model import Config
    from inbox.db.reads import Row
    from relay.store.database import Database
    from relay.store.operator.commands import Command, CommandAct
    from relay.store.operator.plan import Plan

_SAMPLE = 5
_MOST_LISTED = 10_000
"""Maximum number of rows in the JSON of a plan; the plan's count is exact."""
_LOOK_AGAIN_SECONDS = 0.5
_LONGEST_REST_SECONDS = 1.0
_INSTEAD: Mapping[str, Any] = {
    "seqs": Annotated[
        list[int] | None,
        typer.Argument(
            metavar="SEQ", help=f"Numbers of the events, at most {MOST_SEQS}.", show_default=False, **options.NUMBER
        ),
    ],
    "kinds": Annotated[
        list[str] | None,
        typer.Option("--kind", metavar="KIND", help="Only rows of this kind, a key of [retention]; repeatable."),
    ],
    "everything": option(bool, "all", "Select everything; required when no other condition is given."),
    "since": options.Since,
    "until": options.Until,
}
"""Options that differ from the selection's member of the same name."""
_OF_PROGRAMS = {"entity_type", "deliveries", "error_sha256", "until_fact", "edited_body"}
"""Members without an option."""


def _operation(examples: Callable[[], None]) -> Callable[..., None]:
    """Make the command of an operation. It is named like the function, whose docstring ends the help text."""
    kind = examples.__name__.rstrip("_")
    operation = OPERATIONS[kind]

    def command(**given: Any) -> None:  # noqa: ANN401  # typed by the options
        reason, yes, as_json = (given.pop(name) for name in ("reason", "yes", "as_json"))
        edit = Editing.parse(given)
        if (seqs := given.get("seqs")) and len(seqs) > MOST_SEQS:
            fail(f"name at most {MOST_SEQS} events: {len(seqs)} are given")
        if "entity" in given:
            given["entity_type"], given["entity_id"] = parse_entity(given.pop("entity"))
        given = {name: value for name, value in given.items() if value not in (None, False, [], ())}
        carry_out(operation, parse(kind, given), reason, yes=yes, as_json=as_json, edit=edit)

    consequences = " ".join(operation.consequences)
    command.__name__ = kind
    shown = inspect.cleandoc(examples.__doc__ or "")  # Python 3.13 has removed its indentation already
    command.__doc__ = f"{operation.title}. Shows the plan; --yes executes it.\n\n{consequences}\n\n{shown}"
    members = ["entity" if name == "entity_id" else name for name in operation.keys if name not in _OF_PROGRAMS]
    given = {
        name: _INSTEAD[name] if name in _INSTEAD else options.conditions(operation.asks, name)[name] for name in members
    }
    given |= edits.OPTIONS if kind == "replay" else {}
    return as_command(command, {**given, "reason": options.Reason, "yes": options.Yes, "as_json": options.AsJson})


@_operation
def replay() -> None:
    """Without events, --entity or --backfill, replays dead letters only. Exits with 1 when there is nothing to replay.

    With --edit or --body-file, delivers an edited body of one event. The stored event doesn't change.

    Examples:
      relay replay --cause exhausted --reason "CRM is back"
      relay replay --destination crm --status 503 --since 2d --reason "CRM is back"
      relay replay --seq 42 --reason "mapping fixed" --yes
      relay replay --seq 42 --edit
      relay replay --seq 42 --body-file fixed.json --reason "wrong currency" --yes
      relay replay 42 43 57 --route to-crm --reason "mapping fixed" --yes
      relay replay --route crm --backfill --since 2026-01-01 --reason "CRM was restored from a backup"
    """


@_operation
def retry() -> None:
    """Exits with 1 when no delivery waits for a later attempt.

    Examples:
      relay retry --destination crm --reason "CRM is back"
      relay retry --cause server_error --since 1h --reason "CRM is back" --yes
      relay retry --seq 42 --reason "account fixed" --yes
      relay retry --all --reason "the network is back" --yes
    """


@_operation
def cancel() -> None:
    """Exits with 1 when there is nothing to cancel.

    Examples:
      relay cancel --seq 42 --reason "a test account"
      relay cancel --route crm --state dead --reason "the CRM has them from a backup" --yes
      relay cancel --route old-crm --reason "switched off" --yes
    """


@_operation
def unblock() -> None:
    """Exits with 1 when nothing is blocked.

    Examples:
      relay unblock --entity USER/IDNUMBER1234 --reason "fixed by hand"
      relay unblock --route orders --reason "agreed with shipping" --yes
    """


@_operation
def pause() -> None:
    """`relay status` lists the gates that hold deliveries back.

    Examples:
      relay pause --destination crm --reason "maintenance until 14:00" --yes
      relay pause --source trivore --entity USER/IDNUMBER1234 --reason "under investigation" --yes
    """


@_operation
def resume() -> None:
    """Also reopens a retired destination.

    Examples:
      relay resume --destination crm
      relay resume --destination crm --reason "CRM is back" --yes
    """


@_operation
def stop() -> None:
    """The command stops after its current step.

    Examples:
      relay stop --command 7 --reason "it keeps the database busy" --yes
    """


@_operation
def continue_() -> None:
    """This process works on the command until it has ended, alongside the relays.

    Examples:
      relay continue --command 7 --reason "the night is over" --yes
    """


@_operation
def erase() -> None:
    """Erases headers and bodies, the entity's id, and the errors and calls in the log.

    A pseudonym replaces the id, to keep order, deduplication and `relay verify` intact. All deliveries must have ended.

    Delete the person at the source and downstream first: later events about the entity are stored as new ones.

    Examples:
      inbox erase --source trivore --entity USER/IDNUMBER1234
      inbox erase --source trivore --entity USER/IDNUMBER1234 --reason "request 2026-17" --yes
    """


@_operation
def prune() -> None:
    """The plan examines the first 10,000 rows of each kind.

    Exits with 1 when a row could not be deleted.

    Examples:
      inbox prune
      inbox prune --kind payloads --kind rejected --reason "the disk is full" --yes
    """


@_operation
def readmit() -> None:
    """Only requests of authenticated senders are kept whole and can be readmitted.

    Exits with 1 when some are still rejected, or when there are none to readmit.

    Examples:
      inbox readmit --source trivore --reason "dedup names the right fields now"
      inbox readmit --cause invalid_event --since 2026-01-01 --reason "the preset is fixed" --yes
      inbox readmit --id 7 --reason "tried by hand" --yes --json
    """


OF_RELAY = (replay, retry, cancel, unblock, pause, resume, stop, continue_)
OF_INBOX = (readmit, erase, prune)


def carry_out(
    operation: Operation,
    asked: msgspec.Struct,
    reason: str | None,
    *,
    yes: bool,
    as_json: bool,
    edit: Editing | None = None,
) -> None:
    """Show the plan, and with `yes` execute it with a progress bar. Exits with 1 when nothing matches."""
    from relay.store.operator.plan import Bound, find_reason_mistake, plan

    if yes:
        require_reason(reason, asked)
    config, database = open_database()
    with bar("planning") as seen:
        listed = Bound(listed=_MOST_LISTED if as_json else _SAMPLE)
        planned = plan(database, config, operation.kind, asked, listed, seen=seen)
    if edit is not None:
        planned = edit.compare(database, config, planned)
    if not as_json:
        _show(planned, with_consequences=not yes)
    if edit is not None and not yes and not as_json:
        reason, yes = edit.confirm(planned, reason)
    number = done = None
    if yes and reason and planned.obstacle is None:
        if edit is not None:
            asked = msgspec.structs.replace(asked, edited_body=edit.store(database))
        number, done = _execute(database, config, operation, asked, reason=reason, planned=planned)
    if as_json:
        put_json(_document(operation, asked, planned, number, done))
    elif not yes and planned.obstacle is None:
        _say_how(operation, planned, has_reason=find_reason_mistake(asked, reason) is None)
    is_about_nothing = planned.obstacle is not None and (planned.count is not None or isinstance(asked, OneCommand))
    is_about_nothing = is_about_nothing and operation.kind != "prune"  # nothing has expired: all is well
    if is_about_nothing or (done is not None and (done.failed or "rejected" in done.skipped)):
        raise typer.Exit(FINDING)


def _execute(
    database: Database,
    config: Config,
    operation: Operation,
    asked: msgspec.Struct,
    *,
    reason: str,
    planned: Plan,
) -> tuple[int, Command]:
    """Run the command to its end. Returns its number, and the command as it then is."""
    from relay.store.operator import commands

    who, kind = login_name(), operation.kind
    if isinstance(asked, OneCommand):
        number = asked.command
        commands.turn(database, cast("CommandAct", kind), number, who=who, why=reason)
    else:
        number = commands.ask(database, kind, asked, who=who, why=reason, planned=planned.count)
    if kind == "stop":
        say(f"command {number} is stopped")
        return number, _progress(database, number)
    return number, follow(database, config, number, operation, planned.count)


def follow(database: Database, config: Config, number: int, operation: Operation, total: int | None) -> Command:
    """Work on a command until it has ended, with a progress bar. An interrupted command can be continued."""
    from sqlalchemy.exc import DBAPIError

    from relay.delivery.policy import policies
    from relay.store.operator import commands, execution
    from relay.store.work import Work

    work = Work(database, config, policies(config))
    try:
        with bar(operation.title, total) as report:
            while not (now := _progress(database, number)).has_ended:
                report(now.affected + now.failed, doing=now.answer or operation.title)
                began = time.monotonic()
                changed = execution.work_on(work, number)
                if not changed and now.answer:  # it waits
                    time.sleep(_LOOK_AGAIN_SECONDS)
                elif now.kind in {"erase", "prune"}:  # leaves the database to others for half of the time
                    time.sleep(min(time.monotonic() - began, _LONGEST_REST_SECONDS))
    except KeyboardInterrupt:
        with suppress(UnusableCommand):  # it has just ended
            commands.turn(database, "stop", number, who=login_name(), why="interrupted at the command line")
        say(f"stopped after {_progress(database, number).affected}; continue with `relay continue --command {number}`")
        raise typer.Exit(FINDING) from None
    except DBAPIError:
        say(f"command {number} stays open, and a relay executes it; stop it with `relay stop --command {number}`")
        raise
    if now.state != "done":
        fail(f"command {number}: {now.answer}")
    say(str(now.answer))
    if now.kind in {"replay", "retry"} and now.affected:
        say(
            f"so far {commands.read_outcome(database, number).says}; `inbox list --command {number}` shows exactly these"
        )
    if now.error is not None:
        say(f"last error: {now.error}")
    return now


def _progress(database: Database, number: int) -> Command:
    from relay.store.operator import commands

    return commands.read_command(database, number) or fail(f"there is no command {number}")


def _show(planned: Plan, *, with_consequences: bool) -> None:
    rows = planned.deliveries
    _show_edit(planned)
    requests = [{**row, "becomes": describe_readmission(row)} for row in planned.requests]
    if planned.count and planned.count > len(rows) + len(requests) and planned.groups:
        groups = [msgspec.structs.asdict(group) for group in planned.groups]
        show(groups, ("count", "route", "state", "cause", "first_due_at", "last_due_at"))
        answer("")
    if rows:
        show(rows, ("seq", "route", "entity", "state", "due_at", "cause", "attempts", "event_type", "error"))
    elif requests:
        show(requests, ("id", "source", "cause", "becomes"))
    for each in planned.figures:
        answer(f"{each.name}: {each.count:,}{each.note and f' ({each.note})'}")
    if with_consequences and planned.obstacle is None:
        for sentence in planned.consequences:
            say(sentence)
    if planned.obstacle is not None:
        say(planned.obstacle)
    for skipped in planned.skipped:
        say(skipped.says)
    for sentence in (*planned.warnings, *planned.instead):
        put(Text(visible_text(sentence)), stderr=True)  # never wrapped, so that commands can be copied


def _show_edit(planned: Plan) -> None:
    if planned.differences:
        show([msgspec.structs.asdict(each) for each in planned.differences], ("field", "before", "after"))
        answer("")


def _say_how(operation: Operation, planned: Plan, *, has_reason: bool) -> None:
    how = "add --yes to do it" if has_reason else "add --reason '…' --yes to do it"
    if planned.count is None:
        say(how)
        return
    shown = len(planned.deliveries) or len(planned.requests)
    more = f", {shown} of them shown" if 0 < shown < planned.count else ""
    say(f"{format_count(planned.count, operation.thing)} would be {operation.done}{more}; {how}")


def describe_readmission(row: Row) -> str:
    """Describe the events that a rejected request would become, or the reason for its rejection."""
    if row["rejected"] is not None:
        return f"still rejected: {row['rejected']}"
    first, more = row["events"][0], len(row["events"]) - 1
    entity = "" if first["entity_type"] is None else f" {first['entity_type']}/{first['entity_id']}"
    routes = ", ".join(first["routes"]) or "no route"
    return f"{first['event_type']}{entity} → {routes}" + (f", and {more} more" if more else "")


def _document(
    operation: Operation, asked: msgspec.Struct, planned: Plan, number: int | None, done: Command | None
) -> dict[str, Any]:
    return {
        "kind": operation.kind,
        "selection": msgspec.to_builtins(asked),
        **planned.document,
        "id": number,
        **{name: getattr(done, name, None) for name in ("state", "affected", "failed", "answer", "error")},
    }
