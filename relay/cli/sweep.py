"""`relay sweep`: asks a source for its changes, and adds an event for each that no webhook reported."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING, Annotated

import msgspec
import typer
from rich.progress import MofNCompleteColumn, SpinnerColumn, TaskID

from inbox.config.mistakes import nearest
from inbox.errors import SweepFailed
from relay.cli.options import AsJson, AsNdjson, Columns, Since, Wide, open_database
from relay.cli.tables import Column, format_of, show
from relay.cli.terminal import FINDING, Doing, bar, exit_on_error, fail, say
from relay.words import counted

if TYPE_CHECKING:
    from inbox.config.model import Config
    from relay.store.database import Database
    from relay.store.sweeps import SweepFindings

ORPHAN_COLUMNS = (Column("entity", "entity"), Column("finding"), Column("route"))
COLUMNS = (
    Column("source"),
    Column("entity_type", heading="type"),
    Column("compared", "number"),
    Column("missed", "number"),
    Column("added", "number"),
    Column("since", "time"),
    Column("until", "time", on_request=True),
    Column("left_out", "number", on_request=True),
)


def sweep(
    *,
    source: Annotated[str, typer.Option("--source", help="The source; its `sweeps` say how it is asked.")],
    since: Since = None,
    dry: Annotated[
        bool, typer.Option("--dry-run", help="Only report what is missing; add nothing, and keep the watermark.")
    ] = False,
    full: Annotated[
        bool, typer.Option("--full", help="Compare all ids of both sides instead, of each route with a `listing`.")
    ] = False,
    wide: Wide = False,
    columns: Columns = None,
    as_json: AsJson = False,
    as_ndjson: AsNdjson = False,
) -> None:
    """Find changes that no webhook reported, and add an event for each.

    Begins a little before the end of the last sweep; the first one compares everything. Change listings don't include
    deletions: --full reports counterparts whose entity is gone, and entities without a counterpart. The exit status is 1
    when anything was missing.

    Examples:
      relay sweep --source trivore
      relay sweep --source trivore --since 2026-01-01 --dry-run
      relay sweep --source trivore --full --json
    """
    shown = ORPHAN_COLUMNS if full else COLUMNS
    form = format_of(shown, as_json=as_json, as_ndjson=as_ndjson, wide=wide, names=columns)
    with exit_on_error():
        config, database = open_database()
        if source not in config.sources:
            fail(f"there is no source {source!r}; {nearest(source, config.sources)}")
        tables = config.sources[source].sweeps
        if not tables:
            fail(f"source {source} has no sweeps: [[sources.{source}.sweeps]] says how it is asked for changes")
        if full:
            found = [row for number in range(len(tables)) for row in _orphans(config, source, number)]
            show(found, ORPHAN_COLUMNS, form, empty="both sides have the same")
            raise typer.Exit(FINDING if found else 0)
        results = [_one(config, database, source, number, since, dry=dry) for number in range(len(tables))]
    rows = [msgspec.structs.asdict(result) for result in results]
    show(rows, COLUMNS, form, empty="")
    missed = sum(result.missed for result in results)
    if form.is_table:
        was = "was" if missed == 1 else "were"
        say(f"{counted(missed, 'change')} {was} missing" if missed else "nothing was missing")
        if left_out := sum(result.left_out for result in results):
            have = "event has" if left_out == 1 else "events have"
            say(f"{left_out} {have} no entity in the body, as it is larger than max_body of {source}")
    if missed:
        raise typer.Exit(FINDING)


def _orphans(config: Config, source: str, number: int) -> list[dict[str, str]]:
    from relay.sweep.run import orphans

    with bar(SpinnerColumn(), Doing("listing "), MofNCompleteColumn()) as progress:
        tasks: dict[str, TaskID] = {}

        def listed(side: str, entities: int) -> None:
            if side not in tasks:
                tasks[side] = progress.add_task(side, total=None)
            progress.advance(tasks[side], entities)

        try:
            return list(orphans(config, source, number, listed))
        except SweepFailed as error:
            fail(str(error))


def _one(
    config: Config, database: Database, source: str, number: int, begin: datetime | None, *, dry: bool
) -> SweepFindings:
    from relay.destinations.base import without_lease
    from relay.store import sweeps
    from relay.store.work import Work
    from relay.sweep.run import CompiledSweep

    sweeping = CompiledSweep(config, source, number)
    entity_type = sweeping.table.entity_type
    usual, before = sweeping.begins(database)
    columns = (SpinnerColumn(), Doing("comparing "), MofNCompleteColumn())
    try:
        with bar(*columns) as progress:
            task = progress.add_task(entity_type, total=None)
            for swept in sweeping.run(Work(database, config, {}), without_lease(), begin or usual, dry=dry):
                progress.update(task, completed=swept.compared)
    except SweepFailed as error:
        if not dry:
            sweeps.broke_off(database, source, entity_type, swept.missed)
        fail(
            f"{source} {entity_type}: {error}; {swept.compared} were compared, {swept.added} added, and the next sweep begins again"
        )
    finally:
        sweeping.close()
    # A watermark says that all before it was compared: a sweep that began later doesn't move it.
    if not dry and (begin is None or (before is not None and begin <= before)):
        sweeps.finish(database, swept)
    return swept
