"""`relay replay`, `relay cancel` and `relay unblock`: commands that change deliveries. Each shows its plan first."""

from __future__ import annotations

import getpass
import time
from datetime import datetime
from typing import TYPE_CHECKING, Annotated

import msgspec
import typer
from rich.progress import BarColumn, MofNCompleteColumn, TimeRemainingColumn

from inbox.cli.options import AsJson, Since, parse_entity
from inbox.cli.terminal import FINDING, Doing, bar, exit_on_error, fail, say, show
from relay.cli.options import OfEntity, OfRoute, OfSource, open_database

if TYPE_CHECKING:
    from inbox.config.model import Config
    from relay.store.database import Database
    from relay.store.operator.commands import Progress
    from relay.store.operator.selection import Act, Selection

Reason = Annotated[str, typer.Option(help="Why; it is kept in the log.")]
OfSeq = Annotated[int | None, typer.Option("--seq", help="This event.")]
OfCause = Annotated[str | None, typer.Option("--cause", help="Dead letters of this cause.")]
Yes = Annotated[bool, typer.Option("--yes", help="Do it; without it only the plan is shown.")]

_SAMPLE = 5
_LOOK_AGAIN_SECONDS = 0.5


def replay(
    *,
    reason: Reason,
    route: OfRoute = None,
    seq: OfSeq = None,
    source: OfSource = None,
    entity: OfEntity = None,
    cause: OfCause = None,
    since: Since = None,
    force: Annotated[
        bool, typer.Option("--force", help="Even where a later event was delivered, and this would undo it.")
    ] = False,
    everything: Annotated[
        bool,
        typer.Option("--all", help="Of --route: also what was delivered, and what it would take now and never took."),
    ] = False,
    yes: Yes = False,
    as_json: AsJson = False,
) -> None:
    """Replay dead or ended deliveries. Shows the plan; --yes does it.

    Without --seq, --entity or --all, only dead letters are replayed.

    Examples:
      relay replay --cause exhausted --reason "CRM is back"
      relay replay --seq 42 --reason "mapping fixed" --yes
      relay replay --route crm --all --since 2026-01-01 --reason "CRM was restored from a backup"
    """
    chosen = _selection(route=route, seq=seq, source=source, entity=entity, cause=cause, since=since)
    chosen = msgspec.structs.replace(chosen, force=force, everything=everything)
    texts = _Texts("would be replayed", "were replayed", "replaying", "nothing to replay")
    _carry_out("replay", texts, chosen, reason, yes=yes, as_json=as_json)


def cancel(
    *,
    reason: Reason,
    route: OfRoute = None,
    seq: OfSeq = None,
    source: OfSource = None,
    entity: OfEntity = None,
    cause: OfCause = None,
    since: Since = None,
    yes: Yes = False,
    as_json: AsJson = False,
) -> None:
    """End deliveries for good, open or dead. Shows the plan; --yes does it.

    Deliveries in flight are left as they are.

    Examples:
      relay cancel --seq 42 --reason "a test account"
      relay cancel --route old-crm --reason "switched off" --yes
    """
    chosen = _selection(route=route, seq=seq, source=source, entity=entity, cause=cause, since=since)
    texts = _Texts("would be cancelled", "were cancelled", "cancelling", "nothing to cancel")
    _carry_out("cancel", texts, chosen, reason, yes=yes, as_json=as_json)


def unblock(
    *,
    reason: Reason,
    route: OfRoute = None,
    seq: OfSeq = None,
    source: OfSource = None,
    entity: OfEntity = None,
    cause: OfCause = None,
    since: Since = None,
    yes: Yes = False,
    as_json: AsJson = False,
) -> None:
    """Let lanes continue past the dead head that blocks them; it stays dead. Shows the plan; --yes does it.

    Examples:
      relay unblock --entity USER/IDNUMBER1234 --reason "fixed by hand"
      relay unblock --route orders --reason "agreed with shipping" --yes
    """
    chosen = _selection(route=route, seq=seq, source=source, entity=entity, cause=cause, since=since)
    texts = _Texts(
        "would no longer block their lanes", "no longer block their lanes", "unblocking", "nothing is blocked"
    )
    _carry_out("unblock", texts, chosen, reason, yes=yes, as_json=as_json)


class _Texts(msgspec.Struct, frozen=True):
    """The texts of a command: its plan, its end, its progress, and that there is nothing to do."""

    planned: str
    done: str
    doing: str
    nothing: str


def _carry_out(act: Act, texts: _Texts, chosen: Selection, reason: str, *, yes: bool, as_json: bool) -> None:
    """Show the plan; with `yes` carry it out, with a progress bar."""
    from relay.store.operator import commands
    from relay.store.operator.selection import Choice, preview

    with exit_on_error():
        config, database = open_database()
        choice = Choice(act, chosen, config)
        if choice.mistake is not None:
            fail(choice.mistake)
        planned = preview(database, choice, None if as_json else _SAMPLE)
    columns = ("seq", "route", "entity_type", "entity_id", "event_type", "state", "attempts")
    show(planned.sample, as_json=as_json, columns=columns, empty=texts.nothing)
    if not planned.count:
        return
    if planned.overtaken:
        say(
            f"{planned.overtaken} of them are older than what was delivered last in their lane: left out without --force"
        )
    if not yes:
        more = f", {_SAMPLE} of them shown" if planned.count > len(planned.sample) else ""
        say(f"{planned.count} deliveries {texts.planned}{more}; --yes does it")
        return
    with exit_on_error():
        number = commands.ask(database, act, chosen, who=getpass.getuser(), why=reason)
        follow(database, config, number, texts.doing, planned.count, done=texts.done)


def follow(database: Database, config: Config, number: int, doing: str, total: int | None, *, done: str) -> None:
    """Work on a command until it has ended, with a progress bar. An interrupted one can be resumed."""
    from relay.delivery.policy import policies
    from relay.store.operator import commands

    columns = (Doing(), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    policies_of = policies(config)
    try:
        with bar(*columns) as progress:
            task = progress.add_task(doing, total=total)
            while not (now := _progress(database, number)).has_ended:
                progress.update(task, completed=now.affected, description=now.answer or doing)
                if (
                    not commands.work_on(database, config, policies_of, number)
                    and _progress(database, number).state == "running"
                ):
                    time.sleep(_LOOK_AGAIN_SECONDS)
    except KeyboardInterrupt:
        commands.stop(database, number)
        say(f"stopped after {_progress(database, number).affected}; `relay resume --command {number}` goes on")
        raise typer.Exit(FINDING) from None
    if now.state != "done":
        fail(f"command {number}: {now.answer}")
    say(f"{now.affected} deliveries {done}")


def _progress(database: Database, number: int) -> Progress:
    from relay.store.operator import commands

    found = commands.progress(database, number)
    if found is None:
        fail(f"there is no command {number}")
    return found


def _selection(
    *,
    route: str | None,
    seq: int | None,
    source: str | None,
    entity: str | None,
    cause: str | None,
    since: datetime | None,
) -> Selection:
    from relay.store.operator.selection import Selection

    entity_type, entity_id = parse_entity(entity)
    return Selection(
        route=route, seq=seq, source=source, entity_type=entity_type, entity_id=entity_id, cause=cause, since=since
    )
