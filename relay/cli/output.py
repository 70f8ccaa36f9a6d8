"""Output of both command lines: sentences, tables, fields, JSON, progress bars, exit statuses and errors.

All output of commands goes through this module, and all values through `inbox.observe.visible`. Rich parses a string as
markup, so values are passed as `rich.text.Text`.

A listing names its columns, the most important first. The last is a text that fills the remaining width. A terminal shows
as many columns as fit, and wraps long texts. Other outputs get one line per row, with whole values and absolute times.
"""

from __future__ import annotations

import json
import re
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from decimal import Decimal
from itertools import zip_longest
from typing import Any, NoReturn

import msgspec
import typer
from rich.cells import cell_len
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeRemainingColumn
from rich.text import Text

from inbox.clock import SystemClock
from inbox.errors import ConfigError, UnusableCommand
from inbox.events.timestamps import rfc3339
from inbox.observe.visible import visible, visible_json, visible_text
from relay.words import format_count, format_duration, format_relative

FINDING, WRONG_USE = 1, 2
"""Exit statuses other than 0: a finding exists, or the command or configuration is wrong."""

Row = Mapping[str, Any]


def console(*, stderr: bool = False) -> Console:
    """Return a console as wide as the terminal. For other outputs it never wraps, so that programs read whole values."""
    made = Console(stderr=stderr, highlight=False)
    return made if made.is_terminal else Console(stderr=stderr, highlight=False, width=10_000, soft_wrap=True)


def terminal_width() -> int | None:
    """Return the width of the terminal; None if standard output is not a terminal."""
    out = console()
    return out.width if out.is_terminal else None


# --- sentences and errors


def say(message: str, *, style: str = "") -> None:
    """Print a message to standard error."""
    console(stderr=True).print(Text(visible_text(message), style))


def answer(message: str) -> None:
    """Print a result to standard output."""
    console().print(Text(visible_text(message)))


def put(*lines: Text, stderr: bool = False) -> None:
    """Print lines without wrapping; their values must be escaped."""
    out = console(stderr=stderr)
    for line in lines:
        out.print(line, no_wrap=True, overflow="ignore", crop=False)


def put_json(value: object, *, indent: int | None = 2) -> None:
    """Write JSON to standard output and flush it."""
    document = json.dumps(value, default=_plain, indent=indent, ensure_ascii=False)
    sys.stdout.write(visible_json(document) + "\n")
    sys.stdout.flush()


def _plain(value: object) -> object:
    if isinstance(value, datetime):
        return rfc3339(value, "microseconds")
    if isinstance(value, bytes):
        return value.decode("utf-8", "backslashreplace")
    if isinstance(value, Decimal):
        return float(value)
    return msgspec.to_builtins(value)


def wrap(text: str, room: int) -> Sequence[str]:
    """Break a text into lines of at most `room` cells, between words where possible."""
    return [line.plain.rstrip() for line in Text(text).wrap(Console(width=room), room, overflow="fold")]


def hang(label: str, text: str, width: int | None, style: str = "", *, label_style: str = "") -> Iterator[Text]:
    """Yield a text beside its label, in lines of at most `width` cells; None: in one line. Both must be escaped."""
    room = None if width is None else max(width - cell_len(label), _LEAST_ROOM)
    for line in [text] if room is None or cell_len(text) <= room else wrap(text, room):
        yield Text.assemble((label, label_style), (line, style))
        label = " " * cell_len(label)


_LEAST_ROOM = 20


def fail(message: str, status: int = WRONG_USE) -> NoReturn:
    """Print an error to standard error, and exit. With the status FINDING the message is not marked as an error."""
    if status == FINDING:
        say(message)
    else:
        console(stderr=True).print(Text.assemble(("error:", "bold red"), " ", visible_text(message)))
    raise typer.Exit(status)


@contextmanager
def exit_on_error() -> Iterator[None]:
    """Turn errors that a user can fix into one line and exit status 2."""
    try:
        yield
    except typer.Exit:
        raise
    except (ConfigError, UnusableCommand) as error:
        fail(str(error))
    except Exception as error:
        from sqlalchemy.exc import (
            DBAPIError,
        )  # imported late: `--help` doesn't need it, and it takes as long as all other imports

        if not isinstance(error, DBAPIError):
            raise
        from inbox.db.dialect import remedy, trouble_text

        fail(f"the database: {trouble_text(error)}{remedy(error)}")


# --- progress

_BAR_AFTER_SECONDS = 1.0
"""Delay before a bar appears."""


@contextmanager
def bar(doing: str, total: int | None = None) -> Iterator[Callable[..., None]]:
    """Show a progress bar at a terminal while a long block runs; it vanishes at the end.

    Yields a function that sets the amount done (by default, adds one) and optionally `doing` and `total`.
    """
    terminal = console(stderr=True)
    columns = SpinnerColumn(), TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn()
    progress = Progress(
        *columns, TimeRemainingColumn(), console=terminal, transient=True, disable=not terminal.is_terminal
    )
    task = progress.add_task(visible(doing), total=total)

    def report(done: int | None = None, doing: str = doing, total: int | None = total) -> None:
        more = 1 if done is None else None
        progress.update(task, completed=done, advance=more, description=visible(doing), total=total)

    timer = threading.Timer(_BAR_AFTER_SECONDS, progress.start)
    timer.daemon = True
    timer.start()
    try:
        yield report
    finally:
        timer.cancel()
        timer.join()
        progress.stop()


# --- tables

_GAP = 2
_LEAST_TEXT = 16
"""Minimum cells of a column whose text wraps. With less room, the column is omitted."""
_NUMBER = re.compile(r"[\d,]+\+?")
_STATES = frozenset({"state", "kind", "health", "change", "held"})
_STYLES: dict[str, str] = {
    **dict.fromkeys(("dead", "blocked", "failed", "refused", "rejected", "retired", "gone", "firing", "stuck"), "red"),
    **dict.fromkeys(
        ("retrying", "attempt_failed", "abandoned", "open", "half_open", "paused", "held back", "held", "limited"),
        "yellow",
    ),
    **dict.fromkeys(("delivered", "unchanged", "done", "running", "ok", "arrived"), "green"),
    **dict.fromkeys(("in_flight", "asked", "busy"), "cyan"),
    **dict.fromkeys(("superseded", "skipped", "cancelled", "unrouted", "stopped"), "bright_black"),
}


def choose_style(state: str) -> str:
    """Return the colour of a state: red if an operator must act, yellow if it recovers by itself, green if all is well."""
    return _STYLES.get(state, "")


def show(
    rows: Iterable[Row],
    columns: Sequence[str],
    *,
    empty: str = "",
    more: str = "",
    wide: bool | None = None,
) -> None:
    """Print a table.

    Args:
        rows: the rows.
        columns: members of a row, the important ones first.
        empty: sentence to print when there are no rows.
        more: hint below the table, such as the option for the next page.
        wide: don't fit the table to the terminal; None: the command has no such option.
    """
    rows = list(rows)
    width = None if wide else terminal_width()
    if not rows:
        say(empty)
    elif width is None:  # rich would take ten times as long
        sys.stdout.write("".join(f"{line.plain}\n" for line in table(rows, columns)))
        sys.stdout.flush()
    else:
        lines, omitted = fit_table(rows, columns, width, SystemClock().now())
        put(*lines)
        hints = [more] if more else []
        hints += [f"{format_count(omitted, 'more column')}: --wide"] if omitted and wide is not None else []
        if hints:
            say("; ".join(hints), style="bright_black")


def show_fields(row: Row) -> None:
    """Print a row with a line for each field; a body keeps its lines."""
    room = max(map(len, row)) + _GAP
    for name, value in row.items():
        text = visible_text(str(_plain(value)), indent="") if isinstance(value, bytes) else format_value(value)
        first, *others = str(text).splitlines() or [""]
        put(*hang(f"{name:<{room}}", first, terminal_width(), label_style="bold"))
        put(*(line for other in others for line in hang(" " * room, other, terminal_width())))


def table(rows: Sequence[Row], columns: Sequence[str], rooms: Mapping[str, int] | None = None) -> list[Text]:
    """Lay out rows below a heading, one line each, with absolute times. `rooms` has the least width of columns."""
    cells = [[format_value(_member(row, name)) for name in columns] for row in rows]
    texts = [list(columns), *cells]
    widths = [max(map(cell_len, column)) for column in zip(*texts, strict=True)]
    if rooms is not None:
        widths = [max(rooms.get(name, 0), width) for name, width in zip(columns, widths, strict=True)]
    return _draw(columns, texts, widths)


def fit_table(rows: Sequence[Row], columns: Sequence[str], width: int, now: datetime) -> tuple[list[Text], int]:
    """Lay out rows in lines of at most `width`, with times relative to now; also return the number of omitted columns."""
    filled = [name for name in columns if any(_member(row, name) not in (None, "", [], {}) for row in rows)]
    texts = {
        name: [make_title(name), *(format_value(_member(row, name), name, now) for row in rows)] for name in filled
    }
    whole = {name: max(map(cell_len, column)) for name, column in texts.items()}
    texts_that_wrap = {name for name in filled if all(isinstance(_member(row, name), str | None) for row in rows)}
    texts_that_wrap -= _STATES
    least = {name: min(whole[name], _LEAST_TEXT) if name in texts_that_wrap else whole[name] for name in filled}
    rooms: dict[str, int] = {}
    left = width + _GAP
    for name in dict.fromkeys((filled[0], filled[-1], *filled)):
        needed = max(least[name], cell_len(make_title(name))) + _GAP
        if needed <= left or not rooms:
            rooms[name] = needed - _GAP
            left -= needed
    shown = [name for name in filled if name in rooms]
    for name in shown:
        grown = min(left, whole[name] - rooms[name])
        rooms[name] += max(grown, 0)
        left -= max(grown, 0)
    lines = _draw(shown, [*zip(*(texts[name] for name in shown), strict=True)], [rooms[name] for name in shown])
    return lines, len(filled) - len(shown)


def _draw(columns: Sequence[str], rows: Sequence[Sequence[str]], widths: Sequence[int]) -> list[Text]:
    """Draw rows, the first one as the heading, and wrap texts that are wider than their column."""
    numbers = [all(_NUMBER.fullmatch(text or "0") for text in column[1:]) for column in zip(*rows, strict=True)]
    drawn: list[Text] = []
    for number, row in enumerate(rows):
        cells = [
            [text] if cell_len(text) <= width else wrap(text, width) for text, width in zip(row, widths, strict=True)
        ]
        for texts in zip_longest(*cells, fillvalue=""):
            line = Text(style="" if number else "bold")
            for name, text, width, is_number in zip(columns, texts, widths, numbers, strict=True):
                padding = " " * (width - cell_len(text))
                style = choose_style(text) if number and name in _STATES else ""
                line.append(padding + text if is_number else text + padding, style).append(" " * _GAP)
            line.rstrip()
            drawn.append(line)
    return drawn


def make_title(name: str) -> str:
    """Return the title of a column at a terminal."""
    short = name.removeprefix("last_").removesuffix("_at").removesuffix("_seconds")
    return short.replace("_per_minute", "/min").replace("_", " ")


def _member(row: Row, name: str) -> Any:  # noqa: ANN401  # a value of any column
    if name == "entity" and name not in row:
        named = row.get("entity_type"), row.get("entity_id")
        return None if named == (None, None) else "/".join("" if part is None else part for part in named)
    return row.get(name)


def format_value(value: object, name: str = "", now: datetime | None = None) -> str:
    """Format a value for a table, escaped and on one line; with `now`, times and durations are relative and readable."""
    if value is None:
        return ""
    if isinstance(value, datetime):
        return rfc3339(value, "milliseconds") if now is None else format_relative(value, now)
    if isinstance(value, float):
        return format_duration(value) if now is not None and name.endswith("_seconds") else f"{value:g}"
    if isinstance(value, list) and all(isinstance(each, str) for each in value):
        value = ", ".join(value)
    if isinstance(value, dict | list):
        return visible_json(json.dumps(value, default=_plain, ensure_ascii=False))
    return visible(str(_plain(value) if isinstance(value, bytes) else value))
