"""`inbox commands`: lists what operators asked for, by SQL or command line, with progress and answers."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated

import typer

from inbox.cli.options import (
    MOST_NUMBER,
    AsJson,
    AsNdjson,
    Before,
    Columns,
    Limit,
    Since,
    Until,
    Wide,
    open_database,
    require_known,
)
from inbox.cli.tables import Column, Format, format_of, next_page, show
from inbox.cli.terminal import FINDING, exit_on_error, say, show_fields

if TYPE_CHECKING:
    from inbox.db.reads import Row

COLUMNS = (
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

    form = format_of(COLUMNS, as_json=as_json, as_ndjson=as_ndjson, wide=wide, names=columns)
    if number is not None:
        _show_one(number, form)
        return
    require_known("kind", kind, COMMAND_KINDS)
    require_known("state", state, COMMAND_STATES)
    wanted = {"kind": kind, "state": state, "since": since, "until": until, "before": before}
    with exit_on_error(), open_database() as database:
        found = all_rows(database, "commands", wanted, form.most(limit))
        if not form.is_table:
            show(found, COLUMNS, form, empty="")
            return
        rows = [_shown(row) for row in found]
    show(rows, COLUMNS, form, empty="no commands", more=next_page(rows, form.most(limit), "id"))


def _shown(row: Row) -> Row:
    kind = f"{row['kind']} (dry run)" if row["dry_run"] else row["kind"]
    about = " ".join(f"{key}={value}" for key, value in row["selection"].items())
    return {**row, "kind": kind, "about": about}


def _show_one(number: int, form: Format) -> None:
    from inbox.db import reads

    with exit_on_error(), open_database() as database:
        row = reads.command(database, number)
    if row is None:
        say(f"there is no command {number}")
        raise typer.Exit(FINDING)
    if form.is_table:
        for name in ("selection", "sample"):
            row[name] = None if row[name] is None else json.dumps(row[name], ensure_ascii=False, default=str)
    show_fields(row, as_json=not form.is_table)
