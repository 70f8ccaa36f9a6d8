"""Commands of operators, made from the table of operations: a plan, its agreement, and a command that is followed to its end."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
import typer
from rich.progress import BarColumn, MofNCompleteColumn, SpinnerColumn, TimeRemainingColumn
from rich.text import Text

from inbox.clock import SystemClock
from inbox.errors import UnusableCommand
from inbox.events.commands import MOST_SEQS
from inbox.observe.visible import visible_text
from relay.cli import options
from relay.cli.command_line import as_command
from relay.cli.options import login_name, open_database, option, parse_entity
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
from relay.operations.table import OPERATIONS, Operation, parse
from relay.words import counted, gate_holds, gate_state, shown_state, stays_open

if TYPE_CHECKING:
    from inbox.config.model import Config
    from inbox.db.reads import Row
    from relay.store.database import Database
    from relay.store.operator.commands import Command
    from relay.store.operator.plan import Plan

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
REQUEST_COLUMNS = (Column("id", "number"), Column("source"), Column("cause"), Column("becomes", last=True))
GATE_COLUMNS = (
    Column("kind"),
    Column("name"),
    Column("held", "state"),
    Column("why", last=True),
    Column("paused_at", "time", "paused"),
    Column("breaker_until", "time", "next probe"),
)
_FORM = Format(has_wide=False)
_SAMPLE = 5
_MOST_LISTED = 10_000
"""Rows that the JSON of a plan lists; its count is exact."""
_LOOK_AGAIN_SECONDS = 0.5
_LONGEST_REST_SECONDS = 1.0

EXAMPLES: Mapping[str, str] = {
    "replay": """
    Without events, --entity or --backfill, only dead letters are replayed. Exits with 1 when there is nothing to replay.

    Examples:
      relay replay --cause exhausted --reason "CRM is back"
      relay replay --destination crm --status 503 --since 2d --reason "CRM is back"
      relay replay --seq 42 --reason "mapping fixed" --yes
      relay replay 42 43 57 --route to-crm --reason "mapping fixed" --yes
      relay replay --route crm --backfill --since 2026-01-01 --reason "CRM was restored from a backup"
    """,
    "retry": """
    Exits with 1 when nothing waits for a later attempt.

    Examples:
      relay retry --destination crm --reason "CRM is back"
      relay retry --cause server_error --since 1h --reason "CRM is back" --yes
      relay retry --seq 42 --reason "account fixed" --yes
      relay retry --all --reason "the network is back" --yes
    """,
    "cancel": """
    Exits with 1 when there is nothing to cancel.

    Examples:
      relay cancel --seq 42 --reason "a test account"
      relay cancel --route crm --state dead --reason "the CRM has them from a backup" --yes
      relay cancel --route old-crm --reason "switched off" --yes
    """,
    "unblock": """
    Exits with 1 when nothing is blocked.

    Examples:
      relay unblock --entity USER/IDNUMBER1234 --reason "fixed by hand"
      relay unblock --route orders --reason "agreed with shipping" --yes
    """,
    "pause": """
    Without a choice, lists what is held back.

    Examples:
      relay pause
      relay pause --destination crm --reason "maintenance until 14:00" --yes
      relay pause --source trivore --entity USER/IDNUMBER1234 --reason "under investigation" --yes
    """,
    "resume": """
    A destination that is retired goes on, too. With --command, a command that was stopped does.

    Examples:
      relay resume --destination crm
      relay resume --destination crm --reason "CRM is back" --yes
      relay resume --command 7 --reason "the night is over" --yes
    """,
    "erase": """
    Headers and bodies go, the entity's id, errors and calls in the log, and rejected requests and commands that name it. A
    pseudonym stays, so that order, deduplication and `relay verify` still hold. All its deliveries must have ended.

    Delete the person at the source and downstream first: later events of the same entity are stored as new ones.

    Examples:
      inbox erase --source trivore --entity USER/IDNUMBER1234
      inbox erase --source trivore --entity USER/IDNUMBER1234 --reason "request 2026-17" --yes
    """,
    "prune": """
    The plan looks at the first 10,000 rows of each kind. Exits with 1 when a row could not be deleted.

    Examples:
      inbox prune
      inbox prune --kind payloads --kind rejected --reason "the disk is full" --yes
    """,
    "readmit": """
    Only requests of authenticated senders were kept whole, and only those can be readmitted. Exits with 1 when some are still
    rejected, or when there is none to readmit.

    Examples:
      inbox readmit --source trivore --reason "dedup names the right fields now"
      inbox readmit --cause invalid_event --since 2026-01-01 --reason "the preset is fixed" --yes
      inbox readmit --id 7 --reason "tried by hand" --yes --json
    """,
}
"""The end of the help text of each; it begins with the consequences."""


OPTIONS: Mapping[str, Any] = {
    "seqs": Annotated[
        list[int] | None,
        typer.Argument(metavar="SEQ", help=f"These events, at most {MOST_SEQS}.", show_default=False, **options.NUMBER),
    ],
    "reason": options.Reason,
    "id": option(int, "--id", text="This rejected request.", **options.NUMBER),
    "kinds": Annotated[
        list[str] | None,
        typer.Option("--kind", metavar="KIND", help="Only this kind, a key of \\[retention]; may be given repeatedly."),
    ],
    "route": options.OfRoute,
    "seq": option(int, "--seq", text="This event.", **options.NUMBER),
    "source": options.OfSource,
    "entity_id": options.ThisEntity,
    "destination": options.OfDestination,
    "api": option(str, "--api", text="Only of the routes that ask this api.", names="apis"),
    "event_type": options.OfEventType,
    "state": option(str, "--state", text="Only in this state, such as dead, blocked or retrying.", show_default=False),
    "cause": option(str, "--cause", text="Only of this cause, such as exhausted or mapping."),
    "status": options.OfStatus,
    "error": options.OfError,
    "since": options.Since,
    "until": options.Until,
    "force": option(bool, "--force", text="Even where a later event was delivered, and this would undo it."),
    "backfill": option(
        bool, "--backfill", text="Of --route: also what was delivered, and what it would take now and never took."
    ),
    "everything": option(bool, "--all", text="All of them; needed without any filter."),
    "yes": options.Yes,
    "as_json": options.AsJson,
}
"""Every option in its place. Those that are fields of what operations ask for belong to the ones that ask for them."""
_OF_ALL = {"reason", "yes", "as_json"}
_GATES: Mapping[str, Any] = {
    "route": option(str, "--route", text="This route.", names="routes"),
    "destination": option(str, "--destination", text="All routes to this destination.", names="destinations"),
    "api": option(str, "--api", text="All routes that ask this api.", names="apis"),
    "source": option(str, "--source", text="All routes of this source.", names="sources"),
    "entity_id": option(str, "--entity", text="This entity of --source, as TYPE/ID.", metavar="TYPE/ID"),
}
_INSTEAD: Mapping[str, Mapping[str, Any]] = {
    "retry": {
        "cause": option(
            str, "--cause", text="Only where the last attempt failed with this error class, such as server_error."
        )
    },
    "pause": _GATES,
    "resume": {
        **_GATES,
        "command": option(int, "--command", text="A command that was stopped or interrupted.", **options.NUMBER),
    },
    "readmit": {
        "source": options.RejectedSource,
        "cause": options.RejectedCause,
        "status": options.RejectedStatus,
        "error": options.RejectedError,
    },
}
"""Options of one command, in place of those or besides."""


def command_of(kind: str) -> Callable[..., None]:
    """Make the command of an operation."""
    operation = OPERATIONS[kind]

    def command(**given: Any) -> None:  # noqa: ANN401  # as the options say
        reason, yes, as_json = (given.pop(name) for name in ("reason", "yes", "as_json"))
        number = given.pop("command", None)
        if (seqs := given.get("seqs")) and len(seqs) > MOST_SEQS:
            fail(f"name at most {MOST_SEQS} events: {len(seqs)} are given")
        if "entity_id" in given:
            given["entity_type"], given["entity_id"] = parse_entity(given["entity_id"])
        given = {name: value for name, value in given.items() if value not in (None, False, [], ())}
        if kind == "pause" and not given:
            _list_gates(as_json=as_json)
            return
        if number is not None:
            if given:
                fail("--command resumes that command alone: leave out the gate")
            _continue(number, reason, yes=yes)
            return
        try:
            asked = parse(kind, given)
        except UnusableCommand as error:
            fail(str(error))
        carry_out(operation, asked, reason, yes=yes, as_json=as_json)

    command.__name__, command.__doc__ = kind, _help(operation)
    return as_command(command, _options(operation))


def _help(operation: Operation) -> str:
    consequences = " ".join(operation.consequences)
    return f"{operation.title}. Shows the plan; --yes does it.\n\n    {consequences}\n{EXAMPLES[operation.kind]}"


def _options(operation: Operation) -> Mapping[str, Any]:
    asked = {name: each for name, each in OPTIONS.items() if name in _OF_ALL or name in operation.keys}
    return {**asked, **_INSTEAD.get(operation.kind, {})}


def carry_out(operation: Operation, asked: msgspec.Struct, reason: str | None, *, yes: bool, as_json: bool) -> None:
    """Show the plan; with `yes` carry it out, with a progress bar. Exits with 1 when it is about nothing."""
    from relay.store.operator import commands
    from relay.store.operator.plan import reason_mistake

    mistake = reason_mistake(asked, reason)
    if yes and mistake is not None:
        fail(f"--reason: {mistake}")
    with exit_on_error():
        config, database = open_database()
        planned = _planned(database, config, operation, asked, _MOST_LISTED if as_json else _SAMPLE)
        if not as_json:
            _show(operation, planned)
        number = done = None
        if yes and reason and planned.obstacle is None:
            who, count = login_name(), planned.count
            number = commands.ask(database, operation.kind, asked, who=who, why=reason, planned=count)
            done = follow(database, config, number, operation, count)
    if as_json:
        put_json(as_document(_document(operation, planned, number, done)))
    elif not yes and planned.obstacle is None:
        _say_how(operation, planned, has_reason=mistake is None)
    if (planned.obstacle is not None and planned.count is not None) or (done is not None and done.failed):
        raise typer.Exit(FINDING)


def follow(database: Database, config: Config, number: int, operation: Operation, total: int | None) -> Command:
    """Work on a command until it has ended, with a progress bar. An interrupted one can be resumed."""
    from sqlalchemy.exc import DBAPIError

    from relay.delivery.policy import policies
    from relay.store.operator import commands, execution
    from relay.store.work import Work

    columns, doing = (Doing(), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()), ""
    work = Work(database, config, policies(config))
    try:
        with bar(*columns) as progress:
            task = progress.add_task(operation.title, total=total)
            while not (now := _progress(database, number)).has_ended:
                doing = now.answer or operation.title
                progress.update(task, completed=now.affected + now.failed, description=doing)
                began = time.monotonic()
                changed = execution.work_on(work, number)
                if not changed and now.answer:  # it waits
                    time.sleep(_LOOK_AGAIN_SECONDS)
                elif operation.kind in {"erase", "prune"}:  # so that others have the database half of the time
                    time.sleep(min(time.monotonic() - began, _LONGEST_REST_SECONDS))
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
    say(str(now.answer))
    if now.error is not None:
        say(f"the last that could not be: {now.error}")
    return now


def _continue(number: int, reason: str | None, *, yes: bool) -> None:
    """Let a stopped command go on, and follow it."""
    from inbox.db import reads
    from relay.store.operator import commands

    with exit_on_error():
        config, database = open_database()
        row = reads.row_of(database.engine, "relay_command", number)
        if row is None:
            fail(f"there is no command {number}")
        if not yes:
            say(f"command {number} is a {row['kind']} that is {row['state']}; --reason '…' --yes lets it go on")
            return
        if reason is None:
            fail("--reason: say why, in letters or digits: the reason is kept in the log")
        try:
            commands.turn(database, "continue", number, who=login_name(), why=reason)
        except UnusableCommand as error:
            fail(str(error))
        follow(database, config, number, OPERATIONS[row["kind"]], row["matched"])


def _planned(database: Database, config: Config, operation: Operation, asked: msgspec.Struct, listed: int) -> Plan:
    from relay.store.operator.plan import Bound, plan

    with bar(SpinnerColumn(), Doing("planning "), MofNCompleteColumn()) as progress:
        task = progress.add_task("", total=None)

        def seen(number: int) -> None:
            progress.update(task, completed=number)

        try:
            return plan(database, config, operation.kind, asked, Bound(listed=listed), seen=seen)
        except UnusableCommand as error:
            fail(str(error))


def _show(operation: Operation, planned: Plan) -> None:
    from relay.store.operator.plan import why_left_out

    rows = [_shown_delivery(row) for row in planned.deliveries] or [
        {**row, "becomes": becomes(row)} for row in planned.requests
    ]
    if planned.count and planned.count > len(rows) and planned.groups:
        show([msgspec.structs.asdict(group) for group in planned.groups], GROUP_COLUMNS, _FORM, empty="")
        answer("")
    if rows:
        show(rows, COLUMNS if planned.deliveries else REQUEST_COLUMNS, _FORM, empty="")
    for each in planned.figures:
        answer(f"{each.name}: {each.count:,}{each.note and f' ({each.note})'}")
    if operation.is_dangerous and planned.obstacle is None:
        for sentence in operation.consequences:
            say(sentence)
    if planned.obstacle is not None:
        say(planned.obstacle)
    for why, number in planned.left_out.items():
        say(f"{number} left out: {why_left_out(why)}")
    for sentence in (*planned.warnings, *planned.instead):
        put(Text(visible_text(sentence)), on=console(stderr=True))  # never wrapped, so that commands can be copied


def _shown_delivery(row: Row) -> Row:
    return {**row, "state": shown_state(row, SystemClock().now())}


def _say_how(operation: Operation, planned: Plan, *, has_reason: bool) -> None:
    how = "--yes does it" if has_reason else "--reason '…' --yes does it"
    if planned.count is None:
        say(how)
        return
    shown = len(planned.deliveries) or len(planned.requests)
    more = f", {shown} of them shown" if 0 < shown < planned.count else ""
    say(f"{counted(planned.count, operation.thing)} would be {operation.done}{more}; {how}")


def becomes(row: Row) -> str:
    """Describe the events that a rejected request would become, or why it is still rejected."""
    if row["rejected"] is not None:
        return f"still rejected: {row['rejected']}"
    first, more = row["events"][0], len(row["events"]) - 1
    entity = "" if first["entity_type"] is None else f" {first['entity_type']}/{first['entity_id']}"
    routes = ", ".join(first["routes"]) or "no route"
    return f"{first['event_type']}{entity} → {routes}" + (f", and {more} more" if more else "")


def _document(operation: Operation, planned: Plan, number: int | None, done: Command | None) -> dict[str, Any]:
    return {
        "command": operation.kind,
        "count": planned.count,
        **planned.sample,
        "left_out": [{"why": why, "count": number} for why, number in planned.left_out.items()],
        "warnings": planned.warnings,
        "obstacle": planned.obstacle,
        "number": number,
        "state": None if done is None else done.state,
        "affected": None if done is None else done.affected,
        "failed": None if done is None else done.failed,
        "answer": None if done is None else done.answer,
        "error": None if done is None else done.error,
    }


def _list_gates(*, as_json: bool) -> None:
    from relay.store import gates

    with exit_on_error():
        _, database = open_database()
        held, now = gates.held_back(database), SystemClock().now()
    if as_json:
        put_json(as_document(held))
        return
    rows = [{**row, "held": gate_state(row), "why": "; ".join(gate_holds(row, now))} for row in held]
    show(rows, GATE_COLUMNS, _FORM, empty="nothing is held back")


def _progress(database: Database, number: int) -> Command:
    from relay.store.operator import commands

    found = commands.progress(database, number)
    if found is None:
        fail(f"there is no command {number}")
    return found


OF_RELAY = tuple(map(command_of, ("replay", "retry", "cancel", "unblock", "pause", "resume")))
OF_INBOX = tuple(map(command_of, ("readmit", "erase", "prune")))
