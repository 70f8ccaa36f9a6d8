"""What both command lines share: tables, `--json`, bars, exit statuses, and how an error is told."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from decimal import Decimal
from typing import Any, NoReturn

import typer
from rich.console import Console
from rich.progress import Progress, ProgressColumn
from rich.table import Table
from sqlalchemy.exc import DBAPIError

from inbox.errors import ConfigError
from inbox.timestamps import time_text

FINDING, WRONG_USE = 1, 2
"""Exit statuses besides 0: the answer is a finding; the command or the configuration is wrong."""

Row = Mapping[str, Any]


def console(*, stderr: bool = False) -> Console:
    """A terminal as wide as it is, or lines of any length when the output goes elsewhere."""
    made = Console(stderr=stderr, highlight=False)
    return made if made.is_terminal else Console(stderr=stderr, highlight=False, width=10_000, soft_wrap=True)


def bar(*columns: ProgressColumn) -> Progress:
    """A bar for somebody who watches; nothing where nobody does."""
    terminal = console(stderr=True)
    return Progress(*columns, console=terminal, transient=True, disable=not terminal.is_terminal)


def show(rows: Sequence[Row], *, as_json: bool, columns: Sequence[str], empty: str) -> None:
    """A listing: a table of `columns` for people, or an array of whole objects."""
    if as_json:
        sys.stdout.write(json.dumps([dict(row) for row in rows], default=_plain, indent=2, ensure_ascii=False) + "\n")
        return
    if not rows:
        console(stderr=True).print(empty)
        return
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        table.add_column(
            column, overflow="fold", justify="right" if isinstance(rows[0].get(column), int | float) else "left"
        )
    for row in rows:
        table.add_row(*(printable(row.get(column)) for column in columns))
    console().print(table)


def show_fields(row: Row, *, as_json: bool) -> None:
    """One object, a line for each field."""
    if as_json:
        sys.stdout.write(json.dumps(dict(row), default=_plain, indent=2, ensure_ascii=False) + "\n")
        return
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    for name, value in row.items():
        table.add_row(name, printable(value))
    console().print(table)


def printable(value: object) -> str:
    """A value as a cell. Control and markup characters of a webhook never reach the terminal."""
    if value is None:
        return ""
    if isinstance(value, datetime):
        return f"{time_text(value)[:23]}Z"
    if isinstance(value, bytes):
        value = value.decode("utf-8", "backslashreplace")
    if isinstance(value, dict | list):
        value = json.dumps(value, default=_plain, ensure_ascii=False)
    text = "".join(c if c.isprintable() or c == "\n" else c.encode("unicode_escape").decode() for c in str(value))
    return text.replace("[", "\\[")


def fail(message: str) -> NoReturn:
    """Say what is wrong on standard error, and exit with 2."""
    console(stderr=True).print(f"[bold red]error:[/] {printable(message)}")
    raise typer.Exit(WRONG_USE)


@contextmanager
def told() -> Iterator[None]:
    """Turn the errors a user can mend into one line and exit status 2."""
    try:
        yield
    except ConfigError as error:
        fail(str(error))
    except DBAPIError as error:
        fail(f"the database: {str(error.orig).strip()}")


def _plain(value: object) -> object:
    if isinstance(value, datetime):
        return time_text(value)
    if isinstance(value, bytes):
        return value.decode("utf-8", "backslashreplace")
    if isinstance(value, Decimal):
        return float(value)
    raise TypeError(f"can't show a {type(value).__name__}")
