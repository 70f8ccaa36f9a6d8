"""`inbox list` and `inbox show`: the events that are stored."""

from __future__ import annotations

from typing import Annotated

import typer

from inbox.cli.options import AsJson, Since, open_database, parse_entity
from inbox.cli.terminal import FINDING, answer, exit_on_error, say, show, show_fields


def list_command(
    *,
    source: Annotated[str | None, typer.Option(help="Only of this source.")] = None,
    entity: Annotated[str | None, typer.Option(help="Only about this entity: TYPE/ID, or a TYPE.")] = None,
    state: Annotated[str | None, typer.Option(help="Only in this state, such as dead, ready or delivered.")] = None,
    since: Since = None,
    before: Annotated[int | None, typer.Option(help="Only below this seq: the next page.")] = None,
    limit: Annotated[int, typer.Option(min=1, max=10_000, help="At most so many.")] = 50,
    as_json: AsJson = False,
) -> None:
    """List events, the newest first: one line for each route an event takes.

    Examples:
      inbox list --entity USER/IDNUMBER1234
      inbox list --state dead --json
    """
    from inbox.db import reads

    entity_type, entity_id = parse_entity(entity, may_be_a_type=True)
    with exit_on_error(), open_database() as database:
        rows = reads.events(
            database,
            source=source,
            entity_type=entity_type,
            entity_id=entity_id,
            state=state,
            since=since,
            before=before,
            limit=limit,
        )
    columns = (
        "seq",
        "received_at",
        "source",
        "entity_type",
        "entity_id",
        "event_type",
        "route",
        "state",
        "attempts",
        "last_error",
    )
    show(rows, as_json=as_json, columns=columns, empty="no such event")


def show_command(seq: Annotated[int, typer.Argument(help="The event's number.")], *, as_json: AsJson = False) -> None:
    """Show one event: what came, where it stands on each route, and everything that happened to it.

    Exits 1 when there is none of that number.

    Examples:
      inbox show 42
      inbox show 42 --json
    """
    from inbox.db import reads

    with exit_on_error(), open_database() as database:
        row = reads.event(database, seq)
    if row is None:
        say(f"there is no event {seq}")
        raise typer.Exit(FINDING)
    if as_json:
        show_fields(row, as_json=True)
        return
    parts = {name: row.pop(name) for name in ("deliveries", "facts", "duplicates")}
    show_fields(row, as_json=False)
    for name, columns in (
        ("deliveries", ("route", "state", "attempts", "due_at", "lane", "last_error")),
        ("facts", ("at", "route", "kind", "attempt", "detail")),
        ("duplicates", ("received_at", "times", "last_received_at", "body", "handled_at", "error")),
    ):
        if parts[name]:
            answer("")
            answer(name, style="bold")
            show(parts[name], as_json=False, columns=columns, empty="")
