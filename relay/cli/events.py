"""`inbox list`, `inbox show` and `inbox commands`: events that are stored, and what operators asked for."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated

import msgspec
import typer

from inbox.clock import SystemClock
from inbox.events.past import event_at
from inbox.events.timestamps import rfc3339
from relay.cli.options import (
    MOST_NUMBER,
    AsJson,
    AsNdjson,
    At,
    Before,
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
    open_engine,
    parse_entity,
    require_known,
    require_known_filters,
    require_past,
)
from relay.cli.tables import Column, Format, format_of, next_page, show
from relay.cli.terminal import FINDING, as_document, console, exit_on_error, put, put_json, say, show_fields
from relay.words import shown_state

if TYPE_CHECKING:
    from collections.abc import Iterator
    from datetime import datetime

    from sqlalchemy import Engine

    from inbox.db.listing import EventFilter, FoundDeliveries
    from inbox.db.reads import Row

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

_PAGE = 500
"""Rows that an export reads together."""
_OfState = Annotated[str | None, typer.Option("--state", help="Only in this state, such as dead, ready or delivered.")]
_MostEvents = Annotated[
    int | None,
    typer.Option(
        "--limit",
        min=1,
        max=10_000,
        help="At most about so many rows, as an event is never split; by default 50, and all with --ndjson.",
    ),
]


def list_command(
    *,
    source: OfSource = None,
    route: OfRoute = None,
    destination: OfDestination = None,
    entity: OfEntity = None,
    event_type: OfEventType = None,
    state: _OfState = None,
    error: OfError = None,
    status: OfStatus = None,
    since: Since = None,
    until: Until = None,
    before: Before = None,
    limit: _MostEvents = None,
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
    from inbox.config.routing import chosen_routes
    from inbox.db import listing
    from inbox.events.states import RETRYING, State
    from inbox.loader.load import read_config

    now = SystemClock().now()
    form = format_of(COLUMNS, as_json=as_json, as_ndjson=as_ndjson, wide=wide, names=columns)
    entity_type, entity_id = parse_entity(entity, may_be_a_type=True)
    with exit_on_error():
        config = read_config()
        with open_engine(config) as database:
            require_known_filters(config, database, source=source, route=route, destination=destination, state=state)
            wanted = listing.EventFilter(
                source=source,
                entity_type=entity_type,
                entity_id=entity_id,
                event_type=event_type,
                routes=chosen_routes(config, route, destination),
                state=State.READY.value if state == RETRYING else state,
                retrying_at=now if state == RETRYING else None,
                error=error,
                status=status,
                since=since,
                until=until,
                before=before,
            )
            if form.most(limit) is None:
                show(_all(database, wanted), COLUMNS, form, empty="")
                return
            page = listing.list_deliveries(database, wanted, form.most(limit) or 0)
            if state == State.DEAD and form.is_table:
                _point_to_blocked(database, wanted)
    _show_page(page, form, now)


def _all(database: Engine, wanted: EventFilter) -> Iterator[Row]:
    from inbox.db import listing

    before = wanted.before
    while True:
        page = listing.list_deliveries(database, msgspec.structs.replace(wanted, before=before), _PAGE)
        yield from page.rows
        if page.before is None:
            return
        before = page.before


def _show_page(page: FoundDeliveries, form: Format, now: datetime) -> None:
    rows = [{**row, "state": shown_state(row, now)} for row in page.rows] if form.is_table else page.rows
    more = "" if page.before is None else f"{len(rows)} shown; `--before {page.before}` for the next page"
    show(rows, COLUMNS, form, empty="no events", more=more)


def _point_to_blocked(database: Engine, wanted: EventFilter) -> None:
    """Say so when there are dead deliveries that block their lane, which have a state of their own."""
    from inbox.db import listing
    from inbox.events.states import State

    if listing.list_deliveries(database, msgspec.structs.replace(wanted, state=State.BLOCKED.value), 1).rows:
        say("dead ones that block their lane are apart: `--state blocked`; `relay dead` lists both")


def show_command(
    seq: Annotated[int, typer.Argument(min=0, max=MOST_NUMBER, help="The event's number.")],
    *,
    at: At = None,
    as_json: AsJson = False,
) -> None:
    """Show one event: its arrival, each attempt with its calls, what comes next on each route, and the commands for it.

    With --at, its deliveries are shown as they were then, with the facts until then. An open one is `open` or `retrying`, as the
    log has no scheduling. Duplicates, gates and lanes of that time are not kept.

    Exits 1 when there is none of that number, or when it arrived after --at.

    Examples:
      inbox show 42
      inbox show 42 --json
      inbox show 42 --at 2026-01-31T10:00:00Z
    """
    from inbox.db import reads
    from inbox.loader.load import read_config
    from relay.cli.story import story

    if at is not None:
        require_past(at)
    removed: list[str] = []
    with exit_on_error():
        config = read_config()
        with open_engine(config) as database:
            row = reads.event(database, seq, is_whole=True)
            if row is not None and at is not None:
                removed = reads.removed_from(database, row, at)
    if row is None:
        say(f"there is no event {seq}")
        raise typer.Exit(FINDING)
    if at is not None:
        _show_at(row, at, removed, as_json=as_json)
        return
    if as_json:
        put_json(as_document(row))
        return
    out = console()
    width = out.width if out.is_terminal else None
    for line in story(row, config, SystemClock().now(), width):
        put(line, on=out)


def _show_at(row: Row, at: datetime, removed: list[str], *, as_json: bool) -> None:
    if row["received_at"] > at:
        say(f"event {row['seq']} arrived later, at {rfc3339(row['received_at'], 'milliseconds')}")
        raise typer.Exit(FINDING)
    from relay.cli.story import story_at

    then = event_at(row, at)
    if as_json:
        put_json(as_document({"at": at, **then, "removed": removed}))
        return
    out = console()
    for line in story_at(then, at, out.width if out.is_terminal else None):
        put(line, on=out)
    for sentence in removed:
        say(sentence)


COMMAND_COLUMNS = (
    Column("id", "number"),
    Column("asked_at", "time", "asked"),
    Column("kind"),
    Column("about"),
    Column("state", "state"),
    Column("affected", "number"),
    Column("answer", last=True),
    Column("asked_by", heading="by"),
    Column("reason"),
    Column("failed", "number", on_request=True),
    Column("matched", "number", on_request=True),
    Column("error", on_request=True),
    Column("finished_at", "time", "finished", on_request=True),
    Column("progress_seq", "number", on_request=True),
)


def commands(
    *,
    number: Annotated[
        int | None, typer.Argument(metavar="[ID]", min=0, max=MOST_NUMBER, help="This one, with every field.")
    ] = None,
    state: Annotated[str | None, typer.Option(help="Only in this state, such as running or refused.")] = None,
    kind: Annotated[str | None, typer.Option(help="Only of this kind, such as replay.")] = None,
    since: Since = None,
    until: Until = None,
    before: Before = None,
    limit: Limit = None,
    wide: Wide = False,
    columns: Columns = None,
    as_json: AsJson = False,
    as_ndjson: AsNdjson = False,
) -> None:
    """List commands of operators, the newest first: who asked, when and why, and the answers.

    With an id: one of them, and the sample of a dry run; exits 1 when there is none of that number.

    Examples:
      inbox commands
      inbox commands 7
      inbox commands --state running --json
      inbox commands --kind replay --since 2d
    """
    from inbox.db.listing import all_rows
    from inbox.events.commands import COMMAND_KINDS, COMMAND_STATES

    form = format_of(COMMAND_COLUMNS, as_json=as_json, as_ndjson=as_ndjson, wide=wide, names=columns)
    if number is not None:
        _show_command(number, form)
        return
    require_known("kind", kind, COMMAND_KINDS)
    require_known("state", state, COMMAND_STATES)
    wanted = {"kind": kind, "state": state, "since": since, "until": until, "before": before}
    with exit_on_error(), open_engine() as database:
        found = all_rows(database, "commands", wanted, form.most(limit))
        if not form.is_table:
            show(found, COMMAND_COLUMNS, form, empty="")
            return
        rows = [_shown_command(row) for row in found]
    show(rows, COMMAND_COLUMNS, form, empty="no commands", more=next_page(rows, form.most(limit), "id"))


def _shown_command(row: Row) -> Row:
    kind = f"{row['kind']} (dry run)" if row["dry_run"] else row["kind"]
    about = " ".join(f"{key}={value}" for key, value in row["selection"].items())
    return {**row, "kind": kind, "about": about}


def _show_command(number: int, form: Format) -> None:
    from inbox.db import reads

    with exit_on_error(), open_engine() as database:
        row = reads.row_of(database, "relay_command", number)
    if row is None:
        say(f"there is no command {number}")
        raise typer.Exit(FINDING)
    if form.is_table:
        for name in ("selection", "sample"):
            row[name] = None if row[name] is None else json.dumps(row[name], ensure_ascii=False, default=str)
    show_fields(row, as_json=not form.is_table)
