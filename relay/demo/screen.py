"""The demo's screen: a line for each change, webhook and call, progress bars, and the summary of a run."""

from __future__ import annotations

import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from rich.console import Console
from rich.padding import Padding
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from inbox.cli.terminal import cell, say
from inbox.clock import Clock, SystemClock
from inbox.observe.visible import visible, visible_text
from relay.demo.commercial import CallMade
from relay.demo.compare import Mismatch
from relay.demo.events import CommandRun, DemoEvent, NoCallNeeded
from relay.demo.scenario import ChangeMade
from relay.demo.webhooks import WebhookSent

_ID = re.compile(r"[0-9a-f]{20}([0-9a-f]{4})")
_WIDE, _WIDE_COLUMN, _NARROW_COLUMN = 100, 28, 20
_CLIENT_ERROR, _SERVER_ERROR, _UNAVAILABLE = 400, 500, 503
_COLOURS = {"change": "bold", "webhook": "cyan", "call": "magenta", "relay": "blue", "command": "bold yellow"}
_NOTES = {"same": ("nothing new: nothing is sent", "dim"), "stale": ("too old: it is read again", "yellow")}
_SAY_EVERY_SECONDS = 5.0


class DemoScreen:
    """Prints a line for each event. Main thread only."""

    def __init__(self, console: Console, clock: Clock | None = None) -> None:
        self._console = console
        self._clock = clock or SystemClock()
        self._names: dict[str, str] = {}  # of entities, by id

    def show_change(self, change: ChangeMade) -> None:
        """Show a change of the identity service."""
        self._names[change.entity_id] = change.name
        detail = Text(_assignments(change.fields))
        if not change.fields and change.action == "update":
            detail = Text("nothing the other side has", "dim")
        if not change.is_reported:
            detail = Text("no webhook", "red").append(": " if detail.plain else "").append_text(detail)
        self._line("change", change.action.upper(), None, change.name, detail)

    def show(self, event: DemoEvent) -> None:
        """Show a webhook, a call, a note of the relay, or a command."""
        match event:
            case WebhookSent(entity_type, entity_id, event_type, status):
                detail = "no answer; it is sent again" if status is None else self._names.get(entity_id, "")
                about = f"{entity_type} {short(entity_id)}"
                self._line("webhook", event_type, status or "---", about, Text(visible(detail), "dim"))
            case CallMade(method, path, status):
                self._line("call", method, status, short(path), self._effect(event))
            case NoCallNeeded(entity_type, entity_id, why):
                self._line("relay", why, None, f"{entity_type} {short(entity_id)}", Text(*_NOTES[why]))
            case CommandRun(command, about, report):
                self._line("command", command, None, short(about), Text(visible(report), "bold"))

    def say(self, text: str) -> None:
        """Show a sentence."""
        say(text, on=self._console, style="dim")

    def advance(self, _changes: int, _progress: Mapping[str, int]) -> None:
        """Show nothing: the lines show it."""

    def _effect(self, call: CallMade) -> Text:
        """Word the effect of a call. The relay sends every mapped field; those that are new are worth a look."""
        if call.status == _UNAVAILABLE:
            return Text("on purpose; it is tried again", "red")
        if call.status >= _CLIENT_ERROR:
            return Text("refused", "yellow")
        if call.method == "DELETE":
            return Text(visible(self._names.get(call.external_id or "", "")), "dim")
        if call.changed or call.external_id is None:
            return Text(_assignments(call.changed))
        return Text("nothing new", "dim")

    def _line(self, kind: str, verb: str, status: int | str | None, about: str, detail: Text) -> None:
        """Print columns, cut to a terminal's width; whole elsewhere. `detail` is made of visible text already."""
        width = self._console.width if self._console.is_terminal else None
        column = _WIDE_COLUMN if width is None or width >= _WIDE else _NARROW_COLUMN
        faint = "dim" if verb == "GET" else ""
        line = Text(end="").append(f"{self._clock.now():%H:%M:%S} ", "dim")
        line.append(f"{kind:<7} ", _COLOURS.get(kind, ""))
        line.append(f"{visible(verb):<6} ", faint)
        line.append(f"{status or '':<3} ", _status_colour(status))
        line.append(f"{visible(about):<{column}}", faint)
        if detail.plain:
            line.append(" ").append_text(detail)
        line.rstrip()
        if width is not None:
            line.truncate(width, overflow="ellipsis")
        self._console.print(line, soft_wrap=True)


def _status_colour(status: int | str | None) -> str:
    if status is None:
        return ""
    if not isinstance(status, int) or status >= _SERVER_ERROR:
        return "bold red"
    return "bold yellow" if status >= _CLIENT_ERROR else "green"


def short(text: str) -> str:
    """Cut ids to the end that tells them apart."""
    return _ID.sub(r"…\1", text)


def _assignments(fields: Mapping[str, Any]) -> str:
    return ", ".join(
        f"{visible(name)}={'null' if value is None else visible(str(value))}" for name, value in fields.items()
    )


def panel(rows: Sequence[tuple[str, str]]) -> Padding:
    """Make a table of names and values."""
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in rows:
        table.add_row(name, cell(value))
    return Padding(table, (1, 0), expand=False)


class Bars:
    """Two progress bars on a terminal, a line now and then elsewhere. Main thread only; `progress` is a context manager."""

    def __init__(self, console: Console, changes: int) -> None:
        self._clock = SystemClock()
        self._total = changes
        self._said_at = time.monotonic()
        self.progress = Progress(
            TextColumn("{task.description:<18}"),
            BarColumn(bar_width=None),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            console=console,
            transient=True,
            expand=True,
            disable=not console.is_terminal,
        )
        self._made = self.progress.add_task("changes made", total=changes)
        self._ended = self.progress.add_task("deliveries ended", total=changes)

    def show(self, event: DemoEvent) -> None:
        """Say what a command has reported."""
        if isinstance(event, CommandRun) and event.report:
            self.say(f"relay {event.command}, {short(event.about)}: {event.report}")

    def show_change(self, change: ChangeMade) -> None:
        """Say which changes no webhook reports."""
        if not change.is_reported:
            subject = f"{change.entity_type.name} {short(change.entity_id)}"
            self.say(f"{subject} is {change.action}d, and no webhook reports it")

    def say(self, text: str) -> None:
        """Print a line that stays, above the bars."""
        self._said_at = time.monotonic()
        at = (f"{self._clock.now():%H:%M:%S}", "dim")
        self.progress.console.print(Text.assemble(at, " ", visible_text(text)))

    def advance(self, changes: int, progress: Mapping[str, int]) -> None:
        """Show how many changes were made, and how many deliveries have ended."""
        changes, events = min(changes, self._total), progress["events"]
        ended = events - progress["still_open"] - progress["dead"]
        self.progress.update(self._made, completed=changes)
        self.progress.update(self._ended, completed=ended, total=max(self._total, events))
        if self.progress.disable and time.monotonic() - self._said_at >= _SAY_EVERY_SECONDS:
            self.say(f"{changes} of {self._total} changes made, {ended} of {events} deliveries ended")


_ROWS = (
    ("changes", "changes", "{created} creates, {updated} edits, {deleted} deletes"),
    ("webhooks sent", "webhooks", "{webhooks_rejected} of them without a 2xx"),
    ("events stored", "events", "one row of inbox each"),
    ("duplicates", "duplicates", "webhooks sent again after a lost answer, recognised"),
    ("calls", "calls", "to the commercial service"),
    ("503s", "calls_failed_503", "of these calls failed on purpose"),
    ("stale reads", "stale_reads", "older than their event, so read again a second later"),
    ("failed attempts", "failed_attempts", "tried again later"),
    ("rescued", "rescued", "the killed relay left {in_flight_when_killed} deliveries half-way"),
    ("delivered", "delivered", "created, changed or deleted a record"),
    ("unchanged", "unchanged", "nothing was new for the other side: nothing was sent"),
    ("superseded", "superseded", "a newer event of the same entity stood for them"),
    ("re-armed", "rearmed", "delivered again: a duplicate may stand for a second change that looks the same"),
    ("replayed", "replayed", "delivered again by `relay replay`"),
    ("dead", "dead", "given up"),
    ("missed webhooks", "swept", "found by `relay sweep`; no webhook reported {unreported} changes"),
    ("orphans", "orphans", "left by an unreported deletion, found by `relay sweep --full`"),
    ("in sync", "in_sync", "users and groups, deleted ones too, by `relay plan`; {not_in_sync} not"),
)
_FAULTS = (
    ("still_open", "deliveries still to be made"),
    ("webhooks_unsent", "webhooks not accepted yet"),
    ("not_in_sync", "entities that `relay plan` would change"),
)


def summary_of(differences: Sequence[Mismatch], numbers: Mapping[str, int], **more: Any) -> dict[str, Any]:  # noqa: ANN401
    """Sum a run up as one JSON object. It has agreed when nothing differs and nothing is left to do."""
    agree = not differences and not any(numbers[name] for name, _ in _FAULTS)
    return {"agree": agree, "differences": [asdict(each) for each in differences], **numbers, **more}


def show_summary(console: Console, summary: Mapping[str, Any]) -> None:
    """Print the numbers as a table, then the differences as another, then the verdict."""
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(justify="right", no_wrap=True)
    table.add_column(style="dim", overflow="fold")
    for name, key, note in _ROWS:
        table.add_row(name, str(summary[key]), note.format_map(summary))
    console.print()
    console.print(table)
    console.print()
    if summary["differences"]:
        found = Table(box=None, pad_edge=False, header_style="bold", title="what differs", title_justify="left")
        for column in summary["differences"][0]:
            found.add_column(column, overflow="fold")
        for difference in summary["differences"]:
            found.add_row(*map(cell, difference.values()))
        console.print(found)
        console.print()
    console.print(_verdict(summary))


def _verdict(summary: Mapping[str, Any]) -> Text:
    """Word the verdict, and the next step when the services do not agree."""
    if summary["agree"]:
        compared = f"{summary['fields']} fields of {summary['entities']} users and groups"
        return Text.assemble(
            ("Both services agree", "bold green"), f" in all {compared}, after {summary['seconds']} s."
        )
    faults = [(len(summary["differences"]), "differences"), *((summary[key], what) for key, what in _FAULTS)]
    return Text.assemble(
        ("The services do not agree: ", "bold red"),
        ", ".join(f"{number} {what}" for number, what in faults if number),
        f". Everything is kept in {visible(summary['folder'])}: look at relay.log there, and `relay dead`; "
        f"--seed {summary['seed']} makes the same changes again.",
    )
