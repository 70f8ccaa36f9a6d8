"""Reads and writes the rows of one database, in chunks by primary key: bounded in rows and in bytes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from itertools import chain
from typing import Any, NamedTuple

import psycopg
from sqlalchemy import Connection, text
from sqlalchemy.exc import DBAPIError

from inbox.db.copying.tables import CopiedColumn, CopiedTable, Key, Row, Value
from inbox.db.copying.values import READERS, for_postgres, for_sqlite, selected
from inbox.db.dialect import Sql
from inbox.db.parameters import rows_param
from inbox.events.timestamps import time_text

CHUNK_ROWS = 2000
CHUNK_BYTES = 4 * 1024 * 1024
"""Bodies and JSON of a chunk; a single row may have more."""

_TYPES = {"number": "bigint", "text": "text", "time": "time"}


class Oddity(NamedTuple):
    """A value that can't be copied, or only with escapes."""

    table: str
    row: str
    """The table and the primary key."""
    column: str
    text: str
    is_copied: bool = False
    """It is copied with escapes."""

    def __str__(self) -> str:
        return f"{self.row}: {self.column} {self.text}"


class Chunk(NamedTuple):
    """Rows that follow each other by their key."""

    rows: Sequence[Row]
    last: Key
    """Key of the last row that was read."""
    escaped: Sequence[Oddity] = ()
    """Values whose NUL and undecodable bytes became escapes."""
    unreadable: Sequence[Oddity] = ()
    """Values that can't be copied; their rows are left out."""


class Rows:
    """The rows of one database, through a connection in a transaction of the caller."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._sql = Sql(connection.dialect.name)
        if not self._sql.is_postgres:
            _driver_of(connection).text_factory = _decoded

    def chunks(self, table: CopiedTable, after: Key | None = None) -> Iterator[Chunk]:
        """Yield the rows behind a key, in the order of the key."""
        while (chunk := self.next_chunk(table, after)) is not None:
            yield chunk
            after = chunk.last

    def next_chunk(self, table: CopiedTable, after: Key | None) -> Chunk | None:
        """Return the rows that follow a key; None: there is none."""
        last = self._end_of_chunk(table, after)
        if last is None:
            return None
        where = f"{_beyond(table, after)} AND {_compared(table, '<=', 'last')} ORDER BY {', '.join(table.key)}"
        statement = f"SELECT {self._columns(table)} FROM {table.name} WHERE {where}"
        return _read(table, self._connection.execute(text(statement), _bound(after=after, last=last)), last)

    def of_keys(self, table: CopiedTable, keys: Sequence[Key]) -> dict[Key, Row]:
        """Return the rows of these keys that exist."""
        kinds = {field.name: _TYPES[field.kind] for field in table.fields if field.name in table.key}
        same = " AND ".join(f"t.{name} = wanted.{name}" for name in table.key)
        found = self._sql.looked_up(self._sql.rows("wanted", **kinds), f"{table.name} t", same)
        given = {"wanted": rows_param(dict(zip(table.key, key, strict=True)) for key in keys)}
        statement = f"SELECT {self._columns(table, 't.')} FROM {found}"
        rows = _read(table, self._connection.execute(text(statement), given), ()).rows
        return {table.key_of(row): row for row in rows}

    def count(self, table: CopiedTable) -> int:
        """Count the rows."""
        return int(self._connection.execute(text(f"SELECT count(*) FROM {table.name}")).scalar_one())

    def insert(self, table: CopiedTable, rows: Sequence[Row]) -> None:
        """Insert rows, faster than by statements of SQLAlchemy.

        Raises:
            DBAPIError: as a statement of SQLAlchemy would.
        """
        driver, names = _driver_of(self._connection), ", ".join(table.names)
        if not self._sql.is_postgres:
            places = ", ".join("?" * len(table.fields))
            statement = f"INSERT INTO {table.name} ({names}) VALUES ({places})"
            self._connection.exec_driver_sql(statement, [tuple(map(for_sqlite, row)) for row in rows])
            return
        statement = f"COPY {table.name} ({names}) FROM STDIN"
        try:
            with driver.cursor() as cursor, cursor.copy(statement) as copy:
                for row in rows:
                    copy.write_row(tuple(map(for_postgres, row)))
        except psycopg.Error as error:
            raise DBAPIError.instance(
                statement, None, error, psycopg.Error, connection_invalidated=driver.closed
            ) from error

    def delete(self, table: CopiedTable, keys: Sequence[Key]) -> None:
        """Delete the rows of these keys."""
        same = " AND ".join(f"{name} = :{name}" for name in table.key)
        given = [dict(zip(table.key, key, strict=True)) for key in keys]
        self._connection.execute(text(f"DELETE FROM {table.name} WHERE {same}"), given)

    def _columns(self, table: CopiedTable, of: str = "") -> str:
        return ", ".join(selected(self._sql.name, f"{of}{field.name}", field.kind) for field in table.fields)

    def _end_of_chunk(self, table: CopiedTable, after: Key | None) -> Key | None:
        """Return the key of the chunk's last row; None: there is none behind `after`."""
        size = " + ".join(f"coalesce({self._size_of(field)}, 0)" for field in table.fields if _is_large(field)) or "0"
        statement = (
            f"SELECT {', '.join(table.key)}, {size} FROM {table.name} WHERE {_beyond(table, after)}"
            f" ORDER BY {', '.join(table.key)} LIMIT {CHUNK_ROWS}"
        )
        last, together = None, 0
        for *key, bytes_ in self._connection.execute(text(statement), _bound(after=after)):
            together += bytes_
            if last is not None and together > CHUNK_BYTES:
                break
            last = tuple(time_text(value) if isinstance(value, datetime) else value for value in key)
        return last

    def _size_of(self, field: CopiedColumn) -> str:
        """Return the size of a value, without reading it."""
        stored = self._sql.is_postgres and field.kind == "json"
        return f"pg_column_size({field.name})" if stored else f"length({field.name})"


def _is_large(field: CopiedColumn) -> bool:
    return field.kind in {"bytes", "json"}


def _read(table: CopiedTable, found: Any, last: Key) -> Chunk:  # noqa: ANN401  # a result of SQLAlchemy
    convert = [READERS[field.kind] for field in table.fields]
    rows: list[Row] = []
    escaped: list[Oddity] = []
    unreadable: list[Oddity] = []
    for raw in found:
        row: list[Value] = []
        for at, value in enumerate(raw):
            try:
                row.append(None if value is None else convert[at](value))
            except ValueError as error:
                unreadable.append(_odd(table, raw, at, str(error)))
                break
        else:
            _note_escapes(table, raw, row, escaped, unreadable)
            rows.append(tuple(row))
    if unreadable:
        left_out = {odd.row for odd in unreadable}
        rows = [row for row in rows if table.describe(table.key_of(row)) not in left_out]
    return Chunk(rows, last, escaped, unreadable)


def _note_escapes(
    table: CopiedTable, raw: Sequence[Any], row: Sequence[Value], escaped: list[Oddity], unreadable: list[Oddity]
) -> None:
    """Note the values that became others. A key must not: its row would be another one."""
    for at, (before, after) in enumerate(zip(raw, row, strict=True)):
        if before is after or table.fields[at].kind not in {"text", "json", "time"} or not isinstance(before, str):
            continue
        if table.fields[at].name in table.key:
            unreadable.append(_odd(table, raw, at, "is a key that only escapes could write"))
        elif table.fields[at].kind != "time":
            odd = _odd(table, raw, at, "gets escapes for a NUL or for bytes that are no text")
            escaped.append(odd._replace(is_copied=True))


def _odd(table: CopiedTable, raw: Sequence[Any], at: int, text: str) -> Oddity:
    key = tuple(raw[table.names.index(name)] for name in table.key)
    return Oddity(table.name, table.describe(key), table.fields[at].name, text)


def _beyond(table: CopiedTable, after: Key | None) -> str:
    return "1 = 1" if after is None else _compared(table, ">", "after")


def _compared(table: CopiedTable, operator: str, prefix: str) -> str:
    """Compare the key with parameters: for several columns as a row, which the index of the key answers."""
    names, values = ", ".join(table.key), ", ".join(f":{prefix}_{n}" for n in range(len(table.key)))
    return f"{names} {operator} {values}" if len(table.key) == 1 else f"({names}) {operator} ({values})"


def _bound(**keys: Key | None) -> Mapping[str, object]:
    return dict(
        chain.from_iterable(
            ((f"{prefix}_{n}", value) for n, value in enumerate(key or ())) for prefix, key in keys.items()
        )
    )


def _driver_of(connection: Connection) -> Any:  # noqa: ANN401  # the driver's connection
    return connection.connection.driver_connection


def _decoded(value: bytes) -> str:
    """Decode a text of SQLite; bytes that are no UTF-8 become lone surrogates, which `storable` escapes."""
    return value.decode("utf-8", "surrogateescape")
