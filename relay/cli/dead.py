"""`relay dead`: lists dead letters."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated

import typer

from inbox.cli.options import TIME_FORMATS, AsJson, utc
from inbox.cli.terminal import exit_on_error, show
from relay.cli.options import OfRoute, open_database


def dead(
    *,
    route: OfRoute = None,
    cause: Annotated[str | None, typer.Option(help="Only of this cause, such as exhausted or mapping.")] = None,
    since: Annotated[
        datetime | None, typer.Option(help="Only died at or after this time; UTC.", formats=TIME_FORMATS)
    ] = None,
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
        _, database = open_database()
        rows = reads.dead_letters(database, route=route, cause=cause, since=utc(since), limit=limit)
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
