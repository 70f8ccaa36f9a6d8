"""Listings: tables that fit the terminal, JSON arrays, and JSON lines.

A listing declares its columns, the important ones first. At a terminal as many as fit are shown, a row is one line, and a
long cell is cut. Elsewhere a table always has the same columns, whole values and absolute times. `--wide` shows everything.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Any, Literal

import msgspec
from rich.cells import cell_len, set_cell_size
from rich.text import Text

from inbox.cli.terminal import Row, as_document, as_line, cell, console, fail, put, put_json, say
from inbox.cli.wording import clock_time, counted, lasting, relative
from inbox.clock import SystemClock

Kind = Literal["text", "number", "time", "duration", "state", "entity"]
"""A `duration` is in seconds. An `entity` shows `entity_type` and `entity_id` of the row as TYPE/ID."""

_SHOWN = 50
"""Rows of a listing where no `--limit` is given."""
_GAP = "  "
_LEAST = {"text": 16, "entity": 24}
"""Cells of these kinds are cut to so many characters where room is short; others are never cut."""

_PART_OF_LAST = 3
"""The part of the width that the last column gets at least, before less important columns are shown."""
_WHOLE_TIME = len("2026-01-31T10:00:00.123Z")
_USUAL = {"text": 16, "number": 6, "time": 9, "duration": 8, "state": 14, "entity": 24}
"""Room for a column whose values are not known yet."""

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
    least: int = 0
    """Room that it gets at least, where its values need it; 0: what is usual for its kind."""
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


def show(
    rows: Iterable[Row],
    columns: Sequence[Column],
    form: Format = TABLE,
    *,
    empty: str,
    more: str = "",
    now: datetime | None = None,
) -> None:
    """Print a listing: a table for people, or whole objects as JSON.

    Args:
        rows: the objects.
        columns: the columns of the table, the important ones first.
        form: the form that the user wants.
        empty: a sentence for people, in place of a table without rows.
        more: a hint under the table, such as how to get the next page.
        now: the time that relative times are seen from.
    """
    if form.style == "ndjson":
        for row in rows:
            put_json(as_line(dict(row)))
        return
    rows = list(rows)
    if form.style == "json":
        put_json(as_document([dict(row) for row in rows]))
        return
    if not rows:
        say(empty)
        return
    out = console()
    width = out.width if out.is_terminal and not form.wide else None
    table = layout(rows, columns, form, width=width, relative_to=(now or SystemClock().now()) if width else None)
    for line in table.lines:
        put(line, on=out)
    hints = [more] if more else []
    if not form.has_wide:
        pass
    elif table.omitted:
        hints.append(f"{counted(len(table.omitted), 'more column')}: --wide")
    elif table.is_cut:
        hints.append("whole cells: --wide")
    if hints and out.is_terminal:
        say("; ".join(hints), style="bright_black")


def next_page(rows: Sequence[Row], limit: int | None, key: str) -> str:
    """Return the hint for the next page of a listing, whose rows are ordered by `key` downwards; empty on the last."""
    return f"{len(rows)} shown; `--before {rows[-1][key]}` for the next page" if len(rows) == limit else ""


class Rolling:
    """A table whose rows come one after another: its heading once, then columns of a constant width."""

    def __init__(self, columns: Sequence[Column], form: Format = TABLE) -> None:
        self._form = form
        self._out = console()
        width = self._out.width if self._out.is_terminal and not form.wide else None
        usual = {column.name: column.least or _USUAL[column.kind] for column in columns}
        wanted = usual | {column.name: width or 0 for column in columns if column.last}
        shown = columns if width is None else _fitting(columns, wanted, width, every=False)
        self._width = width
        self._columns = _in_order(shown)
        if width is None:
            usual |= {column.name: _WHOLE_TIME for column in columns if column.kind == "time"}
        self._room = {column.name: max(usual[column.name], len(self._title(column))) for column in shown}
        self._has_heading = False

    def add(self, row: Row, *, shown: Row, now: datetime | None = None) -> None:
        """Print a row, as soon as it is there. `shown` has fields that only the table shows."""
        if not self._form.is_table:
            put_json(as_line(dict(row)))
            return
        if not self._has_heading:
            self._print([(column, self._title(column), "bold") for column in self._columns])
            self._has_heading = True
        moment = now or SystemClock().now()
        cells = []
        for column in self._columns:
            value = _value(column, {**row, **shown})
            if self._width is not None and isinstance(value, datetime):
                value = clock_time(value, moment)
            text = _text(column.kind, value, None)
            cells.append((column, text, style_of(text) if column.kind == "state" else ""))
        self._print(cells)

    def _title(self, column: Column) -> str:
        return column.name if self._width is None else column.title

    def _print(self, cells: Sequence[tuple[Column, str, str]]) -> None:
        line = Text(no_wrap=True, overflow="ignore")
        for column, value, style in cells:
            room = self._room[column.name]
            is_cut = self._width is not None and column.kind in _LEAST and not column.last
            text = cut(value, room) if is_cut else value
            padding = " " * max(room - cell_len(text), 0)
            line.append(f"{padding}{text}" if column.kind in {"number", "duration"} else f"{text}{padding}", style)
            line.append(_GAP)
        line.rstrip()
        if self._width is not None:
            line.truncate(self._width, overflow="ellipsis")
        put(line, on=self._out)
        self._out.file.flush()


class Layout(msgspec.Struct, frozen=True):
    """A table as lines."""

    lines: tuple[Text, ...]
    omitted: tuple[str, ...] = ()
    """Columns that are not shown, and have values."""
    is_cut: bool = False
    """A cell is not whole."""


def layout(
    rows: Sequence[Row], columns: Sequence[Column], form: Format, *, width: int | None, relative_to: datetime | None
) -> Layout:
    """Arrange rows in lines of at most `width`; None: of any length, with every value whole.

    Times are relative to `relative_to`; None: absolute.
    """
    by_name = {column.name: column for column in columns}
    asked = [by_name[name] for name in form.names]
    if width is None:
        shown = asked or [column for column in columns if form.wide or not column.on_request]
        cells = {column.name: _cells(column, rows, relative_to) for column in shown}
        widths = {name: max(map(cell_len, column)) for name, column in cells.items()}
        return Layout(_lines(asked or _in_order(shown), cells, widths))
    cells = {column.name: _cells(column, rows, relative_to) for column in asked or columns}
    filled = [column for column in asked or columns if asked or any(cells[column.name][1:])]
    possible = [column for column in filled if asked or not column.on_request]
    natural = {column.name: max(map(cell_len, cells[column.name])) for column in filled}
    shown = _fitting(possible, natural, width, every=bool(asked))
    widths = _widths(shown, natural, width)
    omitted = tuple(column.name for column in filled if column not in shown)
    is_cut = any(widths[column.name] < natural[column.name] for column in shown)
    return Layout(_lines(asked or _in_order(shown), cells, widths), omitted, is_cut)


def _in_order(shown: Sequence[Column]) -> list[Column]:
    return sorted(shown, key=lambda column: column.last)


def _fitting(possible: Sequence[Column], natural: dict[str, int], width: int, *, every: bool) -> list[Column]:
    """Return the columns that fit with their least widths, in order of importance; at least the first."""
    shown: list[Column] = []
    used = -len(_GAP)
    for column in possible:
        needed = len(_GAP) + _least(column, natural, width)
        if used + needed > width and shown and not every:
            continue
        used += needed
        shown.append(column)
    return shown


def _least(column: Column, natural: dict[str, int], width: int) -> int:
    usual = width // _PART_OF_LAST if column.last else _LEAST.get(column.kind, natural[column.name])
    return min(natural[column.name], column.least or usual)


def _widths(shown: Sequence[Column], natural: dict[str, int], width: int) -> dict[str, int]:
    """Share the room: every column gets its least width, and the columns that want more get equal parts of the rest."""
    widths = {column.name: _least(column, natural, width) for column in shown}
    room = width - sum(widths.values()) - len(_GAP) * (len(shown) - 1)
    while room > 0 and (hungry := [name for name in widths if widths[name] < natural[name]]):
        part = max(room // len(hungry), 1)
        for name in hungry[:room]:
            given = min(part, natural[name] - widths[name])
            widths[name] += given
            room -= given
    for name in reversed(widths):  # on the narrowest terminal, or with many chosen columns
        if room < 0:
            taken = min(-room, max(widths[name] - 1, 0))
            widths[name] -= taken
            room += taken
    return widths


def _lines(shown: Sequence[Column], cells: dict[str, list[str]], widths: dict[str, int]) -> tuple[Text, ...]:
    lines = []
    for number in range(len(next(iter(cells.values())))):
        line = Text(no_wrap=True, overflow="ignore")
        for column in shown:
            value, room = cells[column.name][number], widths[column.name]
            style = "bold" if number == 0 else style_of(value) if column.kind == "state" else ""
            line.append(_padded(value, room, right=column.kind in {"number", "duration"}), style)
            line.append(_GAP)
        line.rstrip()
        lines.append(line)
    return tuple(lines)


def _padded(value: str, room: int, *, right: bool) -> str:
    shown = cut(value, room)
    padding = " " * (room - cell_len(shown))
    return f"{padding}{shown}" if right else f"{shown}{padding}"


def cut(value: str, room: int) -> str:
    """Return a value in at most so many cells, with `…` at its end where something is missing."""
    return value if cell_len(value) <= room else f"{set_cell_size(value, max(room - 1, 0)).rstrip()}…"


def _cells(column: Column, rows: Iterable[Row], now: datetime | None) -> list[str]:
    """Return the title and the values of a column, escaped."""
    title = column.name if now is None else column.title
    return [title, *(_text(column.kind, _value(column, row), now) for row in rows)]


def _value(column: Column, row: Row) -> Any:  # noqa: ANN401  # a value of any column
    if column.kind == "entity" and column.name not in row:
        named = row.get("entity_type"), row.get("entity_id")
        return None if named == (None, None) else "/".join("" if part is None else part for part in named)
    return row.get(column.name)


def _text(kind: Kind, value: object, now: datetime | None) -> str:
    if now is not None and isinstance(value, datetime):
        return relative(value, now)
    if kind == "duration" and isinstance(value, int | float):
        return lasting(value) if now is not None else f"{value:g}"
    if isinstance(value, list) and all(isinstance(each, str) for each in value):
        value = ", ".join(value)
    return cell(value).plain
