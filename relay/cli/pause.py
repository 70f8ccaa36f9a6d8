"""`relay pause` and `relay resume`: hold deliveries back at a gate, and release them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import msgspec
import typer

from inbox.errors import UnusableCommand
from inbox.events.commands import says_why
from inbox.events.timestamps import rfc3339
from relay.cli.carrying_out import command_text, follow
from relay.cli.options import (
    MOST_NUMBER,
    AsJson,
    AsNdjson,
    Columns,
    OfSource,
    ThisEntity,
    Wide,
    login_name,
    open_database,
    parse_entity,
)
from relay.cli.tables import Column, format_of, show
from relay.cli.terminal import exit_on_error, fail, say
from relay.words import counted

if TYPE_CHECKING:
    from inbox.db.reads import Row
    from relay.delivery.gates import Gate
    from relay.store.operator.commands import GateAct

OfDestination = Annotated[str | None, typer.Option("--destination", help="All routes to this destination.")]
OfApi = Annotated[str | None, typer.Option("--api", help="All routes that ask this api.")]

COLUMNS = (
    Column("kind"),
    Column("name"),
    Column("held", "state"),
    Column("why", last=True),
    Column("paused_at", "time", "paused"),
    Column("breaker_until", "time", "next probe"),
    Column("paused_by", on_request=True),
    Column("pause_reason", on_request=True),
    Column("breaker", "state", on_request=True),
    Column("breaker_cause", on_request=True),
    Column("held_until", "time", on_request=True),
    Column("hold_reason", on_request=True),
    Column("open_count", "number", "openings", on_request=True),
    Column("failures", "number", on_request=True),
    Column("calls", "number", on_request=True),
)


_BY_COMMAND_LINE = "resumed by command line"
ThisRoute = Annotated[str | None, typer.Option("--route", help="This route.")]


def pause(
    *,
    reason: Annotated[str | None, typer.Option(help="Why; it is listed beside the pause.")] = None,
    route: ThisRoute = None,
    destination: OfDestination = None,
    api: OfApi = None,
    source: OfSource = None,
    entity: ThisEntity = None,
    wide: Wide = False,
    columns: Columns = None,
    as_json: AsJson = False,
    as_ndjson: AsNdjson = False,
) -> None:
    """Hold back deliveries; without a choice, list what is held back.

    Webhooks are still accepted, and wait. Running calls finish.

    Examples:
      relay pause
      relay pause --destination crm --reason "maintenance until 14:00"
      relay pause --source trivore --entity USER/IDNUMBER1234 --reason "under investigation"
    """
    form = format_of(COLUMNS, as_json=as_json, as_ndjson=as_ndjson, wide=wide, names=columns)
    gate = _gate(route, destination, api, source, entity)
    if gate is None:
        from relay.store import gates

        with exit_on_error():
            _, database = open_database()
            held = gates.held_back(database)
            rows = [{**row, **_held(row)} for row in held] if form.is_table else held
            show(rows, COLUMNS, form, empty="nothing is held back")
        return
    if reason is None or not says_why(reason):
        fail("say why with --reason: it is listed beside the pause")
    _request("pause", gate, reason)


def resume(
    *,
    reason: Annotated[str, typer.Option(help="Why; it is kept in the log.")] = "",
    route: ThisRoute = None,
    destination: OfDestination = None,
    api: OfApi = None,
    source: OfSource = None,
    entity: ThisEntity = None,
    command: Annotated[
        int | None,
        typer.Option(min=0, max=MOST_NUMBER, help="A replay, retry, cancel or unblock that was interrupted."),
    ] = None,
    retry: Annotated[
        bool, typer.Option("--retry", help="Also make attempts behind it due at once, as `relay retry` does.")
    ] = False,
) -> None:
    """End a pause, and close a circuit breaker, also that of a retired destination.

    Attempts that failed before wait until they are due; the answer says how many, and how to retry them now.

    Examples:
      relay resume --destination crm
      relay resume --destination crm --retry --reason "CRM is back"
      relay resume --command 7
    """
    gate = _gate(route, destination, api, source, entity)
    if reason and not says_why(reason):
        fail("say why with --reason, or leave it out: it is kept in the log")
    if command is not None:
        if retry or gate is not None:
            fail("--command resumes that command alone: leave out the gate and --retry")
        from relay.store.operator import commands

        with exit_on_error():
            config, database = open_database()
            try:
                commands.turn(database, "continue", command, who=login_name(), why=reason or _BY_COMMAND_LINE)
            except UnusableCommand as error:
                fail(str(error))
            follow(database, config, command, "continuing", None, done="changed in all")
        return
    if gate is None:
        fail("name what to resume: --route, --destination, --api, --source, --entity or --command")
    _request("resume", gate, reason or _BY_COMMAND_LINE)
    _retry_behind(gate, reason, at_once=retry)


def _retry_behind(gate: Gate, reason: str, *, at_once: bool) -> None:
    """Make the attempts that wait behind a gate due, or offer it."""
    from relay.operations.asks import Selection
    from relay.store.operator import commands, selected
    from relay.store.operator.selection import Choice

    chosen = Selection(**msgspec.structs.asdict(gate))
    with exit_on_error():
        config, database = open_database()
        with database.read() as transaction:
            number, until = selected.wait_until(transaction, Choice("retry", chosen, config))
        if at_once and number:
            why = reason or f"{' '.join(gate.key)} was resumed"
            asked = commands.ask(database, "retry", chosen, who=login_name(), why=why)
            follow(database, config, asked, "retrying", number, done="due now")
        elif number and until is not None:
            waits = "waits" if number == 1 else "wait"
            say(
                f"{counted(number, 'attempt')} behind it still {waits}, until {rfc3339(until, 'seconds')} at the latest"
            )
            say(f"due at once with: {command_text('retry', chosen)}")


def _held(row: Row) -> Row:
    """Return the fields that only the table shows: what holds deliveries back, and why."""
    breaker = f"{row['breaker']}: {row['breaker_cause']}" if row["breaker"] != "closed" else ""
    if row["paused_at"] is None and not breaker:
        return {"held": "held", "why": f"until {rfc3339(row['held_until'], 'seconds')}: {row['hold_reason']}"}
    if row["paused_at"] is None:
        return {"held": row["breaker"], "why": row["breaker_cause"]}
    why = f"{row['paused_by']}: {row['pause_reason']}"
    return {"held": "paused", "why": f"{why}; breaker {breaker}" if breaker else why}


def described(row: Row) -> str:
    """Describe in one line what holds deliveries back at a gate."""
    name = f"{row['kind']} {row['name']}"
    if row["paused_at"] is not None:
        return f"{name} is paused by {row['paused_by']}: {row['pause_reason']}"
    if row["breaker"] == "closed":
        return f"{name} is held until {rfc3339(row['held_until'], 'seconds')}: {row['hold_reason']}"
    until = f" until {rfc3339(row['breaker_until'], 'seconds')}" if row["breaker_until"] else ""
    return f"{name}: breaker {row['breaker']}{until}: {row['breaker_cause']}"


def _gate(
    route: str | None, destination: str | None, api: str | None, source: str | None, entity: str | None
) -> Gate | None:
    from relay.delivery.gates import Gate

    entity_type, entity_id = parse_entity(entity)
    gate = Gate(
        route=route, destination=destination, api=api, source=source, entity_type=entity_type, entity_id=entity_id
    )
    return None if gate == Gate() else gate


def _request(kind: GateAct, gate: Gate, reason: str) -> None:
    from relay.delivery.policy import policies
    from relay.store import gates
    from relay.store.operator import commands, execution

    with exit_on_error():
        config, database = open_database()
        if mistake := gates.mistake_in(database, gate, kind, config):
            fail(mistake)
        number = commands.ask(database, kind, gate, who=login_name(), why=reason)
        execution.work_on(database, config, policies(config), number)
        progress = commands.progress(database, number)
    say(f"{' '.join(gate.key)}: {progress.answer if progress else ''}")
