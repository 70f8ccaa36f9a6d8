"""Queries of docs/reference/dba.md, and their results in the page's format."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any, NamedTuple

from sqlalchemy import Connection, text

from inbox.db.dialect import POSTGRES, SQLITE
from tests.docs.pages import PAGES, Block, blocks, find_expected

PAGE = "docs/reference/dba.md"
_VARIES = re.compile(
    r"\w*(_seconds|bytes|pid|behind|connections|dead_rows)|rows_estimated|last_vacuum_at|application_name|longest_transaction"
)
"""Columns that are always masked."""
_TIME = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\S*")
_EVENTS_UNTIL = datetime(2026, 1, 3, tzinfo=UTC)
"""End of the events' times; later times are masked."""
_DIALECTS = {"sql": (POSTGRES, SQLITE), "sql postgres": (POSTGRES,), "sql sqlite": (SQLITE,)}


class Question(NamedTuple):
    """One query of the page."""

    text: str
    statement: str
    answer: str | None
    line: int
    dialects: tuple[str, ...]


def questions(dialect: str) -> list[Question]:
    """Return the queries for a dialect, in the order of the page."""
    page = blocks(PAGES[PAGE])
    found = [
        Question(
            _question(page, position),
            block.text.strip().removesuffix(";"),
            find_expected(page, position),
            block.line,
            _DIALECTS[block.info],
        )
        for position, block in enumerate(page)
        if block.info.startswith("sql")
    ]
    return [question for question in found if dialect in question.dialects]


def _question(page: Sequence[Block], position: int) -> str:
    """Return the last paragraph with a question before the block, or an empty text."""
    paragraphs = [" ".join(each.split()) for each in page[position].after.split("\n\n")]
    return next((each for each in reversed(paragraphs) if "?" in each), "")


def answer(connection: Connection, statement: str) -> str | None:
    """Return the result of a statement in the page's format, or None for a command."""
    result = connection.execute(text(statement.replace(":", "\\:")))
    if not result.returns_rows:
        return None
    names = list(result.keys())
    rows = [[_shown(name, value) for name, value in zip(names, row, strict=True)] for row in result]
    widths = [max(len(line[at]) for line in (names, *rows)) for at in range(len(names))]
    lines = (" | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) for line in (names, *rows))
    return "".join(f"{line.rstrip()}\n" for line in lines)


def _shown(name: str, value: Any) -> str:  # noqa: ANN401, PLR0911  # any value of a row; one line for each type
    if _VARIES.fullmatch(name):
        return "…"
    match value:
        case None:
            return "-"
        case float() | Decimal():
            return f"{float(value):g}"
        case list():
            return json.dumps(value)
        case datetime():
            return f"{value.astimezone(UTC):%Y-%m-%d %H:%M:%S}" if value < _EVENTS_UNTIL else "…"
        case str() if _TIME.fullmatch(value):
            return _shown(name, datetime.fromisoformat(value))
        case bool() | int() if isinstance(value, bool) or name.startswith("is_"):
            return "true" if value else "false"
    return str(value)
