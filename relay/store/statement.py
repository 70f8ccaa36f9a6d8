"""SQL statements for both databases: one text, whose fragments are filled in for a dialect on first use."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from datetime import datetime
from operator import attrgetter
from typing import Any, NamedTuple, cast

from sqlalchemy import TextClause, text

from inbox.db.dialect import Sql, is_storable, make_storable, rows_param
from inbox.events.timestamps import time_text


class _Fragments:
    """Takes the place of `Sql` in the text of a statement, and returns a placeholder for each fragment."""

    def __init__(self) -> None:
        self._kept: list[tuple[str, tuple[str, ...], Mapping[str, Any]]] = []

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401  # a fragment, or its factory
        if not callable(getattr(Sql, name, None)):
            return self._mark(name)
        return lambda *arguments, **named: self._mark(name, *arguments, **named)

    def _mark(self, name: str, /, *arguments: str, **named: Any) -> str:  # noqa: ANN401  # passed through
        self._kept.append((name, arguments, named))
        return f"\ue000{len(self._kept) - 1}\ue001"

    def fill(self, words: str, real: Sql) -> str:
        """Replace the placeholders in a text by the fragments of a dialect."""

        def fragment(mark: re.Match[str]) -> str:
            name, arguments, named = self._kept[int(mark[1])]
            found = getattr(real, name)
            return str(found(*(self.fill(each, real) for each in arguments), **named) if callable(found) else found)

        return re.sub("\ue000(\\d+)\ue001", fragment, words)


_fragments = _Fragments()
sql = cast("Sql", _fragments)
"""The fragments for writing statements. They are placeholders, as the dialect is not known yet."""


class _Recording(Sql):
    """Records the columns of each parameter that is a table."""

    def __init__(self, dialect: str) -> None:
        super().__init__(dialect)
        self.tables: dict[str, tuple[str, ...]] = {}

    def rows(self, parameter: str, **columns: str) -> str:
        self.tables[parameter] = max(
            tuple(columns), self.tables.get(parameter, ()), key=len
        )  # the statement may use the table again for its keys
        return super().rows(parameter, **columns)


class _Compiled(NamedTuple):
    """A statement in one dialect."""

    text: TextClause
    tables: Mapping[str, tuple[str, ...]]
    """The columns of each parameter that is a table."""
    reads_clock: bool


def _rows(rows: Iterable[Any], columns: tuple[str, ...]) -> str:
    if len(columns) == 1:
        return rows_param({columns[0]: value} for value in rows)
    fields = attrgetter(*columns)
    return rows_param(dict(zip(columns, row if isinstance(row, tuple) else fields(row), strict=True)) for row in rows)


class Statement:
    """A statement written with the fragments of `sql`."""

    def __init__(self, words: str) -> None:
        self._words = words
        self._compiled: dict[str, _Compiled] = {}

    def compile_for(self, dialect: Sql) -> _Compiled:
        """Return the statement in a dialect."""
        if (compiled := self._compiled.get(dialect.name)) is None:
            recording = _Recording(dialect.name)
            self._compiled[dialect.name] = compiled = _compile(
                text(_fragments.fill(self._words, recording)), recording.tables
            )
        return compiled


AnyStatement = Statement | TextClause


def _compile(words: TextClause, tables: Mapping[str, tuple[str, ...]]) -> _Compiled:
    reads_clock = "now" in words._bindparams  # noqa: SLF001  # SQLAlchemy has no public name for a text's parameters
    return _Compiled(words, tables, reads_clock)


def prepare(
    statement: AnyStatement, dialect: Sql, parameters: dict[str, Any], now: str | None
) -> tuple[TextClause, dict[str, Any]]:
    """Return a statement in a dialect, with its parameters encoded.

    The rows of a table are tuples in the order of its columns, or objects whose attributes have the columns' names. A table
    with one column takes plain values. Texts become storable, and times become texts. `:now` is bound if the statement
    reads the clock.
    """
    compiled = statement.compile_for(dialect) if isinstance(statement, Statement) else _compile(statement, {})
    values = dict(parameters)
    for name, value in parameters.items():
        if (columns := compiled.tables.get(name)) is not None:
            values[name] = _rows(value, columns)
        elif isinstance(value, datetime):
            values[name] = time_text(value)
        elif isinstance(value, str) and not is_storable(value):
            values[name] = make_storable(value)
    if compiled.reads_clock:
        values["now"] = now
    return compiled.text, values
