"""Compares all ids of both sides of sync routes: counterparts without an entity, and entities without a counterpart.

The ids are kept in a temporary SQLite file, so that a million of them need no memory.
"""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from inbox.config.model import Config, Route
from inbox.config.sweep import Listing
from inbox.errors import SweepFailed
from relay.destinations.base import Clients, without_lease
from relay.sweep.pages import Pages
from relay.sync.cursor import EVERYTHING, Listed

OnListed = Callable[[str, int], None]
"""Called with the name of the side that is listed, and a number of further entities."""

_FINDINGS = (
    ("orphan: its entity is not at the source", "SELECT id FROM there EXCEPT SELECT id FROM here ORDER BY id"),
    ("missing: it has no counterpart", "SELECT id FROM here EXCEPT SELECT id FROM there ORDER BY id"),
)


def orphans(config: Config, source: str, number: int, progress: OnListed) -> Iterator[dict[str, str]]:
    """Find what either side lacks, for one sweep of `source`, on each of its sync routes with a listing.

    Raises:
        SweepFailed: a side can't be listed; the text names it.
    """
    table = config.sources[source].sweeps[number]
    clients = Clients(config)
    context = without_lease()
    with contextlib.closing(sqlite3.connect("")) as ids:
        caller = clients.api(table.api)
        pages = Pages(table, f"sources.{source}.sweeps[{number}]", caller)
        _keep(ids, "here", table.entity_type, pages.since(EVERYTHING, context), progress)
        caller.close()
        for route, table_there in _routes(config, source, table.entity_type):
            destination: Any = config.destinations[route.destination]
            there = clients.destination(destination, destination.base_url)
            listing = Pages(table_there, f"routes.{route.name}.sync.listing", there)
            _keep(ids, "there", route.destination, listing.since(EVERYTHING, context), progress)
            there.close()
            for finding, statement in _FINDINGS:
                for (entity_id,) in ids.execute(statement):
                    about = {"route": route.name, "entity_type": table.entity_type, "entity_id": entity_id}
                    yield {**about, "finding": finding}


def _routes(config: Config, source: str, entity_type: str) -> list[tuple[Route, Listing]]:
    """List the sync routes of this source that take such entities and have a listing of their counterparts."""
    return [
        (route, route.sync.listing)
        for route in config.routes.values()
        if route.source == source
        and route.sync is not None
        and route.sync.listing is not None
        and (not route.when.entity_type or entity_type in route.when.entity_type)
    ]


def _keep(ids: sqlite3.Connection, name: str, side: str, pages: Iterable[Sequence[Listed]], progress: OnListed) -> None:
    ids.execute(f"DROP TABLE IF EXISTS {name}")
    ids.execute(f"CREATE TABLE {name} (id TEXT PRIMARY KEY) WITHOUT ROWID")
    try:
        for page in pages:
            ids.executemany(f"INSERT OR IGNORE INTO {name} VALUES (?)", [(each.id,) for each in page])
            progress(side, len(page))
    except SweepFailed as error:
        raise SweepFailed(f"{side}: {error}") from None
