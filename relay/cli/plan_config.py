"""`relay plan --config`: shows what another configuration would change for the events that arrived, and writes nothing."""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import typer
from rich.progress import BarColumn, MofNCompleteColumn, TimeRemainingColumn

from inbox.cli.options import require_known
from inbox.cli.tables import Column, Format, show
from inbox.cli.terminal import FINDING, Doing, Speed, as_document, bar, exit_on_error, fail, put_json, say
from inbox.cli.wording import counted
from relay.cli.options import open_database

if TYPE_CHECKING:
    from relay.comparison.differences import Counts, Noted
    from relay.comparison.run import ConfigComparison, PlanOptions, Result
    from relay.store.database import Database

COLUMNS = (
    Column("source", on_request=True),
    Column("route"),
    Column("kind", "state"),
    Column("name"),
    Column("count", "number"),
    Column("last_seq", "number"),
    Column("first_seq", "number", on_request=True),
    Column("before"),
    Column("after"),
    Column("why", last=True),
)
_MOST_NAMED = 10
"""Settings that a line names."""


def plan_config(path: Path, options: PlanOptions, form: Format) -> None:
    """Compare the configuration in `path` with today's, print the differences, and exit by them."""
    with exit_on_error():
        database, comparison = _comparison(path, options)
        result = _run(database, comparison, options)
    rows = [msgspec.to_builtins(group) for group in result.groups.in_order()]
    notes = [*_notes(result)]
    if form.style == "json":
        document = {"config": str(path), **msgspec.to_builtins(result.counts), "other_settings": result.other_settings}
        put_json(as_document({**document, "differences": rows}))
    else:
        show(rows, COLUMNS, form, empty=notes[0])
        for note in notes if rows else notes[1:]:
            say(note)
    if rows:
        raise typer.Exit(FINDING)


def _comparison(path: Path, options: PlanOptions) -> tuple[Database, ConfigComparison]:
    from inbox.loader.load import load_file
    from relay.comparison.compare import Comparison
    from relay.comparison.run import ConfigComparison

    old, database = open_database()
    load_file().make(lambda today: Comparison(today, today))  # its mistakes are none of the other file
    file = load_file(path)
    comparison = file.make(lambda new: ConfigComparison(database, (old, new), options))
    require_known("route", options.route, (*old.routes, *file.sound.routes))
    return database, comparison


def _run(database: Database, comparison: ConfigComparison, options: PlanOptions) -> Result:
    from relay.store import arrived

    first, last = arrived.bounds(database, options.events.since)
    with bar(Doing(), BarColumn(), MofNCompleteColumn(), Speed("events"), TimeRemainingColumn()) as progress:
        numbers = last - first + 1
        task = progress.add_task("comparing", total=min(options.limit or numbers, numbers))
        try:
            return comparison.run(lambda down_to: progress.update(task, completed=last - down_to + 1))
        except sqlite3.Error as error:  # of its own file; those of the database are SQLAlchemy's
            fail(f"the temporary file for lanes and keys: {error}; TMPDIR names its folder")


def _notes(result: Result) -> list[str]:
    """Return the summary, and a line for each kind of event that was not compared like the others."""
    counts = result.counts
    differ = counted(len(result.groups), "difference") if len(result.groups) else "no difference"
    lines = [f"{counted(counts.events, 'event')} compared: {differ}" if counts.events else "no event to compare"]
    lines += [
        f"{counted(noted.count, 'event')} {text}: seq {noted.seq} is the newest"
        for noted, text in _noted(counts)
        if noted.count
    ]
    if counts.entities:
        lines.append(_entities(counts))
    if result.other_settings:
        named = ", ".join(result.other_settings[:_MOST_NAMED])
        more = len(result.other_settings) - _MOST_NAMED
        rest = f", and {more} more" if more > 0 else ""
        lines.append(f"also different, without effect on routes, lanes and requests: {named}{rest}")
    return lines


def _noted(counts: Counts) -> list[tuple[Noted, str]]:
    return [
        (counts.without_payload, "compared without their payload, which is gone"),
        (counts.not_read_again, "can't be read again from what is stored of them; compared as stored"),
        (counts.stored_otherwise, "were stored under another configuration than today's"),
        (counts.fails_in_both, "lack a value under both configurations"),
        (counts.unreadable, "can't be read as they are stored, and were left out"),
    ]


def _entities(counts: Counts) -> str:
    line = f"{counted(counts.entities, 'entity')} mapped under both configurations"
    if counts.not_mapped.count:
        line += f"; {counts.not_mapped.count:,} could be mapped under neither (seq {counts.not_mapped.seq})"
    if counts.hash_agrees or counts.hash_differs.count:
        line += f"; today's map gives what was sent last for {counts.hash_agrees:,}"
    if counts.hash_differs.count:
        line += (
            f", and something else for {counts.hash_differs.count:,} (seq {counts.hash_differs.seq}):"
            " these entities or the configuration have changed since"
        )
    return line
