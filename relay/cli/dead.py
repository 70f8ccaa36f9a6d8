"""`relay dead`: lists dead letters."""

from __future__ import annotations

from typing import Annotated

import typer

from inbox.cli.options import AsJson, Since
from inbox.cli.terminal import exit_on_error, show
from relay.cli.options import OfRoute, open_database, require_known_filters


def dead(
    *,
    route: OfRoute = None,
    cause: Annotated[str | None, typer.Option(help="Only of this cause, such as exhausted or mapping.")] = None,
    since: Since = None,
    limit: Annotated[int, typer.Option(min=1, max=10_000, help="The most rows.")] = 50,
    as_json: AsJson = False,
) -> None:
    """List deliveries that were given up, the newest death first.

    `inbox show SEQ` shows the whole history of one; `relay replay` replays them.

    Examples:
      relay dead --cause mapping
      relay dead --json
    """
    from relay.store import reads

    with exit_on_error():
        config, database = open_database()
        require_known_filters(config, database, route=route, cause=cause)
        rows = reads.dead_letters(database, route=route, cause=cause, since=since, limit=limit)
    columns = (
        "seq",
        "route",
        "state",
        "entity_type",
        "entity_id",
        "event_type",
        "attempts",
        "died_at",
        "cause",
        "error",
    )
    show(rows, as_json=as_json, columns=columns, empty="no dead letters")
