"""`relay verify` and `relay rebuild`: compare stored state with the log, and repair it from the log."""

from __future__ import annotations

import sys
import textwrap
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Literal

import msgspec
import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn
from rich.text import Text

from inbox.observe.visible import visible, visible_json
from relay.cli.options import AsNdjson, login_name, open_database
from relay.cli.terminal import FINDING, Doing, answer, as_line, bar, console, exit_on_error, fail, put, put_json, say
from relay.words import counted

if TYPE_CHECKING:
    from relay.delivery.audit import Difference
    from relay.store.audit.verify import Checked
    from relay.store.database import Database


AsArray = Annotated[bool, typer.Option("--json", help="An array of the differences instead of sentences.")]

_Style = Literal["sentences", "json", "ndjson"]
_LEAST_WIDTH = 40


def verify(*, as_json: AsArray = False, as_ndjson: AsNdjson = False) -> None:
    """Compare the state of every delivery with its facts. Changes nothing.

    Receivers and relays may run meanwhile; it reads some events at a time. It checks that every event is open or ended
    on each of its routes, that attempts, replays and due times agree, and that every lane with waiting deliveries has
    its head. A lane's memory is judged by the kind of lane that each event was delivered
    in, whatever `lane` its route has now.

    Exits with 0 when all agree, with 1 on any difference, and with 2 when the configuration is wrong, or the database does not
    answer.

    Examples:
      relay verify
      relay verify --json
    """
    from relay.store.audit.verify import verify as verify_all

    style = _style(as_json=as_json, as_ndjson=as_ndjson)
    with exit_on_error():
        config, database = open_database()
        checked = _run(database, verify_all(database, config), "verifying", style)
    if style != "sentences":
        pass
    elif checked.differences:
        them = "it" if checked.differences == 1 else "them"
        say(f"{counted(checked.differences, 'difference')} in {checked.counts}; `relay rebuild` repairs {them}")
    else:
        answer(f"agreed: {checked.counts}")
    if checked.differences:
        raise typer.Exit(FINDING)


def rebuild(*, as_json: AsArray = False, as_ndjson: AsNdjson = False) -> None:
    """Repair the findings of relay verify from the log. Receivers and relays may run meanwhile.

    A delivery that lost its row gets it back and is delivered, one that has ended loses it, and a lane without a head
    gets one. A lost row comes back in the lane that its route gives the event now. Facts are never changed: where they
    contradict each other, a fact `corrected` is added. Rows and facts whose event is not in the inbox are removed. Events
    that arrive meanwhile are left alone.

    Exits with 0 also when it repaired something, and with 2 when the configuration is wrong, or the database does not answer.

    Examples:
      relay rebuild
      relay rebuild --json
    """
    from relay.store.audit.rebuild import rebuild as rebuild_all

    style = _style(as_json=as_json, as_ndjson=as_ndjson)
    with exit_on_error():
        config, database = open_database()
        repaired = _run(database, rebuild_all(database, config, who=login_name()), "rebuilding", style)
    if style == "sentences":
        number = repaired.differences
        done = f"repaired {counted(number, 'difference')} in" if number else "nothing to repair:"
        answer(f"{done} {repaired.counts}")


def _style(*, as_json: bool, as_ndjson: bool) -> _Style:
    if as_json and as_ndjson:
        fail("--json and --ndjson exclude each other: choose one")
    return "json" if as_json else "ndjson" if as_ndjson else "sentences"


class _Totals(msgspec.Struct):
    events: int = 0
    deliveries: int = 0
    facts: int = 0
    differences: int = 0

    @property
    def counts(self) -> str:
        return f"{counted(self.events, 'event')}, {counted(self.deliveries, 'delivery')}, {counted(self.facts, 'fact')}"


def _run(database: Database, chunks: Iterator[Checked], doing: str, style: _Style) -> _Totals:
    """Print each difference as it is found, with a progress bar."""
    from relay.store.audit.verify import bounds

    total = _Totals()
    low, high = bounds(database)
    columns = (Doing(), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with bar(*columns) as progress:
        task = progress.add_task(doing, total=high - low + 1)
        lines = _Lines(progress, style)
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
    """Prints each difference when it is found: as a sentence, as JSON on a line, or as an element of a JSON array."""

    def __init__(self, progress: Progress, style: _Style) -> None:
        self._style = style
        # above the bar when both are on one terminal
        self._console = progress.console if sys.stdout.isatty() else console()
        self._printed = 0

    def add(self, difference: Difference) -> None:
        if self._style == "json":
            element = visible_json(msgspec.json.encode(difference).decode())
            sys.stdout.write(("[\n  " if self._printed == 0 else ",\n  ") + element)
        elif self._style == "ndjson":
            put_json(as_line(msgspec.to_builtins(difference)))
        else:
            for line in self._wrapped(_sentence(difference)):
                put(Text(line), on=self._console)
        self._printed += 1

    def _wrapped(self, sentence: str) -> list[str]:
        """Break a sentence between words at a terminal; elsewhere it is one line."""
        if not self._console.is_terminal:
            return [sentence]
        return textwrap.wrap(sentence, max(self._console.width, _LEAST_WIDTH), subsequent_indent="    ")

    def end(self) -> None:
        if self._style == "json":
            sys.stdout.write("\n]\n" if self._printed else "[]\n")


def _sentence(difference: Difference) -> str:
    about = (("seq", difference.seq), ("route", difference.route), ("lane", difference.lane))
    where = " ".join(f"{name}={visible(str(value))}" for name, value in about if value is not None)
    says, stored = visible(difference.facts_say), visible(difference.stored)
    return f"{difference.finding} {where}: the log says {says}; stored: {stored}"
