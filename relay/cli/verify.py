"""`relay verify` and `relay rebuild`: compare stored state with the log, and repair it from the log."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import msgspec
import typer
from rich.progress import BarColumn, MofNCompleteColumn, TimeRemainingColumn

from relay.cli.options import AsJson, AsNdjson, Wide, login_name, open_database
from relay.cli.tables import Column, format_of, show
from relay.cli.terminal import FINDING, Doing, answer, bar, exit_on_error, say
from relay.words import counted

if TYPE_CHECKING:
    from relay.store.audit import Checked
    from relay.store.database import Database


COLUMNS = (
    Column("finding"),
    Column("seq", "number"),
    Column("route"),
    Column("lane"),
    Column("facts_say", heading="the log says"),
    Column("stored", last=True),
)


def verify(*, as_json: AsJson = False, as_ndjson: AsNdjson = False, wide: Wide = False) -> None:
    """Compare the state of every delivery with its facts. Changes nothing.

    Receivers and relays may run meanwhile; it reads some events at a time. It checks that each fact can follow the one
    before, that every event is open or ended on each of its routes, that attempts, replays and due times agree, and that
    every lane with waiting deliveries has its head. A lane's memory is judged by the kind of lane that each event was
    delivered in, whatever `lane` its route has now.

    Exits with 0 when all agree, with 1 on any difference, and with 2 when the configuration is wrong, or the database does not
    answer.

    Examples:
      relay verify
      relay verify --json
    """
    from relay.store.audit import verify as verify_all

    form = format_of(COLUMNS, as_json=as_json, as_ndjson=as_ndjson, wide=wide)
    with exit_on_error():
        config, database = open_database()
        differences, counts = _run(database, verify_all(database, config), "verifying")
    if differences or not form.is_table:
        show(differences, COLUMNS, form, empty="")
    else:
        answer(f"agreed: {counts}")
    if differences and form.is_table:
        them = "it" if len(differences) == 1 else "them"
        say(f"{counted(len(differences), 'difference')} in {counts}; `relay rebuild` repairs {them}")
    if differences:
        raise typer.Exit(FINDING)


def rebuild(*, as_json: AsJson = False, as_ndjson: AsNdjson = False, wide: Wide = False) -> None:
    """Repair the findings of relay verify from the log. Receivers and relays may run meanwhile.

    A delivery that lost its row gets it back and is delivered, one that has ended loses it, and a lane without a head
    gets one. A lost row comes back in the lane that its route gives the event now. Facts are never changed: where one
    can't follow the one before, a fact `corrected` is added. Rows whose event is not in the inbox are removed. Deliveries
    in flight, and events that arrive meanwhile, are left alone.

    Exits with 0 also when it repaired something, and with 2 when the configuration is wrong, or the database does not answer.

    Examples:
      relay rebuild
      relay rebuild --json
    """
    from relay.store.rebuild import rebuild as rebuild_all

    form = format_of(COLUMNS, as_json=as_json, as_ndjson=as_ndjson, wide=wide)
    with exit_on_error():
        config, database = open_database()
        repaired, counts = _run(database, rebuild_all(database, config, who=login_name()), "rebuilding")
    if repaired or not form.is_table:
        show(repaired, COLUMNS, form, empty="")
    if form.is_table:
        done = f"repaired {counted(len(repaired), 'difference')} in" if repaired else "nothing to repair:"
        answer(f"{done} {counts}")


def _run(database: Database, chunks: Iterator[Checked], doing: str) -> tuple[list[dict[str, object]], str]:
    """Work through the chunks with a progress bar. Return the differences, and the numbers of what was seen, in words."""
    from relay.store.audit import bounds

    differences: list[dict[str, object]] = []
    events = deliveries = facts = 0
    low, high = bounds(database)
    with bar(Doing(), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()) as progress:
        task = progress.add_task(doing, total=high - low + 1)
        for chunk in chunks:
            events, deliveries, facts = events + chunk.events, deliveries + chunk.deliveries, facts + chunk.facts
            differences += map(msgspec.structs.asdict, chunk.differences)
            progress.update(task, completed=min(chunk.upto, high) - low + 1)
    return differences, f"{counted(events, 'event')}, {counted(deliveries, 'delivery')}, {counted(facts, 'fact')}"
