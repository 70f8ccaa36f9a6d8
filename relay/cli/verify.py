"""`relay verify` and `relay rebuild`: compare stored state with the log, and repair it from the log."""

from __future__ import annotations

import getpass
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated

import msgspec
import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn

from inbox.cli.terminal import FINDING, Doing, answer, console, exit_on_error, say
from inbox.logs.visible import visible, visible_json
from relay.cli.options import open_database

if TYPE_CHECKING:
    from relay.delivery.audit import Difference
    from relay.store.audit.verify import Checked
    from relay.store.database import Database


AsArray = Annotated[bool, typer.Option("--json", help="An array of the differences instead of lines.")]


def verify(*, as_json: AsArray = False) -> None:
    """Compare the state of every delivery with its facts. Changes nothing; exits 1 on any difference.

    Receivers and relays may run meanwhile; it reads some events at a time. It checks that every event is open or ended
    on each of its routes, that attempts, replays and due times agree, that every lane with waiting deliveries has its
    head, and that the views show the same. A lane's memory is judged by the kind of lane that each event was delivered
    in, whatever `lane` its route has now.

    Examples:
      relay verify
      relay verify --json
    """
    from relay.store.audit.verify import verify as verify_all

    with exit_on_error():
        config, database = open_database()
        checked = _run(database, verify_all(database, config), "verifying", as_json=as_json)
    if as_json:
        pass
    elif checked.differences:
        say(f"{checked.differences} differences in {checked.counts}; `relay rebuild` repairs them")
    else:
        answer(f"agreed: {checked.counts}")
    if checked.differences:
        raise typer.Exit(FINDING)


def rebuild(*, as_json: AsArray = False) -> None:
    """Repair the findings of relay verify from the log. Receivers and relays may run meanwhile.

    A delivery that lost its row gets it back and is delivered, one that has ended loses it, and a lane without a head
    gets one. A lost row comes back in the lane that its route gives the event now. Facts are never changed: where they
    contradict each other, a fact `corrected` is added. Rows and facts whose event is not in the inbox are removed. Events
    that arrive meanwhile are left alone.

    Examples:
      relay rebuild
      relay rebuild --json
    """
    from relay.store.audit.rebuild import rebuild as rebuild_all

    with exit_on_error():
        config, database = open_database()
        repaired = _run(database, rebuild_all(database, config, who=getpass.getuser()), "rebuilding", as_json=as_json)
    if not as_json:
        done = f"repaired {repaired.differences} differences" if repaired.differences else "nothing to repair"
        answer(f"{done}: {repaired.counts}")


class _Totals(msgspec.Struct):
    events: int = 0
    deliveries: int = 0
    facts: int = 0
    differences: int = 0

    @property
    def counts(self) -> str:
        return f"{self.events:,} events, {self.deliveries:,} deliveries, {self.facts:,} facts"


def _run(database: Database, chunks: Iterator[Checked], doing: str, *, as_json: bool) -> _Totals:
    """Print each difference as it is found, with a progress bar."""
    from relay.store.audit.verify import bounds

    total = _Totals()
    low, high = bounds(database)
    columns = (Doing(), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console(stderr=True), transient=True) as progress:
        task = progress.add_task(doing, total=high - low + 1)
        lines = _Lines(progress, as_json=as_json)
        for chunk in chunks:
            total.events += chunk.events
            total.deliveries += chunk.deliveries
            total.facts += chunk.facts
            total.differences += len(chunk.differences)
            for difference in chunk.differences:
                lines.add(difference)
            progress.update(task, completed=min(chunk.upto, high) - low + 1)
        lines.end()
    return total


class _Lines:
    """Prints each difference when it is found, as a line or as an element of a JSON array."""

    def __init__(self, progress: Progress, *, as_json: bool) -> None:
        self._as_json = as_json
        # above the bar when both are on one terminal
        self._console = progress.console if sys.stdout.isatty() else console()
        self._printed = 0

    def add(self, difference: Difference) -> None:
        if self._as_json:
            element = visible_json(msgspec.json.encode(difference).decode())
            sys.stdout.write(("[\n  " if self._printed == 0 else ",\n  ") + element)
        else:
            about = (("seq", difference.seq), ("route", difference.route), ("lane", difference.lane))
            where = " ".join(f"{name}={visible(str(value))}" for name, value in about if value is not None)
            found = f"{visible(difference.facts_say)}, but stored: {visible(difference.stored)}"
            say(f"{difference.finding} {where}: {found}", on=self._console)
        self._printed += 1

    def end(self) -> None:
        if self._as_json:
            sys.stdout.write("\n]\n" if self._printed else "[]\n")
