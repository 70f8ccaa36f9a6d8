"""`relay sweep`: asks a source what has changed, and adds an event for every change that no webhook has told."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Annotated

import msgspec
import typer
from rich.progress import MofNCompleteColumn, SpinnerColumn, TextColumn

from inbox.clock import SystemClock
from inbox.config import Config, Source
from inbox.config_sweep import Sweep
from inbox.db import engine
from inbox.errors import SweepFailed
from inbox.event import Event, Identity, RawRequest
from inbox.identify import to_event
from inbox.store import STORES
from inbox.terminal import FINDING, console, fail, show, told
from inbox.timestamps import to_nanoseconds
from relay.cli_common import AsJson, Since, bar, open_database, utc
from relay.listed import EVERYTHING, Listed
from relay.orphans import ORPHAN_COLUMNS, orphans
from relay.store import sweeps
from relay.store.database import Database

COLUMNS = ("source", "entity_type", "since", "compared", "missed", "added")


class Swept(msgspec.Struct):
    """What a sweep has come to."""

    source: str
    entity_type: str
    since: datetime
    compared: int = 0
    missed: int = 0
    added: int = 0


def sweep(
    *,
    source: Annotated[str, typer.Option("--source", help="Which source; its `sweeps` say how it is asked.")],
    since: Since = None,
    dry: Annotated[
        bool, typer.Option("--dry-run", help="Only tell what is missing; add nothing, and keep the place.")
    ] = False,
    full: Annotated[
        bool, typer.Option("--full", help="Compare all ids of both sides instead, of each route with a `listing`.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Find changes that no webhook has told, and add an event for each.

    Begins where the last sweep ended, and a little before; the first one compares everything. Deletions show in no list of
    changes: --full reports counterparts whose entity is gone, and entities without a counterpart. The exit status is 1
    when anything was missing.

    Examples:
      relay sweep --source trivore
      relay sweep --source trivore --since 2026-01-01 --dry-run
      relay sweep --source trivore --full --json
    """
    with told():
        config, database = open_database()
        if source not in config.sources:
            fail(f"no source {source!r} is configured; there are: {', '.join(sorted(config.sources)) or 'none'}")
        tables = config.sources[source].sweeps
        if not tables:
            fail(f"source {source} has no sweeps: [[sources.{source}.sweeps]] says how it is asked for changes")
        if full:
            found = [row for number in range(len(tables)) for row in orphans(config, source, number)]
            show(found, as_json=as_json, columns=ORPHAN_COLUMNS, empty="both sides have the same")
            raise typer.Exit(FINDING if found else 0)
        begin = utc(since)
        results = [_one(config, database, source, number, begin, dry=dry) for number in range(len(tables))]
    rows = [msgspec.structs.asdict(result) for result in results]
    show(rows, as_json=as_json, columns=COLUMNS, empty="")
    missed = sum(result.missed for result in results)
    if not as_json:
        console(stderr=True).print(f"{missed} changes were missing" if missed else "nothing was missing")
    if missed:
        raise typer.Exit(FINDING)


def _one(config: Config, database: Database, source: str, number: int, begin: datetime | None, *, dry: bool) -> Swept:
    from relay.destinations.base import Clients, without_lease  # noqa: PLC0415  # listings need not load what makes calls
    from relay.listing import Pages  # noqa: PLC0415

    table = config.sources[source].sweeps[number]
    caller = Clients(config).api(table.api)
    pages = Pages(table, f"sources.{source}.sweeps[{number}]", caller)
    now = SystemClock().now()
    young = now - timedelta(seconds=table.grace)
    before = sweeps.compared_until(database, source, table.entity_type)
    since = begin or (EVERYTHING if before is None else before - timedelta(seconds=table.overlap))
    result, latest = Swept(source, table.entity_type, since), since
    columns = (SpinnerColumn(), TextColumn("comparing {task.description}"), MofNCompleteColumn())
    context = without_lease()
    try:
        with bar(*columns) as progress:
            task = progress.add_task(table.entity_type, total=None)
            for page in pages.since(since, context):
                old = [each for each in page if each.modified <= young]
                latest = max([latest, *(each.modified for each in old)])
                lost = sweeps.missing(database, source, table.entity_type, old)
                events = [_event(config, config.sources[source], table, each, now) for each in lost]
                result.compared += len(old)
                result.missed += len(lost)
                result.added += 0 if dry else _add(config, events)
                progress.advance(task, len(page))
    except SweepFailed as error:
        fail(f"{source} {table.entity_type}: {error}; {result.compared} were compared, and the next sweep begins again")
    finally:
        caller.close()
    # A watermark says that all before it was compared, so one that began later has nothing to say.
    if not dry and (begin is None or (before is not None and begin <= before)):
        sweeps.move(database, source, table.entity_type, latest, result.missed)
    return result


def _event(config: Config, source: Source, table: Sweep, listed: Listed, now: datetime) -> Event:
    identity = Identity(
        entity_type=table.entity_type,
        entity_id=listed.id,
        event_type=table.event_type,
        action=table.action,
        occurred_ns=to_nanoseconds(listed.modified),
        key_parts=("sweep", table.entity_type, listed.id),
        key_has_time=True,
    )
    body = msgspec.json.encode(
        {"sweep": {"entity_type": table.entity_type, "entity_id": listed.id, "modified": listed.modified}}
    )
    raw = RawRequest(source.name, {"content-type": "application/json"}, body, now)
    routes = [route for route in config.routes.values() if route.source == source.name]
    return to_event(source, raw, identity, routes)


def _add(config: Config, events: Sequence[Event]) -> int:
    """Write them as the receiver does; those that are there already count for nothing."""
    if not events:
        return 0

    async def append() -> int:
        made = engine.connect_async(config.database.url, application="inbox-relay-sweep")
        async with made.connect() as connection:
            seqs = await STORES[made.dialect.name]().append(connection, events)
        await made.dispose()
        return sum(seq is not None for seq in seqs)

    return asyncio.run(append())
