"""`relay replay`, `relay cancel` and `relay unblock`: what a person does about deliveries. Each shows its plan first."""

from __future__ import annotations

import getpass
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from functools import partial
from typing import Annotated

import msgspec
import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from inbox import config_file
from inbox.config import Config
from inbox.db import engine, migrate
from inbox.terminal import console, fail, show, told
from relay.store import cancel as cancelling
from relay.store import replay as replaying
from relay.store.database import Database
from relay.store.replay import Plan, Selection

Reason = Annotated[str, typer.Option(help="Why; it is kept in the log.")]
OfRoute = Annotated[str | None, typer.Option("--route", help="Only of this route.")]
OfSeq = Annotated[int | None, typer.Option("--seq", help="This event.")]
OfSource = Annotated[str | None, typer.Option("--source", help="Only of this source.")]
OfEntity = Annotated[str | None, typer.Option("--entity", help="This entity, as TYPE/ID.")]
OfCause = Annotated[str | None, typer.Option("--cause", help="Dead letters of this cause.")]
Since = Annotated[
    datetime | None, typer.Option("--since", help="Only since; UTC.", formats=["%Y-%m-%d", "%Y-%m-%dT%H:%M:%S"])
]
Yes = Annotated[bool, typer.Option("--yes", help="Do it; without it only the plan is shown.")]
AsJson = Annotated[bool, typer.Option("--json", help="An array of objects instead of a table.")]

_SAMPLE = 5


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
    yes: Yes = False,
    as_json: AsJson = False,
) -> None:
    """Take dead or ended deliveries up again. Shows the plan; --yes does it.

    Without --seq or --entity only dead letters are meant.

    Examples:
      relay replay --cause exhausted --reason "CRM is back"
      relay replay --seq 42 --reason "mapping mended" --yes
    """
    selection = _selection(route=route, seq=seq, source=source, entity=entity, cause=cause, since=since)
    with told():
        config, database = _open()
        planned = replaying.plan(database, selection)
        left = 0 if force or not planned.deliveries else replaying.overtaken(database, config, planned)
        note = f"; {left} of them are older than what was delivered last, and left out without --force" if left else ""
        act = _Act("would be taken up again" + note, "were taken up again", "replaying", "nothing to replay")
        act.carry_out(
            planned, partial(replaying.replay, database, config, force=force), reason, yes=yes, as_json=as_json
        )


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

    What a relay is working on at the moment is left as it is.

    Examples:
      relay cancel --seq 42 --reason "a test account"
      relay cancel --route old-crm --reason "switched off" --yes
    """
    selection = _selection(route=route, seq=seq, source=source, entity=entity, cause=cause, since=since)
    if selection == Selection():
        fail("name what is to be cancelled: --route, --seq, --source, --entity, --cause or --since")
    with told():
        config, database = _open()
        planned = cancelling.plan_cancel(database, selection)
        act = _Act("would be cancelled", "were cancelled", "cancelling", "nothing to cancel")
        act.carry_out(planned, partial(cancelling.cancel, database, config), reason, yes=yes, as_json=as_json)


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
    """Let lanes go on past the dead head that blocks them; it stays dead. Shows the plan; --yes does it.

    Examples:
      relay unblock --entity USER/IDNUMBER1234 --reason "mended by hand"
      relay unblock --route orders --reason "agreed with shipping" --yes
    """
    selection = _selection(route=route, seq=seq, source=source, entity=entity, cause=cause, since=since)
    with told():
        config, database = _open()
        planned = cancelling.plan_unblock(database, selection)
        act = _Act("would go on", "go on", "unblocking", "nothing is blocked")
        act.carry_out(planned, partial(cancelling.unblock, database, config), reason, yes=yes, as_json=as_json)


class _Act(msgspec.Struct, frozen=True):
    """What is said of an act: its plan, its end, its progress, and that there is nothing to do."""

    planned: str
    done: str
    doing: str
    nothing: str

    def carry_out(
        self, planned: Plan, do: Callable[..., Iterator[int]], reason: str, *, yes: bool, as_json: bool
    ) -> None:
        """Show the plan, and with `yes` do it, with a bar. Interrupted, it has done whole batches; the same command goes on."""
        rows = planned.deliveries
        columns = ("seq", "route", "entity_type", "entity_id", "event_type", "state", "attempts")
        show(rows if as_json else rows[:_SAMPLE], as_json=as_json, columns=columns, empty=self.nothing)
        if not rows:
            return
        terminal = console(stderr=True)
        if not yes:
            more = f", {_SAMPLE} of them shown" if len(rows) > _SAMPLE else ""
            terminal.print(f"{len(rows)} deliveries {self.planned}{more}; --yes does it")
            return
        changed = 0
        bar = (TextColumn(self.doing), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with Progress(*bar, console=terminal, transient=True) as progress:
            task = progress.add_task(self.doing, total=len(rows))
            for number in do(planned, who=getpass.getuser(), why=reason):
                changed += number
                progress.update(task, advance=min(replaying.BATCH, len(rows)))
        terminal.print(f"{changed} of {len(rows)} deliveries {self.done}")


def _selection(
    *,
    route: str | None,
    seq: int | None,
    source: str | None,
    entity: str | None,
    cause: str | None,
    since: datetime | None,
) -> Selection:
    entity_type, _, entity_id = (entity or "").partition("/")
    if entity and not entity_id:
        fail(f"--entity must be TYPE/ID, such as USER/IDNUMBER1234, not {entity!r}")
    return Selection(
        route=route,
        seq=seq,
        source=source,
        entity_type=entity_type or None,
        entity_id=entity_id or None,
        cause=cause,
        since=None if since is None else since.replace(tzinfo=UTC),
    )


def _open() -> tuple[Config, Database]:
    config = config_file.read()
    made = engine.connect(config.database.url, application="inbox-relay-cli")
    migrate.require_current(made)
    return config, Database(made)
