"""`inbox export`: events with their facts, one JSON object a line, for an auditor."""

from __future__ import annotations

import hashlib
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import msgspec
import typer
from rich.progress import BarColumn, MofNCompleteColumn, TimeRemainingColumn

from inbox.cli.options import (
    OfEntity,
    OfEventType,
    OfRoute,
    OfSource,
    Since,
    Until,
    open_database,
    parse_entity,
    require_known_filters,
)
from inbox.cli.terminal import Doing, as_line, bar, exit_on_error, fail, say
from inbox.cli.wording import counted

if TYPE_CHECKING:
    from sqlalchemy import Engine

    from inbox.db.export import ExportFilter

Write = Callable[[str], object]


def export_command(
    *,
    since: Since = None,
    until: Until = None,
    source: OfSource = None,
    route: OfRoute = None,
    entity: OfEntity = None,
    event_type: OfEventType = None,
    with_payloads: Annotated[
        bool,
        typer.Option(
            "--with-payloads", help="Also headers and bodies, as far as they are kept; no text: `body_base64`."
        ),
    ] = False,
    output: Annotated[
        Path | None, typer.Option("--output", metavar="FILE", help="A new file, written whole or not at all.")
    ] = None,
) -> None:
    """Export events with their facts as JSON lines, in order of seq, for an auditor. Receivers and relays may run.

    Each line has its `type`: `event` with the columns of inbox, then its `fact`s with those of delivery_log. The last
    one, `end`, has the counts and the SHA-256 of all lines before it. --since and --until choose events by their arrival;
    their facts are all in it. An event that was arriving when the export began may be missing, so let --until be a minute
    ago for a period that is complete.

    Examples:
      inbox export --since 2026-01-01 --until 2026-02-01 --output january.ndjson
      inbox export --source trivore --entity USER/IDNUMBER1234 --with-payloads
    """
    from inbox.db.export import ExportFilter
    from inbox.loader.load import read_config

    entity_type, entity_id = parse_entity(entity, may_be_a_type=True)
    wanted = ExportFilter(
        source=source,
        entity_type=entity_type,
        entity_id=entity_id,
        event_type=event_type,
        route=route,
        since=since,
        until=until,
    )
    if output is not None and output.exists():
        fail(f"{output} exists already: name another file")
    if output is not None and not output.absolute().parent.is_dir():
        fail(f"there is no folder {output.absolute().parent}: make it first")
    with exit_on_error():
        config = read_config()
        with open_database(config) as database:
            require_known_filters(config, database, source=source, route=route)
            if output is None:
                _export(database, wanted, sys.stdout.write, with_payloads=with_payloads)
                sys.stdout.flush()
                return
            with _whole_file(output) as write:
                events, facts = _export(database, wanted, write, with_payloads=with_payloads)
    say(f"{output}: {counted(events, 'event')}, {counted(facts, 'fact')}")


def _export(database: Engine, wanted: ExportFilter, write: Write, *, with_payloads: bool) -> tuple[int, int]:
    """Write every line. Returns the numbers of events and facts."""
    from inbox.db.export import bounds, parts

    whole, counts = hashlib.sha256(), {"event": 0, "fact": 0}
    first, last = bounds(database)
    hides_lines = sys.stdout.isatty() and write == sys.stdout.write  # the bar would stand among them
    with bar(Doing(), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()) as progress:
        progress.disable = progress.disable or hides_lines
        task = progress.add_task("exporting", total=last - first + 1)
        for part in parts(database, wanted, first, last, with_payloads=with_payloads):
            for record in part.lines:
                line = as_line(record) + "\n"
                whole.update(line.encode())
                write(line)
                counts[record["type"]] += 1
            progress.update(task, completed=part.upto - first + 1)
    end = {"events": counts["event"], "facts": counts["fact"], "filter": msgspec.structs.asdict(wanted)}
    write(as_line({"type": "end", **end, "sha256": whole.hexdigest()}) + "\n")
    return counts["event"], counts["fact"]


@contextmanager
def _whole_file(path: Path) -> Iterator[Write]:
    """Write a file beside its place, readable for its owner alone, and put it there only when it is whole."""
    name = None
    try:
        handle, name = tempfile.mkstemp(dir=path.absolute().parent, prefix=f".{path.name}.", suffix=".part")
        with os.fdopen(handle, "w", encoding="utf-8", newline="\n") as file:
            yield file.write
            file.flush()
            os.fsync(file.fileno())
        Path(name).replace(path)
    except OSError as error:
        fail(f"{path} can't be written: {error.strerror}")
    finally:
        if name is not None:
            Path(name).unlink(missing_ok=True)
