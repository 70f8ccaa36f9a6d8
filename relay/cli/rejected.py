"""`inbox rejected` and `inbox readmit`: lists rejected requests, and readmits them after a fix."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from relay.cli.options import (
    MOST_NUMBER,
    AsJson,
    AsNdjson,
    Before,
    Columns,
    Limit,
    Since,
    Until,
    Wide,
    names_of,
    open_engine,
    require_known,
)
from relay.cli.tables import Column, Format, format_of, next_page, show
from relay.cli.terminal import FINDING, exit_on_error, say, show_fields

if TYPE_CHECKING:
    from sqlalchemy import Engine

    from inbox.config.model import Config
    from inbox.db.reads import Row

OfSource = Annotated[
    str | None,
    typer.Option("--source", help="Only of this source, as the URL named it.", autocompletion=names_of("sources")),
]
OfStatus = Annotated[
    int | None,
    typer.Option("--status", min=100, max=599, help="Only those that were answered with this HTTP status."),
]
OfError = Annotated[
    str | None,
    typer.Option("--error", metavar="TEXT", help="Only where the reason contains this text, in any case."),
]
OfCause = Annotated[str | None, typer.Option("--cause", help="Only of this cause, such as invalid_event.")]

COLUMNS = (
    Column("id", "number"),
    Column("received_at", "time", "received"),
    Column("source"),
    Column("status", "number"),
    Column("cause"),
    Column("reason", last=True),
    Column("readmission", heading="readmit"),
    Column("remote_address"),
    Column("field", on_request=True),
    Column("readmitted_at", "time", on_request=True),
    Column("readmitted_by", on_request=True),
    Column("readmit_reason", on_request=True),
)
_PLAN = Format(has_wide=False)
GROUPS = (
    Column("source"),
    Column("cause"),
    Column("readable", "number", "would be readmitted"),
    Column("rejected", "number", "still rejected"),
)
SAMPLE = (
    Column("id", "number"),
    Column("becomes", last=True),
    Column("source"),
    Column("cause"),
    Column("received_at", "time", "received"),
)

_EXCERPT = 4096
_SAMPLE = 5


def rejected(
    *,
    number: Annotated[
        int | None, typer.Option("--id", min=0, max=MOST_NUMBER, help="This one, with everything that was kept of it.")
    ] = None,
    source: OfSource = None,
    cause: OfCause = None,
    status: OfStatus = None,
    error: OfError = None,
    since: Since = None,
    until: Until = None,
    before: Before = None,
    limit: Limit = None,
    wide: Wide = False,
    columns: Columns = None,
    as_json: AsJson = False,
    as_ndjson: AsNdjson = False,
) -> None:
    """List rejected requests, the newest first, and whether they can be readmitted.

    With --id: one of them, and the beginning of its body; exits 1 when there is none of that number.

    Examples:
      inbox rejected --source trivore --cause invalid_event
      inbox rejected --id 7
      inbox rejected --since 2d --error "is not JSON" --json
    """
    from inbox.db.listing import all_rows
    from inbox.loader.load import read_config

    form = format_of(COLUMNS, as_json=as_json, as_ndjson=as_ndjson, wide=wide, names=columns)
    if number is not None:
        _show_one(number, form)
        return
    wanted = {"source": source, "cause": cause, "status": status, "error": error, "before": before}
    with exit_on_error():
        config = read_config()
        with open_engine(config) as database:
            _require_known(config, database, source=source, cause=cause)
            found = all_rows(database, "rejected", {**wanted, "since": since, "until": until}, form.most(limit))
            if not form.is_table:
                show(found, COLUMNS, form, empty="")
                return
            rows = [{**row, "readmission": _readmission(row)} for row in found]
    show(rows, COLUMNS, form, empty="no rejected requests", more=next_page(rows, form.most(limit), "id"))


def _require_known(config: Config, database: Engine, *, source: str | None, cause: str | None) -> None:
    """Exit with 2 when a filter names no source that rejected anything, or no cause."""
    from inbox.db.reads import has_rejected_source
    from inbox.errors import CAUSES

    require_known("source", source, config.sources, stored=lambda name: has_rejected_source(database, name))
    require_known("cause", cause, CAUSES)


def _show_one(number: int, form: Format) -> None:
    from inbox.db import reads

    with exit_on_error(), open_engine() as database:
        row = reads.row_of(database, "rejected_request", number)
    if row is None:
        say(f"there is no rejected request {number}")
        raise typer.Exit(FINDING)
    if form.is_table and row["body"] is not None and len(row["body"]) > _EXCERPT:
        row["body"] = row["body"][:_EXCERPT] + b" \xe2\x80\xa6"
    show_fields(row, as_json=not form.is_table)


def _readmission(row: Row) -> str:
    """Say whether it can be readmitted, or which event it became."""
    if row["readmitted_seq"] is not None:
        return f"is seq {row['readmitted_seq']}"
    return "no" if row["body"] is None else "yes"
