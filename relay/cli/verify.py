"""`relay verify` and `relay rebuild`: does what is stored follow from the log, and making it so."""

from __future__ import annotations

import getpass
import sys
from collections.abc import Iterator
from typing import Annotated

import msgspec
import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn

from inbox.cli.terminal import FINDING, Doing, answer, console, exit_on_error, say
from inbox.logs.visible import visible, visible_json
from relay.cli.options import open_database
from relay.delivery.audit import Difference
from relay.store.audit.rebuild import rebuild as rebuild_all
from relay.store.audit.verify import Checked, bounds
from relay.store.audit.verify import verify as verify_all
from relay.store.database import Database

AsJson = Annotated[bool, typer.Option("--json", help="An array of the differences instead of lines.")]


def verify(*, as_json: AsJson = False) -> None:
    """Compare the state of every delivery with what its facts say. Changes nothing; exits 1 on any difference.

    It reads beside whatever runs, some events at a time, and checks that every event is open or ended on each of its
    routes, that attempts, replays and due times agree, that every lane in which deliveries wait has its head, and that
    the views show the same. What a lane remembers is judged by the kind of lane that each event was delivered in,
    whatever `lane` its route has now.

    Examples:
      relay verify
      relay verify --json
    """
    with exit_on_error():
        config, database = open_database()
        checked = _run(database, verify_all(database, config), "verifying", as_json=as_json)
    if as_json:
        pass
    elif checked.differences:
        say(f"{checked.differences} differences in {checked.told}; relay rebuild mends them")
    else:
        answer(f"agreed: {checked.told}")
    if checked.differences:
        raise typer.Exit(FINDING)


def rebuild(*, as_json: AsJson = False) -> None:
    """Mend what relay verify finds, from the log. Receivers and relays may run meanwhile.

    A delivery that lost its row gets it back and is delivered, one that has ended loses it, and a lane without a head
    gets one. A lost row comes back in the lane that its route gives the event now. Facts are never changed: where they
    can't all be true, a fact `corrected` is added. Rows and facts whose event is not in the inbox are removed. What
    arrives meanwhile is left alone.

    Examples:
      relay rebuild
      relay rebuild --json
    """
    with exit_on_error():
        config, database = open_database()
        mended = _run(database, rebuild_all(database, config, who=getpass.getuser()), "rebuilding", as_json=as_json)
    if not as_json:
        done = f"mended {mended.differences} differences" if mended.differences else "nothing to mend"
        answer(f"{done}: {mended.told}")


class _Sum(msgspec.Struct):
    events: int = 0
    deliveries: int = 0
    facts: int = 0
    differences: int = 0

    @property
    def told(self) -> str:
        return f"{self.events:,} events, {self.deliveries:,} deliveries, {self.facts:,} facts"


def _run(database: Database, chunks: Iterator[Checked], doing: str, *, as_json: bool) -> _Sum:
    """Go through all of it, say each difference as it is found, and show how far it is."""
    total = _Sum()
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
                lines.say(difference)
            progress.update(task, completed=min(chunk.upto, high) - low + 1)
        lines.end()
    return total


class _Lines:
    """Says each difference when it is found, however many there are: a line for people, or an element of an array."""

    def __init__(self, progress: Progress, *, as_json: bool) -> None:
        self._as_json = as_json
        # above the bar when both are on one terminal
        self._console = progress.console if sys.stdout.isatty() else console()
        self._said = 0

    def say(self, difference: Difference) -> None:
        if self._as_json:
            element = visible_json(msgspec.json.encode(difference).decode())
            sys.stdout.write(("[\n  " if self._said == 0 else ",\n  ") + element)
        else:
            about = (("seq", difference.seq), ("route", difference.route), ("lane", difference.lane))
            where = " ".join(f"{name}={visible(str(value))}" for name, value in about if value is not None)
            found = f"{visible(difference.facts_say)}, but stored: {visible(difference.stored)}"
            say(f"{difference.finding} {where}: {found}", on=self._console)
        self._said += 1

    def end(self) -> None:
        if self._as_json:
            sys.stdout.write("\n]\n" if self._said else "[]\n")
