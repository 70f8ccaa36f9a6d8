"""Statements of both databases: one text, whose fragments are filled in for a dialect when it is first run."""

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
    """Stands for `Sql` where a statement is written: it gives a mark for each fragment."""

    def __init__(self) -> None:
        self._kept: list[tuple[str, tuple[str, ...], Mapping[str, Any]]] = []

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401  # a fragment, or what makes one
        if not callable(getattr(Sql, name, None)):
            return self._mark(name)
        return lambda *arguments, **named: self._mark(name, *arguments, **named)

    def _mark(self, name: str, /, *arguments: str, **named: Any) -> str:  # noqa: ANN401  # passed through
        self._kept.append((name, arguments, named))
        return f"\ue000{len(self._kept) - 1}\ue001"

    def filled(self, words: str, real: Sql) -> str:
        """Return the words with the fragments of a dialect instead of their marks."""

        def fragment(mark: re.Match[str]) -> str:
            name, arguments, named = self._kept[int(mark[1])]
            found = getattr(real, name)
            return str(found(*(self.filled(each, real) for each in arguments), **named) if callable(found) else found)

        return re.sub("\ue000(\\d+)\ue001", fragment, words)


_fragments = _Fragments()
sql = cast("Sql", _fragments)
"""The fragments to write statements with: only texts, as nothing is known of the dialect there."""


class _Recording(Sql):
    """Remembers the columns of each parameter that is a table."""

    def __init__(self, dialect: str) -> None:
        super().__init__(dialect)
        self.tables: dict[str, tuple[str, ...]] = {}

    def rows(self, parameter: str, **columns: str) -> str:
        self.tables[parameter] = max(
            tuple(columns), self.tables.get(parameter, ()), key=len
        )  # it may be used for its keys, too
        return super().rows(parameter, **columns)


class _InDialect(NamedTuple):
    """A statement as one dialect has it."""

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
    """A statement that is written with fragments of `sql`."""

    def __init__(self, words: str) -> None:
        self._words = words
        self._written: dict[str, _InDialect] = {}

    def of(self, dialect: Sql) -> _InDialect:
        """Return it as a dialect has it."""
        if (written := self._written.get(dialect.name)) is None:
            recording = _Recording(dialect.name)
            self._written[dialect.name] = written = _written(
                text(_fragments.filled(self._words, recording)), recording.tables
            )
        return written


AnyStatement = Statement | TextClause


def _written(words: TextClause, tables: Mapping[str, tuple[str, ...]]) -> _InDialect:
    reads_clock = "now" in words._bindparams  # noqa: SLF001  # SQLAlchemy has no public name for a text's parameters
    return _InDialect(words, tables, reads_clock)


def prepare(
    statement: AnyStatement, dialect: Sql, parameters: dict[str, Any], now: str | None
) -> tuple[TextClause, dict[str, Any]]:
    """Return a statement as a dialect has it, with its parameters encoded: rows by the columns of their table.

    A row is a tuple in the order of the columns, or an object with attributes of their names; of one column, its value. Texts
    become `storable`, and times texts. `:now` is bound for a statement that reads the clock.
    """
    written = statement.of(dialect) if isinstance(statement, Statement) else _written(statement, {})
    values = dict(parameters)
    for name, value in parameters.items():
        if (columns := written.tables.get(name)) is not None:
            values[name] = _rows(value, columns)
        elif isinstance(value, datetime):
            values[name] = time_text(value)
        elif isinstance(value, str) and not is_storable(value):
            values[name] = make_storable(value)
    if written.reads_clock:
        values["now"] = now
    return written.text, values
