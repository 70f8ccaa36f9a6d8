"""`relay plan`: shows the changes that would bring a sync route's two sides in sync, and writes nothing."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
import typer
from rich.progress import MofNCompleteColumn, SpinnerColumn

from inbox.cli.options import AsJson, Since, parse_entity
from inbox.cli.terminal import FINDING, Doing, bar, exit_on_error, fail, say, show
from relay.cli.options import OfEntity, open_database

if TYPE_CHECKING:
    from inbox.config.model import Config
    from relay.destinations.preview import Preview
    from relay.destinations.sync import Sync
    from relay.store.database import Database
    from relay.store.entities import Chosen

COLUMNS = ("entity_type", "entity_id", "change", "field", "before", "after", "why")
_PAGE = 200


def plan(
    *,
    route: Annotated[str, typer.Option("--route", help="The sync route.")],
    entity: OfEntity = None,
    since: Since = None,
    as_json: AsJson = False,
) -> None:
    """Show the changes that would be made downstream, field by field; nothing is written.

    Fetches every entity that the route's source ever named, of the types that the route takes, from both sides, or only the
    chosen ones, and maps them. The exit status is 1 when anything differs, or can't be compared.

    Examples:
      relay plan --route user-to-crm
      relay plan --route user-to-crm --entity USER/IDNUMBER1234
      relay plan --route user-to-crm --since 2026-01-01 --json
    """
    from relay.store.entities import Chosen

    entity_type, entity_id = parse_entity(entity)
    with exit_on_error():
        config, database = open_database()
        sync = _sync_of(config, route)
        chosen = Chosen(config.routes[route].source, route, entity_type, entity_id, since)
        try:
            previews, differing = 0, []
            for found in _previews(database, config, sync, chosen):
                previews += 1
                if not found.is_in_sync:
                    differing.append(found)
        finally:
            sync.close()
    _show(previews, differing, as_json=as_json)


def _show(previews: int, differing: list[Preview], *, as_json: bool) -> None:
    if as_json:
        show([msgspec.to_builtins(found) for found in differing], as_json=True, columns=COLUMNS, empty="")
    else:
        rows = [row for found in differing for row in _rows(found)]
        show(rows, as_json=False, columns=COLUMNS, empty=f"in sync: {previews} entities")
    if differing:
        say(f"{len(differing)} of {previews} entities are not in sync")
        raise typer.Exit(FINDING)


def _rows(found: Preview) -> list[dict[str, Any]]:
    about = {"entity_type": found.entity_type, "entity_id": found.entity_id, "change": found.change, "why": found.why}
    return [{**about, **msgspec.structs.asdict(field)} for field in found.fields] or [about]


def _sync_of(config: Config, route: str) -> Sync:
    from relay.destinations import build
    from relay.destinations.sync import Sync

    if route not in config.routes:
        fail(f"no route {route!r} is configured; there are: {', '.join(sorted(config.routes)) or 'none'}")
    deliverer = build(config)[route]
    if not isinstance(deliverer, Sync):
        fail(f"route {route} does not go to a sync destination: there is nothing to compare")
    return deliverer


def _previews(database: Database, config: Config, sync: Sync, chosen: Chosen) -> Iterator[Preview]:
    """Preview page by page, as many at a time as the destination takes calls."""
    from relay.destinations.base import without_lease
    from relay.destinations.preview import preview
    from relay.store import entities

    context = without_lease()
    at_once = config.destinations[config.routes[chosen.route].destination].concurrency
    columns = (SpinnerColumn(), Doing(), MofNCompleteColumn())
    after, types = entities.FIRST, config.routes[chosen.route].when.entity_type
    with ThreadPoolExecutor(at_once) as pool, bar(*columns) as progress:
        task = progress.add_task("comparing", total=None)
        while page := entities.page(database, chosen, after, _PAGE):
            concerned = [each for each in page if not types or each.entity_type in types]
            for found in pool.map(lambda delivery: preview(sync, delivery, context), concerned):
                progress.advance(task)
                yield found
            after = (str(page[-1].entity_type), str(page[-1].entity_id))
