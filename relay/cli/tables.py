"""Listings: tables that fit the terminal, JSON arrays, and JSON lines.

A listing declares its columns, the important ones first. At a terminal as many as fit are shown, and long texts wrap.
Elsewhere a table always has the same columns, and a row is one line with absolute times. `--wide` shows everything.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any, Literal

import msgspec
from rich.cells import cell_len
from rich.table import Table
from rich.text import Text

from inbox.clock import SystemClock
from relay.cli.terminal import Row, as_document, as_line, cell, console, fail, put, put_json, put_whole, say
from relay.words import clock_time, counted, lasting, relative

Kind = Literal["text", "number", "time", "duration", "state", "entity"]
"""A `duration` is in seconds. An `entity` shows `entity_type` and `entity_id` of the row as TYPE/ID."""

_SHOWN = 50
"""Rows of a listing where no `--limit` is given."""
_GAP = 2
_WRAPS = {"text": 16, "entity": 24}
"""Cells of these kinds wrap; a column of them is shown where there is room for so many characters."""
_USUAL = {**_WRAPS, "number": 6, "time": 9, "duration": 8, "state": 14}
"""Room for a column whose values are not known yet."""
_NUMBERS = frozenset({"number", "duration"})

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


def style_of(state: str) -> str:
    """Return the colour of a state: red where somebody must act, yellow where it goes on by itself, green where all is well."""
    return _STYLES.get(state, "")


class Column(msgspec.Struct, frozen=True):
    """A column of a listing."""

    name: str
    """Field of the row, and name for `--columns`."""
    kind: Kind = "text"
    heading: str = ""
    """Shown above it at a terminal, and another name for `--columns`; empty: the name."""
    on_request: bool = False
    """Shown only with `--wide` or `--columns`."""
    last: bool = False
    """Shown behind all others, however important it is: a text that takes the room that is left."""

    @property
    def title(self) -> str:
        """Return the text above the column."""
        return self.heading or self.name.replace("_", " ")


class Format(msgspec.Struct, frozen=True):
    """The form in which a user wants a listing."""

    style: Literal["table", "json", "ndjson"] = "table"
    wide: bool = False
    names: tuple[str, ...] = ()
    """Names of the wanted columns; empty: those that fit."""
    has_wide: bool = True
    """The command has the option `--wide`, which the hint under a table names."""

    @property
    def is_table(self) -> bool:
        """Tell whether people read it."""
        return self.style == "table"

    def most(self, limit: int | None) -> int | None:
        """Return the most rows to read, by the option `--limit`; None: every one."""
        return limit or (None if self.style == "ndjson" else _SHOWN)


TABLE = Format()


def format_of(
    columns: Sequence[Column],
    *,
    as_json: bool = False,
    as_ndjson: bool = False,
    wide: bool = False,
    names: str | None = None,
) -> Format:
    """Return what the options `--json`, `--ndjson`, `--wide` and `--columns` ask for; fail where they contradict."""
    if as_json and as_ndjson:
        fail("--json and --ndjson exclude each other: choose one")
    if (as_json or as_ndjson) and (names or wide):
        fail("--wide and --columns are for tables; JSON always has every field")
    known = {name: column.name for column in columns for name in (column.title.replace(" ", "_"), column.name)}
    wanted = [] if names is None else [name.strip().replace(" ", "_") for name in names.split(",")]
    for name in wanted:
        if name not in known:
            from inbox.config.mistakes import nearest

            fail(f"--columns: there is no column {name!r}; {nearest(name, [column.name for column in columns])}")
    style: Literal["table", "json", "ndjson"] = "json" if as_json else "ndjson" if as_ndjson else "table"
    return Format(style, wide, tuple(known[name] for name in wanted))


def show(rows: Iterable[Row], columns: Sequence[Column], form: Format = TABLE, *, empty: str, more: str = "") -> None:
    """Print a listing: a table for people, or whole objects as JSON.

    Args:
        rows: the objects.
        columns: the columns of the table, the important ones first.
        form: the form that the user wants.
        empty: a sentence for people, in place of a table without rows.
        more: a hint under the table, such as how to get the next page.
    """
    if form.style == "ndjson":
        for row in rows:
            put_json(as_line(dict(row)))
        return
    rows = list(rows)
    if form.style == "json":
        put_json(as_document([dict(row) for row in rows]))
    elif not rows:
        say(empty)
    elif (out := console()).is_terminal:
        table = layout(rows, columns, form, width=None if form.wide else out.width, now=SystemClock().now())
        for line in table.lines:
            put(line, on=out)
        omitted = f"{counted(len(table.omitted), 'more column')}: --wide" if table.omitted and form.has_wide else ""
        if hints := [hint for hint in (more, omitted) if hint]:
            say("; ".join(hints), style="bright_black")
    else:
        put_whole(layout(rows, columns, form, width=None).lines)


class Layout(msgspec.Struct, frozen=True):
    """A table as lines; the first is its heading."""

    lines: tuple[Text, ...]
    omitted: tuple[str, ...] = ()
    """Columns that are not shown, and have values."""


def layout(
    rows: Sequence[Row], columns: Sequence[Column], form: Format, *, width: int | None, now: datetime | None = None
) -> Layout:
    """Arrange rows in lines of at most `width`, where long texts wrap and times are relative to `now`.

    Without a width lines have any length, and times are absolute.
    """
    by_name = {column.name: column for column in columns}
    values = [{column.name: _value(column, row) for column in columns} for row in rows]
    asked = [by_name[name] for name in form.names]
    if width is None:
        shown = asked or _in_order(column for column in columns if form.wide or not column.on_request)
        return Layout(_whole(shown, values))
    filled = [each for each in columns if any(value[each.name] not in (None, "", [], {}) for value in values)]
    natural = {each.name: max(cell_len(_text(each, value, now)) for value in values) for each in filled}
    shown = asked or _fitting([each for each in filled if not each.on_request], natural, width)
    omitted = tuple(column.name for column in filled if column not in shown)
    return Layout(_drawn(shown, values, width, now), omitted)


def _in_order(shown: Iterable[Column]) -> list[Column]:
    return sorted(shown, key=lambda column: column.last)


def _fitting(possible: Sequence[Column], natural: Mapping[str, int], width: int) -> list[Column]:
    """Return the columns that fit with their least widths, by importance; at least the first. The last gets a third."""
    shown: list[Column] = []
    used = -_GAP
    for column in possible:
        usual = width // 3 if column.last else _WRAPS.get(column.kind, natural[column.name])
        needed = _GAP + max(min(natural[column.name], usual), len(column.title))
        if used + needed <= width or not shown:
            used += needed
            shown.append(column)
    return _in_order(shown)


def _drawn(
    columns: Sequence[Column],
    rows: Sequence[Row],
    width: int,
    now: datetime | None,
) -> tuple[Text, ...]:
    """Draw a table for a terminal, where long texts wrap."""
    table = Table(box=None, pad_edge=False, padding=(0, _GAP, 0, 0), header_style="bold")
    for column in columns:
        table.add_column(
            Text(column.title),
            justify="right" if column.kind in _NUMBERS else "left",
            no_wrap=column.kind not in _WRAPS,
            overflow="fold",
        )
    for row in rows:
        cells = [(_text(column, row, now), column.kind) for column in columns]
        table.add_row(*(Text(text, style_of(text) if kind == "state" else "") for text, kind in cells))
    out = console()
    lines = out.render_lines(table, out.options.update(width=width), pad=False)
    drawn = tuple(Text.assemble(*((part.text, part.style or "") for part in line)) for line in lines)
    for line in drawn:
        line.rstrip()
    return drawn


def _whole(columns: Sequence[Column], rows: Sequence[Row], rooms: Mapping[str, int] = {}) -> tuple[Text, ...]:
    """Draw a table whose rows are one line each, of any length; columns have at least as much room as `rooms` says."""
    cells = [[column.name for column in columns], *([_text(column, row, None) for column in columns] for row in rows)]
    widths = [
        max(rooms.get(column.name, 0), *map(cell_len, texts))
        for column, texts in zip(columns, zip(*cells, strict=True), strict=True)
    ]
    lines: list[Text] = []
    for texts in cells:
        line = Text(style="" if lines else "bold")
        for column, text, width in zip(columns, texts, widths, strict=True):
            padding = " " * (width - cell_len(text))
            style = style_of(text) if column.kind == "state" else ""
            line.append(padding + text if column.kind in _NUMBERS else text + padding, style).append(" " * _GAP)
        line.rstrip()
        lines.append(line)
    return tuple(lines)


class Rolling:
    """A table whose rows come one after another: its heading once, then one line each, in columns of a constant width."""

    def __init__(self, columns: Sequence[Column], form: Format = TABLE) -> None:
        self._form, self._out = form, console()
        self._rooms = {each.name: _USUAL[each.kind] for each in columns if not each.last}
        self._columns = _in_order(columns)
        self._is_live = self._out.is_terminal and not form.wide
        self._has_heading = False

    def add(self, row: Row, *, shown: Row) -> None:
        """Print a row, as soon as it is there. `shown` has fields that only the table shows."""
        if not self._form.is_table:
            put_json(as_line(dict(row)))
            return
        values = {column.name: _value(column, {**row, **shown}) for column in self._columns}
        if self._is_live:
            now = SystemClock().now()
            times = {name: value for name, value in values.items() if isinstance(value, datetime)}
            values |= {name: clock_time(value, now) for name, value in times.items()}
        for line in _whole(self._columns, [values], self._rooms)[self._has_heading :]:
            put(line, on=self._out)
        self._has_heading = True
        self._out.file.flush()


def _value(column: Column, row: Row) -> Any:  # noqa: ANN401  # a value of any column
    if column.kind == "entity" and column.name not in row:
        named = row.get("entity_type"), row.get("entity_id")
        return None if named == (None, None) else "/".join("" if part is None else part for part in named)
    return row.get(column.name)


def _text(column: Column, row: Row, now: datetime | None) -> str:
    value = row[column.name]
    if now is not None and isinstance(value, datetime):
        return relative(value, now)
    if column.kind == "duration" and isinstance(value, int | float):
        return lasting(value) if now is not None else f"{value:g}"
    if isinstance(value, list) and all(isinstance(each, str) for each in value):
        value = ", ".join(value)
    return cell(value).plain
