"""`relay plan`: the changes that would bring a sync route's two sides in sync, or those of another configuration."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
import typer
from rich.progress import MofNCompleteColumn, SpinnerColumn

from relay.cli.options import (
    AsJson,
    AsNdjson,
    Columns,
    Since,
    ThisEntity,
    Wide,
    names_of,
    open_database,
    parse_entity,
    require_known,
)
from relay.cli.tables import Column, Format, format_of, show
from relay.cli.terminal import FINDING, Doing, bar, exit_on_error, fail, say
from relay.words import counted

if TYPE_CHECKING:
    from inbox.config.model import Config
    from relay.destinations.preview import Preview
    from relay.destinations.sync import Sync
    from relay.store.database import Database
    from relay.store.events import Chosen

COLUMNS = (
    Column("entity", "entity"),
    Column("change", "state"),
    Column("field"),
    Column("before"),
    Column("after"),
    Column("why", last=True),
)
DIFFERENCE_COLUMNS = (
    Column("route"),
    Column("part"),
    Column("events", "number"),
    Column("last_seq", "number"),
    Column("before"),
    Column("after", last=True),
    Column("source", on_request=True),
)
_PAGE = 200


def plan(
    *,
    route: Annotated[
        str | None,
        typer.Option(
            "--route", help="The sync route; with --config, only this route.", autocompletion=names_of("routes")
        ),
    ] = None,
    config: Annotated[
        Path | None,
        typer.Option("--config", metavar="FILE", help="Another configuration, to be compared with today's."),
    ] = None,
    events: Annotated[int, typer.Option("--events", min=1, help="With --config: so many events, the newest.")] = 100,
    fetch: Annotated[
        bool,
        typer.Option("--fetch", help="With --config: also fetch the entities of sync routes and map them under both."),
    ] = False,
    entity: ThisEntity = None,
    since: Since = None,
    as_json: AsJson = False,
    as_ndjson: AsNdjson = False,
    wide: Wide = False,
    columns: Columns = None,
) -> None:
    """Show the changes that would be made downstream, or what another configuration would change; nothing is written.

    With --route, fetches every entity that the route's source ever named, of the types that the route takes, from both
    sides, or only the chosen ones, and maps them. An entity whose change is `failed` could not be compared.

    With --config, compares that file with today's inbox.toml over the newest events: how each is read, its routes and lanes,
    and the first request on each route. Nobody is called without --fetch, which makes the calls that read, and no others.

    Exits with 0 when all that were compared are in sync, or become the same under both configurations; with 1 when one
    differs or could not be compared; and with 2 when the command or a configuration is wrong, or the database does not
    answer.

    Examples:
      relay plan --route user-to-crm
      relay plan --route user-to-crm --entity USER/IDNUMBER1234
      relay plan --config new.toml
      relay plan --config new.toml --route user-to-crm --fetch --events 10 --json
    """
    form = partial(format_of, as_json=as_json, as_ndjson=as_ndjson, wide=wide, names=columns)
    if config is not None:
        if entity or since:
            fail("--entity and --since belong to --route alone; with --config, --events N chooses the newest N events")
        _plan_config(config, form(DIFFERENCE_COLUMNS), route=route, events=events, fetch=fetch)
        return
    if route is None:
        fail(
            "give --route, the sync route whose sides to compare, or --config, a configuration to compare with today's"
        )
    if fetch:
        fail("--fetch belongs to --config")
    _plan_route(route, form(COLUMNS), entity=entity, since=since)


def _plan_route(route: str, form: Format, *, entity: str | None, since: datetime | None) -> None:
    from relay.store.events import Chosen

    entity_type, entity_id = parse_entity(entity)
    with exit_on_error():
        config, database = open_database()
        sync = _sync_of(config, route)
        types = tuple(config.routes[route].when.entity_type)
        chosen = Chosen(config.routes[route].source, route, types, entity_type, entity_id, since)
        number, found = 0, []
        try:
            for preview in _previews(database, config, sync, chosen):
                number += 1
                if not preview.is_in_sync:
                    found.append(preview)
        finally:
            sync.close()
    rows = [row for each in found for row in _rows(each)] if form.is_table else [*map(msgspec.to_builtins, found)]
    _show(rows, COLUMNS, form, _summary(number, found))
    if found:
        raise typer.Exit(FINDING)


def _show(rows: Sequence[dict[str, Any]], columns: Sequence[Column], form: Format, summary: str) -> None:
    show(rows, columns, form, empty=summary)
    if rows and form.is_table:
        say(summary)


def _summary(number: int, found: Sequence[Preview]) -> str:
    failed = sum(preview.change == "failed" for preview in found)
    compared, differing = number - failed, len(found) - failed
    if not number:
        return "no entity to compare"
    differ = f"{differing:,} {'differs' if differing == 1 else 'differ'}" if differing else "in sync"
    failures = f"; {counted(failed, 'entity')} could not be compared" if failed else ""
    return (f"{counted(compared, 'entity')} compared: {differ}" if compared else "nothing compared") + failures


def _rows(found: Preview) -> list[dict[str, Any]]:
    about = {"entity_type": found.entity_type, "entity_id": found.entity_id, "change": found.change, "why": found.why}
    return [{**about, **msgspec.structs.asdict(field)} for field in found.fields] or [about]


def _sync_of(config: Config, route: str) -> Sync:
    from relay.destinations import build
    from relay.destinations.sync import Sync

    require_known("route", route, config.routes)
    deliverer = build(config)[route]
    if not isinstance(deliverer, Sync):
        fail(f"route {route} does not go to a sync destination: there is nothing to compare")
    return deliverer


def _previews(database: Database, config: Config, sync: Sync, chosen: Chosen) -> Iterator[Preview]:
    """Preview page by page, as many at a time as the destination takes calls."""
    from relay.destinations.base import without_lease
    from relay.destinations.preview import preview
    from relay.store import events

    context = without_lease()
    at_once = config.destinations[config.routes[chosen.route].destination].concurrency
    after = events.FIRST
    with bar(SpinnerColumn(), Doing(), MofNCompleteColumn()) as progress, ThreadPoolExecutor(at_once) as pool:
        task = progress.add_task("comparing", total=None)
        while page := events.entities(database, chosen, after, _PAGE):
            for found in pool.map(lambda delivery: preview(sync, delivery, context), page):
                progress.advance(task)
                yield found
            after = (str(page[-1].entity_type), str(page[-1].entity_id))


def _plan_config(path: Path, form: Format, *, route: str | None, events: int, fetch: bool) -> None:
    """Compare the configuration in `path` with today's, print the differences, and exit by them."""
    from inbox.loader.load import load_file
    from relay.destinations.preview import Variant, compare
    from relay.store import events as stored

    found: dict[tuple[object, ...], dict[str, Any]] = {}
    number = differ = 0
    with exit_on_error():
        today, database = open_database()
        file = load_file(path)
        require_known("route", route, (*today.routes, *file.sound.routes))
        old, new = (
            each.make(lambda config: Variant(config, only_route=route, fetches=fetch)) for each in (load_file(), file)
        )
        try:
            for event in stored.newest_events(database, events):
                number += 1
                differences = [*compare(old, new, event)]
                differ += bool(differences)
                for each in differences:
                    key = each.source, each.route, each.part, repr(each.before), repr(each.after)
                    row = {**msgspec.structs.asdict(each), "events": 0, "last_seq": each.seq}
                    found.setdefault(key, row)["events"] += 1
        finally:
            old.close()
            new.close()
    differing = f"{differ:,} differ" if differ else "no difference"
    _show([*found.values()], DIFFERENCE_COLUMNS, form, f"{counted(number, 'event')} compared: {differing}")
    for name in () if fetch else sorted(today.routes.keys() & new.config.routes.keys()):
        if route in {None, name} and today.routes[name].sync != new.config.routes[name].sync:
            say(f"[routes.{name}.sync] differs: --fetch compares the writes that would follow")
    if found:
        raise typer.Exit(FINDING)
