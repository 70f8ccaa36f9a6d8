"""Output of both command lines: lines, fields, JSON, progress bars, exit statuses and errors.

Everything that a command writes goes through here, and values through `inbox.observe.visible`. Rich reads a string as markup,
so values are given as `rich.text.Text`.
"""

from __future__ import annotations

import json
import sys
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from decimal import Decimal
from typing import Any, NoReturn

import typer
from rich.console import Console
from rich.progress import Progress, ProgressColumn, Task
from rich.table import Table
from rich.text import Text

from inbox.errors import ConfigError
from inbox.events.timestamps import rfc3339
from inbox.observe.visible import visible, visible_json, visible_text

FINDING, WRONG_USE = 1, 2
"""Exit statuses besides 0: the answer is a finding; the command or the configuration is wrong."""

Row = Mapping[str, Any]


def console(*, stderr: bool = False) -> Console:
    """Return a console as wide as the terminal. Elsewhere lines have any length, so that programs find whole values."""
    made = Console(stderr=stderr, highlight=False)
    return made if made.is_terminal else Console(stderr=stderr, highlight=False, width=10_000, soft_wrap=True)


BAR_AFTER_SECONDS = 2.0
"""Work that takes no longer has no bar."""


@contextmanager
def bar(*columns: ProgressColumn) -> Iterator[Progress]:
    """Show a progress bar while the block runs, at a terminal and for work that takes long; it vanishes at the end."""
    terminal = console(stderr=True)
    progress = Progress(*columns, console=terminal, transient=True, disable=not terminal.is_terminal)
    timer = threading.Timer(BAR_AFTER_SECONDS, progress.start)
    timer.daemon = True
    timer.start()
    try:
        yield progress
    finally:
        timer.cancel()
        timer.join()
        progress.stop()


class Doing(ProgressColumn):
    """The description of a bar's task, which may hold values."""

    def __init__(self, before: str = "") -> None:
        super().__init__()
        self._before = before

    def render(self, task: Task) -> Text:
        """Return the fixed words and the description."""
        return Text(f"{self._before}{visible(task.description)}")


class Speed(ProgressColumn):
    """The items that a bar's task does in a second."""

    def __init__(self, word: str) -> None:
        super().__init__()
        self._word = word

    def render(self, task: Task) -> Text:
        """Return the rate of the last seconds."""
        speed = task.finished_speed or task.speed
        return Text("" if speed is None else f"{speed:,.0f} {self._word}/s")


def say(message: str, *, on: Console | None = None, style: str = "") -> None:
    """Print a message about the work, to standard error unless `on` says otherwise."""
    (on or console(stderr=True)).print(Text(visible_text(message), style))


def answer(message: str, *, style: str = "") -> None:
    """Print a part of the answer to standard output."""
    say(message, on=console(), style=style)


def show_fields(row: Row, *, as_json: bool) -> None:
    """Print one object, a line for each field; a body keeps its lines."""
    if as_json:
        sys.stdout.write(as_document(dict(row)) + "\n")
        return
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    for name, value in row.items():
        lines = isinstance(value, bytes)
        table.add_row(Text(name), Text(visible_text(_decoded(value), indent="")) if lines else cell(value))
    console().print(table)


def as_document(value: object) -> str:
    """Return indented JSON for `--json`, with the values as they are."""
    return visible_json(json.dumps(value, default=_plain, indent=2, ensure_ascii=False))


def as_line(value: object) -> str:
    """Return JSON on one line for `--ndjson`, with the values as they are."""
    return visible_json(json.dumps(value, default=_plain, ensure_ascii=False))


def put_json(document: str) -> None:
    """Write JSON of `as_document` or `as_line` to standard output, at once."""
    sys.stdout.write(document + "\n")
    sys.stdout.flush()


def put(line: Text, *, on: Console | None = None) -> None:
    """Print a line whose values are escaped, to standard output unless `on` says otherwise; it is never wrapped."""
    (on or console()).print(line, no_wrap=True, overflow="ignore", crop=False)


def put_whole(lines: Iterable[Text]) -> None:
    """Write lines whose values are escaped where no terminal is: without styles, which costs a tenth."""
    sys.stdout.write("".join(f"{line.plain}\n" for line in lines))
    sys.stdout.flush()


def wrapped(text: str, room: int) -> Sequence[str]:
    """Break a text into lines of so many cells, between words where possible."""
    return [line.plain.rstrip() for line in Text(text).wrap(Console(width=room), room, overflow="fold")]


def cell(value: object) -> Text:
    """Return a value for a table: its own line breaks are escaped, and it is never markup."""
    if value is None:
        return Text()
    if isinstance(value, datetime):
        return Text(rfc3339(value, "milliseconds"))
    if isinstance(value, dict | list):
        return Text(visible_json(json.dumps(value, default=_plain, ensure_ascii=False)))
    return Text(visible(_decoded(value) if isinstance(value, bytes) else str(value)))


def fail(message: str) -> NoReturn:
    """Print an error to standard error, and exit with 2."""
    console(stderr=True).print(Text.assemble(("error:", "bold red"), " ", visible_text(message)))
    raise typer.Exit(WRONG_USE)


@contextmanager
def exit_on_error() -> Iterator[None]:
    """Turn errors that a user can fix into one line and exit status 2."""
    try:
        yield
    except ConfigError as error:
        fail(str(error))
    except Exception as error:
        from sqlalchemy.exc import DBAPIError  # `--help` needs no SQLAlchemy, which takes as long as all else

        if not isinstance(error, DBAPIError):
            raise
        from inbox.db.dialect import remedy, trouble_text

        fail(f"the database: {trouble_text(error)}{remedy(error)}")


def _decoded(value: bytes) -> str:
    return value.decode("utf-8", "backslashreplace")


def _plain(value: object) -> object:
    if isinstance(value, datetime):
        return rfc3339(value, "microseconds")
    if isinstance(value, bytes):
        return value.decode("utf-8", "backslashreplace")
    if isinstance(value, Decimal):
        return float(value)
    raise TypeError(f"can't show a {type(value).__name__}")
