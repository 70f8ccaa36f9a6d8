"""`relay dead`: lists dead letters."""

from __future__ import annotations

from typing import Annotated

import typer

from inbox.cli.options import (
    MOST_NUMBER,
    AsJson,
    AsNdjson,
    Columns,
    Limit,
    OfDestination,
    OfEntity,
    OfError,
    OfEventType,
    OfRoute,
    OfSource,
    OfStatus,
    Since,
    Until,
    Wide,
    parse_entity,
)
from inbox.cli.tables import Column, format_of, show
from inbox.cli.terminal import exit_on_error
from relay.cli.options import open_database, require_known_filters

COLUMNS = (
    Column("seq", "number"),
    Column("entity", "entity"),
    Column("error", last=True),
    Column("route"),
    Column("state", "state"),
    Column("died_at", "time", "died"),
    Column("cause"),
    Column("last_status", "number", "status"),
    Column("event_type"),
    Column("attempts", "number"),
    Column("source"),
    Column("received_at", "time", "received", on_request=True),
    Column("occurred_at", "time", "occurred", on_request=True),
    Column("action", on_request=True),
    Column("lane", on_request=True),
)


def dead(
    *,
    route: OfRoute = None,
    destination: OfDestination = None,
    source: OfSource = None,
    entity: OfEntity = None,
    event_type: OfEventType = None,
    cause: Annotated[str | None, typer.Option(help="Only of this cause, such as exhausted or mapping.")] = None,
    status: OfStatus = None,
    error: OfError = None,
    since: Since = None,
    until: Until = None,
    limit: Limit = None,
    wide: Wide = False,
    columns: Columns = None,
    as_json: AsJson = False,
    as_ndjson: AsNdjson = False,
) -> None:
    """List deliveries that were given up, the newest death first; --since and --until are times of their deaths.

    `inbox show SEQ` shows the whole history of one; `relay replay` replays them.

    Examples:
      relay dead --cause mapping
      relay dead --destination crm --status 422 --since 2d
      relay dead --error "no value" --ndjson
    """
    from inbox.config.routing import chosen_routes
    from inbox.db.listing import read_rows

    form = format_of(COLUMNS, as_json=as_json, as_ndjson=as_ndjson, wide=wide, names=columns)
    entity_type, entity_id = parse_entity(entity, may_be_a_type=True)
    with exit_on_error():
        config, database = open_database()
        require_known_filters(config, database, route=route, source=source, destination=destination, cause=cause)
        wanted = {
            "routes": chosen_routes(config, route, destination),
            "source": source,
            "entity_type": entity_type,
            "entity_id": entity_id,
            "event_type": event_type,
            "cause": cause,
            "status": status,
            "error": error,
            "since": since,
            "until": until,
        }
        most = form.most(limit)
        rows = read_rows(database.engine, "dead", wanted, most or MOST_NUMBER)
    more = f"{most} shown; more with `--limit {2 * most}`" if most is not None and len(rows) >= most else ""
    show(rows, COLUMNS, form, empty="no dead letters", more=more)
