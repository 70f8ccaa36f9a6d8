"""Compares all ids of both sides of sync routes: counterparts without an entity, and entities without a counterpart.

The ids are kept in a temporary SQLite file, so that a million of them need no memory.
"""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from inbox.config.model import Config, Route
from inbox.config.sync import Listing
from inbox.errors import SweepFailed
from relay.destinations.base import Clients, Context, without_lease
from relay.destinations.sync import require_no_credentials
from relay.store.database import Database
from relay.store.events import ids_of
from relay.sweep.pages import Page, Pages
from relay.sync.cursor import EVERYTHING
from relay.sync.paging import ChunkPlan

OnListed = Callable[[str, int], None]
"""Called with the name of the side that is listed, and a number of further entities."""
Finding = dict[str, str]

_FINDINGS = (
    ("orphan: its entity is not at the source", "SELECT id FROM there EXCEPT SELECT id FROM here ORDER BY id"),
    (
        "missing: it has no counterpart",
        "SELECT id FROM here EXCEPT SELECT id FROM there EXCEPT SELECT id FROM unasked ORDER BY id",
    ),
    ("not compared: its id can't be asked for", "SELECT id FROM unasked ORDER BY id"),
)
_PAGE = 10_000


def orphans(config: Config, database: Database, source: str, number: int, progress: OnListed) -> Iterator[Finding]:
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
        _table(ids, "here")
        _keep(ids, "here", table.entity_type, pages.since(EVERYTHING, context), progress)
        caller.close()
        for route, listing in _routes(config, source, table.entity_type):
            destination: Any = config.destinations[route.destination]
            there = clients.destination(destination, destination.base_url)
            where = f"routes.{route.name}.sync.listing"
            counterparts = Pages(listing, where, there)
            require_no_credentials(counterparts.call, where, destination)
            for name in ("there", "unasked"):
                _table(ids, name)
            if counterparts.chunks is None:
                _keep(ids, "there", route.destination, counterparts.everything(context, {}), progress)
            else:
                known = ids_of(database, source, table.entity_type, _PAGE)
                asking = _Asking(counterparts.chunks, counterparts, route.destination, progress)
                asking.ask(ids, known, context)
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


def _table(ids: sqlite3.Connection, name: str) -> None:
    ids.execute(f"DROP TABLE IF EXISTS {name}")
    ids.execute(f"CREATE TABLE {name} (id TEXT PRIMARY KEY) WITHOUT ROWID")


def _insert(ids: sqlite3.Connection, name: str, some: Iterable[str]) -> None:
    ids.executemany(f"INSERT OR IGNORE INTO {name} VALUES (?)", ((each,) for each in some))


def _keep(ids: sqlite3.Connection, name: str, side: str, pages: Iterable[Page], progress: OnListed) -> None:
    try:
        for page in pages:
            _require_listed(page)
            _insert(ids, name, (each.id for each in page.entities))
            progress(side, len(page.entities))
    except SweepFailed as error:
        raise SweepFailed(f"{side}: {error}") from None


def _require_listed(page: Page) -> None:
    if page.unlisted:  # its entity would look as if it had no counterpart
        raise SweepFailed(page.unlisted[0].why)


class _Asking:
    """Asks a destination for the counterparts of certain entities, in chunks."""

    def __init__(self, plan: ChunkPlan, counterparts: Pages, side: str, progress: OnListed) -> None:
        self._plan = plan
        self._counterparts = counterparts
        self._side = side
        self._progress = progress

    def ask(self, ids: sqlite3.Connection, known: Iterable[Sequence[str]], context: Context) -> None:
        """Ask for the ids in `here`, and for the `known` ones; keep those found in `there`, and the others in `unasked`."""
        _table(ids, "asked")
        ids.execute("INSERT INTO asked SELECT id FROM here")
        for some in known:
            _insert(ids, "asked", some)
        after = ""
        while chunk := self._next(ids, after):
            after = chunk[-1]
            askable = [each for each in chunk if self._plan.can_ask_for(each)]
            _insert(ids, "unasked", set(chunk).difference(askable))
            if askable:
                pages = self._counterparts.everything(context, self._plan.scope_of(askable))
                _keep(ids, "there", self._side, self._only(askable, pages), self._progress)

    def _next(self, ids: sqlite3.Connection, after: str) -> list[str]:
        statement = "SELECT id FROM asked WHERE id > ? ORDER BY id LIMIT ?"
        return [entity_id for (entity_id,) in ids.execute(statement, (after, self._plan.size))]

    def _only(self, asked: Sequence[str], pages: Iterable[Page]) -> Iterator[Page]:
        for page in pages:
            if not {each.id for each in page.entities} <= set(asked):
                raise SweepFailed(
                    "the answer has counterparts that were not asked for: does the call take {ids}? "
                    "Remove listing.ids to list everything"
                )
            yield page
