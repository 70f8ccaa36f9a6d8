"""Compares all ids of both sides of sync routes: counterparts without an entity, and entities without a counterpart.

The ids are kept in a temporary SQLite file, so that a million of them need no memory.
"""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from rich.progress import MofNCompleteColumn, SpinnerColumn

from inbox.cli.terminal import Doing, bar, fail
from inbox.config.model import Config, Route
from inbox.config.sync import Listing
from inbox.errors import SweepFailed
from relay.sync.cursor import EVERYTHING, Listed

ORPHAN_COLUMNS = ("route", "entity_type", "entity_id", "finding")
_FINDINGS = (
    ("orphan: its entity is not at the source", "SELECT id FROM there EXCEPT SELECT id FROM here ORDER BY id"),
    ("missing: it has no counterpart", "SELECT id FROM here EXCEPT SELECT id FROM there ORDER BY id"),
)


def orphans(config: Config, source: str, number: int) -> Iterator[dict[str, Any]]:
    """What one of the two sides lacks, of the sweep of this number, on each sync route of `source` that has a listing."""
    from relay.destinations.base import Clients, without_lease  # noqa: PLC0415  # listings need not load what makes calls
    from relay.sweep.pages import Pages  # noqa: PLC0415

    table = config.sources[source].sweeps[number]
    clients = Clients(config)
    context = without_lease()
    with contextlib.closing(sqlite3.connect("")) as ids:
        caller = clients.api(table.api)
        pages = Pages(table, f"sources.{source}.sweeps[{number}]", caller)
        _keep(ids, "here", table.entity_type, pages.since(EVERYTHING, context))
        caller.close()
        for route, table_there in _routes(config, source, table.entity_type):
            destination: Any = config.destinations[route.destination]
            there = clients.destination(destination, destination.base_url)
            listing = Pages(table_there, f"routes.{route.name}.sync.listing", there)
            _keep(ids, "there", route.destination, listing.since(EVERYTHING, context))
            there.close()
            for finding, statement in _FINDINGS:
                for (entity_id,) in ids.execute(statement):
                    about = {"route": route.name, "entity_type": table.entity_type, "entity_id": entity_id}
                    yield {**about, "finding": finding}


def _routes(config: Config, source: str, entity_type: str) -> list[tuple[Route, Listing]]:
    """Sync routes of this source that take such entities and say how their counterparts are listed."""
    return [
        (route, route.sync.listing)
        for route in config.routes.values()
        if route.source == source
        and route.sync is not None
        and route.sync.listing is not None
        and (not route.when.entity_type or entity_type in route.when.entity_type)
    ]


def _keep(ids: sqlite3.Connection, name: str, shown: str, pages: Iterable[Sequence[Listed]]) -> None:
    ids.execute(f"DROP TABLE IF EXISTS {name}")
    ids.execute(f"CREATE TABLE {name} (id TEXT PRIMARY KEY) WITHOUT ROWID")
    columns = (SpinnerColumn(), Doing("listing "), MofNCompleteColumn())
    try:
        with bar(*columns) as progress:
            task = progress.add_task(shown, total=None)
            for page in pages:
                ids.executemany(f"INSERT OR IGNORE INTO {name} VALUES (?)", [(each.id,) for each in page])
                progress.advance(task, len(page))
    except SweepFailed as error:
        fail(f"{shown}: {error}")
