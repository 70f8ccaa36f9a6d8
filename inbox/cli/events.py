"""`inbox list` and `inbox show`: the events that are stored."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import msgspec
import typer

from inbox.cli.completion import names_of
from inbox.cli.options import (
    AsJson,
    AsNdjson,
    Columns,
    OfError,
    OfEventType,
    OfStatus,
    Since,
    Until,
    Wide,
    open_database,
    parse_entity,
    require_known,
)
from inbox.cli.tables import Column, format_of, show
from inbox.cli.terminal import FINDING, as_document, console, exit_on_error, put, put_json, say
from inbox.cli.wording import shown_state
from inbox.clock import SystemClock

if TYPE_CHECKING:
    from sqlalchemy import Engine

    from inbox.config.model import Config

OfSource = Annotated[
    str | None, typer.Option("--source", help="Only of this source.", autocompletion=names_of("sources"))
]
OfRoute = Annotated[str | None, typer.Option("--route", help="Only of this route.", autocompletion=names_of("routes"))]
OfDestination = Annotated[
    str | None,
    typer.Option(
        "--destination", help="Only of the routes to this destination.", autocompletion=names_of("destinations")
    ),
]
OfEntity = Annotated[str | None, typer.Option("--entity", help="Only about this entity: TYPE/ID, or a TYPE.")]

COLUMNS = (
    Column("seq", "number"),
    Column("state", "state"),
    Column("entity", "entity"),
    Column("route"),
    Column("last_error", heading="error", last=True),
    Column("received_at", "time", "received"),
    Column("due_at", "time", "due"),
    Column("event_type"),
    Column("attempts", "number"),
    Column("last_status", "number", "status"),
    Column("source"),
    Column("action", on_request=True),
    Column("occurred_at", "time", "occurred", on_request=True),
    Column("lane", on_request=True),
    Column("last_fact", on_request=True),
    Column("last_fact_at", "time", on_request=True),
    Column("relay_node", on_request=True),
    Column("superseded_by", "number", on_request=True),
)


def list_command(
    *,
    source: OfSource = None,
    route: OfRoute = None,
    destination: OfDestination = None,
    entity: OfEntity = None,
    event_type: OfEventType = None,
    state: Annotated[
        str | None, typer.Option("--state", help="Only in this state, such as dead, ready or delivered.")
    ] = None,
    error: OfError = None,
    status: OfStatus = None,
    since: Since = None,
    until: Until = None,
    before: Annotated[int | None, typer.Option(help="Only below this seq: the next page.")] = None,
    limit: Annotated[
        int, typer.Option(min=1, max=10_000, help="The most events; each has a line for each of its routes.")
    ] = 50,
    wide: Wide = False,
    columns: Columns = None,
    as_json: AsJson = False,
    as_ndjson: AsNdjson = False,
) -> None:
    """List events, the newest first: one line for each route an event takes.

    A ready delivery that waits for its next attempt, after a failure, is `retrying` in the table and for --state.

    Examples:
      inbox list --entity USER/IDNUMBER1234
      inbox list --state dead --since 2d
      inbox list --route user-to-crm --status 503 --columns seq,entity,due,error
      inbox list --source trivore --ndjson
    """
    from inbox.db import listings
    from inbox.events.states import RETRYING, State
    from inbox.loader.load import read_config

    now = SystemClock().now()
    form = format_of(COLUMNS, as_json=as_json, as_ndjson=as_ndjson, wide=wide, names=columns)
    entity_type, entity_id = parse_entity(entity, may_be_a_type=True)
    with exit_on_error():
        config = read_config()
        with open_database(config) as database:
            require_known_filters(config, database, source=source, route=route, destination=destination, state=state)
            wanted = listings.EventFilter(
                source=source,
                entity_type=entity_type,
                entity_id=entity_id,
                event_type=event_type,
                routes=routes_of(config, route, destination),
                state=State.READY.value if state == RETRYING else state,
                retrying_at=now if state == RETRYING else None,
                error=error,
                status=status,
                since=since,
                until=until,
                before=before,
            )
            page = listings.events(database, wanted, limit)
            blocking = msgspec.structs.replace(wanted, state=State.BLOCKED.value)
            has_blocked = state == State.DEAD and bool(listings.events(database, blocking, 1).rows)
    rows = page.rows
    if form.is_table:
        rows = [{**row, "state": shown_state(row, now)} for row in rows]
    more = "" if page.before is None else f"{len(rows)} shown; `--before {page.before}` for the next page"
    if has_blocked and form.is_table:
        say("dead ones that block their lane are apart: `--state blocked`; `relay dead` lists both")
    show(rows, COLUMNS, form, empty="no events", more=more)


def require_known_filters(
    config: Config,
    database: Engine,
    *,
    source: str | None = None,
    route: str | None = None,
    destination: str | None = None,
    state: str | None = None,
) -> None:
    """Exit with 2 when a filter names nothing: neither of the configuration nor, for routes and sources, of the database."""
    from inbox.db.known_names import has_route, has_source
    from inbox.events.states import LISTED_STATES, RETRYING

    require_known("source", source, config.sources, stored=lambda name: has_source(database, name))
    require_known("route", route, config.routes, stored=lambda name: has_route(database, name))
    require_known("destination", destination, config.destinations)
    require_known("state", state, (*LISTED_STATES, RETRYING))


def routes_of(config: Config, route: str | None, destination: str | None) -> frozenset[str] | None:
    """Return the routes that `--route` and `--destination` leave; None: all."""
    if destination is None:
        return None if route is None else frozenset({route})
    there = frozenset(name for name, each in config.routes.items() if each.destination == destination)
    return there if route is None else there & {route}


def show_command(seq: Annotated[int, typer.Argument(help="The event's number.")], *, as_json: AsJson = False) -> None:
    """Show one event: its arrival, each attempt with its calls, what comes next on each route, and the commands for it.

    Exits 1 when there is none of that number.

    Examples:
      inbox show 42
      inbox show 42 --json
    """
    from inbox.cli.story import story
    from inbox.db import reads
    from inbox.loader.load import read_config

    with exit_on_error():
        config = read_config()
        with open_database(config) as database:
            row = reads.event(database, seq)
    if row is None:
        say(f"there is no event {seq}")
        raise typer.Exit(FINDING)
    if as_json:
        put_json(as_document(row))
        return
    out = console()
    width = out.width if out.is_terminal else None
    for line in story(row, config, SystemClock().now(), width):
        put(line, on=out)
