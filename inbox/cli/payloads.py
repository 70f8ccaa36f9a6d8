"""`inbox payloads`: the shapes of payloads that relays have learned, and changes of them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from inbox.cli.login import login_name
from inbox.cli.options import (
    MOST_NUMBER,
    AsJson,
    AsNdjson,
    Before,
    Columns,
    Limit,
    OfEventType,
    OfSource,
    Wide,
    open_database,
    require_known,
)
from inbox.cli.tables import Column, Format, format_of, next_page, show
from inbox.cli.terminal import FINDING, answer, exit_on_error, fail
from inbox.cli.wording import counted

if TYPE_CHECKING:
    from sqlalchemy import Engine

    from inbox.config.model import Config
    from inbox.db.payload_shapes import ChangeFilter
    from inbox.db.reads import Row

FIELDS = (
    Column("source"),
    Column("event_type", heading="type"),
    Column("path", least=24),
    Column("shown_types", heading="types", last=True),
    Column("presence", "number", "in"),
    Column("last_at", "time", "last"),
    Column("first_seq", "number", on_request=True),
    Column("first_at", "time", "first", on_request=True),
    Column("last_seq", "number", on_request=True),
    Column("events", "number", on_request=True),
    Column("missed", "number", on_request=True),
)
CHANGES = (
    Column("id", "number"),
    Column("source"),
    Column("event_type", heading="type"),
    Column("path", least=24),
    Column("change"),
    Column("seq", "number", "since seq"),
    Column("at", "time", "since"),
    Column("became", heading="now", last=True),
    Column("usual", heading="until then"),
    Column("state", "state"),
    Column("found_at", "time", "found", on_request=True),
    Column("acknowledged_at", "time", on_request=True),
    Column("acknowledged_by", on_request=True),
    Column("returned_at", "time", on_request=True),
)


def payloads(
    *,
    source: OfSource = None,
    event_type: OfEventType = None,
    path: Annotated[
        str | None,
        typer.Option("--path", metavar="TEXT", help="Only fields whose path contains this text, in any case."),
    ] = None,
    only_changes: Annotated[bool, typer.Option("--changes", help="The open changes, the newest first.")] = False,
    every: Annotated[bool, typer.Option("--all", help="With --changes: those that are over, too.")] = False,
    number: Annotated[
        int | None, typer.Option("--id", min=0, max=MOST_NUMBER, help="With --changes: this one.")
    ] = None,
    acknowledge: Annotated[
        bool, typer.Option("--acknowledge", help="With --changes: acknowledge the open ones that match.")
    ] = False,
    before: Before = None,
    limit: Limit = 200,
    wide: Wide = False,
    columns: Columns = None,
    as_json: AsJson = False,
    as_ndjson: AsNdjson = False,
) -> None:
    """List the fields of payloads by source and event type: their types, and how often each is there.

    With --changes: new fields, new types and missing fields, with the first event that shows each. One is open for 14 days,
    unless it is acknowledged or the field returns. Relays learn all that from what arrives; no value is stored.

    Exits 1 when there is nothing to acknowledge.

    Examples:
      inbox payloads --source shop --event-type orders/create
      inbox payloads --changes
      inbox payloads --changes --id 7 --acknowledge
      inbox payloads --changes --all --source shop --json
    """
    form = format_of(
        CHANGES if only_changes else FIELDS, as_json=as_json, as_ndjson=as_ndjson, wide=wide, names=columns
    )
    _require_fitting(
        only_changes,
        {"--path": path is not None},
        {"--all": every, "--id": number is not None, "--acknowledge": acknowledge, "--before": before is not None},
    )
    from inbox.loader.load import read_config

    with exit_on_error():
        config = read_config()
        with open_database(config) as database:
            _require_source(config, database, source)
            if only_changes:
                from inbox.db.payload_shapes import ChangeFilter

                only = not every and number is None
                wanted = ChangeFilter(id=number, source=source, event_type=event_type, only_open=only, before=before)
                _acknowledge(database, wanted) if acknowledge else _show_changes(database, wanted, limit, form)
            else:
                _show_fields(database, form, limit, source=source, event_type=event_type, path=path)


def _require_fitting(only_changes: bool, of_fields: dict[str, bool], of_changes: dict[str, bool]) -> None:
    wrong = of_fields if only_changes else of_changes
    for name, is_given in wrong.items():
        if is_given:
            fail(f"{name} and --changes exclude each other" if only_changes else f"{name} needs --changes")


def _require_source(config: Config, database: Engine, source: str | None) -> None:
    from inbox.db.known_names import has_source

    require_known("source", source, config.sources, stored=lambda name: has_source(database, name))


def _show_fields(
    database: Engine, form: Format, limit: int, *, source: str | None, event_type: str | None, path: str | None
) -> None:
    from inbox.db.payload_shapes import FieldFilter, fields

    wanted = FieldFilter(source=source, event_type=event_type, path=path)
    rows = fields(database, wanted, limit)
    more = f"{len(rows)} shown; --limit shows more, --source and --path fewer" if len(rows) >= limit else ""
    shown = [_shown_field(row) for row in rows] if form.is_table else rows
    unlearned = "no payloads learned yet; relays learn a minute or two after an event"
    show(shown, FIELDS, form, empty=unlearned if wanted == FieldFilter() else "no learned fields match", more=more)


def _shown_field(row: Row) -> Row:
    types = row["types"]
    total = max(sum(types.values()), 1)
    names = sorted(types, key=lambda name: -types[name])
    words = names if len(names) == 1 else [f"{name} {_percent(types[name], total)}" for name in names]
    kinds = [*words, "keys are data"] if row["is_map"] else words
    return {**row, "shown_types": ", ".join(kinds), "presence": _percent(row["events"], row["of"])}


def _percent(part: int, whole: int) -> str:
    """Return a part in percent; `<100 %` and `>0 %` where rounding would hide that some are different."""
    rounded = round(part * 100 / whole)
    if rounded == 100 and part < whole:  # noqa: PLR2004  # percent
        return "<100 %"
    return ">0 %" if rounded == 0 and part else f"{rounded} %"


def _show_changes(database: Engine, wanted: ChangeFilter, limit: int, form: Format) -> None:
    from inbox.db.payload_shapes import changes

    rows = changes(database, wanted, limit)
    shown = [{**row, "became": _became(row), "state": _state(row)} for row in rows] if form.is_table else rows
    show(shown, CHANGES, form, empty="no changes of payloads", more=next_page(rows, limit, "id"))


def _became(row: Row) -> str:
    return "missing" if row["change"] == "missing" else row["type"] or ""


def _state(row: Row) -> str:
    if row["acknowledged_at"] is not None:
        return "acknowledged"
    if row["returned_at"] is not None:
        return "returned"
    return "open" if row["is_open"] else "aged out"


def _acknowledge(database: Engine, wanted: ChangeFilter) -> None:

    from inbox.db.payload_shapes import acknowledge

    done = acknowledge(database, wanted, login_name())
    answer(f"acknowledged {counted(done, 'change')}")
    if not done:
        raise typer.Exit(FINDING)
