"""Copies an installation: rows table by table, then a comparison of both ends, and at last what makes the target usable.

Each chunk is one transaction of the target, which also notes its place. So an interrupted copy goes on where it was. Rows
that the source changed between two runs are found by the comparison, and copied again.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import msgspec
from sqlalchemy import Connection, Engine
from sqlalchemy.exc import DBAPIError

from inbox.db.checkpoint import Checkpoints, checkpoint
from inbox.db.copying import source as sources
from inbox.db.copying import target as targets
from inbox.db.copying.rows import Oddity, Rows
from inbox.db.copying.tables import CopiedTable, Key, Row, canonical, copied_tables
from inbox.db.dialect import Sql, blames_items, error_text
from inbox.db.engine import snapshot
from inbox.errors import CopyFailed

MOST_LISTED = 100
"""Escaped values that a result lists; all are counted."""

Report = Callable[[str, str, int], None]
"""Told about each chunk: the step (`copying` or `comparing`), the table, and the rows done so far."""


class CopyPlan(NamedTuple):
    """The work of a copy, before it begins."""

    rows: dict[str, int]
    """Rows of the source by table."""
    resumes: bool


class TableResult(msgspec.Struct, frozen=True):
    """A table that is the same on both ends."""

    table: str
    rows: int
    sha256: str
    """Hash of its rows in their canonical form, equal on both ends."""
    copied_again: int
    """Rows that the source, or somebody in the target, had changed since they were copied."""


class CopyResult(msgspec.Struct, frozen=True):
    """A finished copy."""

    tables: list[TableResult]
    escaped: int
    """Values whose NUL and undecodable bytes became escapes."""
    escaped_values: list[str]
    """The first of them."""


def plan(source: Engine, target: Engine, name: str) -> CopyPlan:
    """Count the rows of the source, which goes by `name`, and look whether the target can take them.

    Raises:
        ConfigError: it can't.
    """
    tables = copied_tables()
    resumes = targets.is_unfinished(target, name, tables)
    with source.connect() as connection, snapshot(connection).begin():
        rows = Rows(connection)
        return CopyPlan({table.name: rows.count(table) for table in tables}, resumes)


def check(source: Engine, report: Report) -> Iterator[Oddity]:
    """Read every row, and yield the values that can't be copied, or only with escapes. Writers may go on."""
    with source.connect() as connection:
        for table in copied_tables():
            rows, after, done = Rows(connection), None, 0
            while True:
                with snapshot(connection).begin():
                    chunk = rows.next_chunk(table, after)
                if chunk is None:
                    break
                yield from chunk.unreadable
                yield from chunk.escaped
                for row in chunk.rows:
                    try:
                        canonical(table, row)
                    except ValueError as error:
                        yield Oddity(table.name, table.describe(table.key_of(row)), "JSON", str(error))
                after, done = chunk.last, done + len(chunk.rows)
                report("copying", table.name, done)


def copy(source: Engine, target: Engine, name: str, report: Report) -> CopyResult:
    """Copy everything into an empty target, or go on with an unfinished copy of the source, which goes by `name`.

    Raises:
        ConfigError: the target is neither, or somebody writes to the source.
        CopyFailed: a row can't be copied.
    """
    tables = copied_tables()
    with sources.explaining_locks(), sources.held(source, tables) as held:
        if not targets.is_unfinished(target, name, tables):
            targets.begin(target, name, tables, targets.counters(held, tables).get("inbox", 0))
        with target.connect() as connection:
            work = _Copy(Rows(held), connection, report)
            for table in tables:
                work.copy(table)
            results = [work.compare(table) for table in tables]
            with connection.begin():
                targets.finish(connection, tables, targets.counters(held, tables))
            work.save()
    return CopyResult(results, work.escaped, work.escaped_values)


class _Copy:
    """A running copy."""

    def __init__(self, source: Rows, connection: Connection, report: Report) -> None:
        self._source = source
        self._connection = connection
        self._target = Rows(connection)
        self._report = report
        self._checkpoints = Checkpoints() if Sql(connection.dialect.name).needs_checkpoints else None
        with connection.begin():
            self._positions = targets.positions(connection)
        self.escaped = 0
        self.escaped_values: list[str] = []

    def copy(self, table: CopiedTable) -> None:
        """Copy the rows of a table behind those that are copied."""
        done, after = self._positions.get(table.name, targets.CopyPosition(0, None))
        for chunk in self._source.chunks(table, after):
            if chunk.unreadable:
                raise CopyFailed(f"{chunk.unreadable[0]}. {_REMEDY}")
            done += len(chunk.rows)
            with self._blaming(table, chunk.rows), self._connection.begin():
                self._target.insert(table, chunk.rows)
                targets.remember(self._connection, table, done, chunk.last)
            self._copied_back(len(chunk.rows))
            self._report("copying", table.name, done)

    def compare(self, table: CopiedTable) -> TableResult:
        """Compare a table of both ends chunk by chunk, and copy rows again that differ.

        Raises:
            CopyFailed: a row differs even then.
        """
        whole, rows, again = hashlib.sha256(), 0, 0
        for chunk in self._source.chunks(table):
            again += self._mend(table, chunk.rows)
            for row in chunk.rows:
                whole.update(_canonical(table, row))
            rows += len(chunk.rows)
            self.escaped += len(chunk.escaped)
            self.escaped_values += map(str, chunk.escaped[: MOST_LISTED - len(self.escaped_values)])
            self._report("comparing", table.name, rows)
        again += self._remove_surplus(table, rows)
        return TableResult(table.name, rows, whole.hexdigest(), again)

    def save(self) -> None:
        """Copy SQLite's write-ahead log back into the file."""
        if self._checkpoints is not None:
            checkpoint(self._connection.engine)

    def _mend(self, table: CopiedTable, rows: Sequence[Row]) -> int:
        """Make these rows of the target as they are here. Returns the number of those that were not."""
        keys = [table.key_of(row) for row in rows]
        with self._connection.begin():
            differing = self._differing(table, rows, keys)
        if not differing:
            return 0
        with self._blaming(table, differing), self._connection.begin():
            self._target.delete(table, [table.key_of(row) for row in differing])
            self._target.insert(table, differing)
        with self._connection.begin():
            still = self._differing(table, differing, [table.key_of(row) for row in differing])
        if still:
            there = self._row_there(table, table.key_of(still[0]))
            columns = [
                name
                for name, one, other in zip(table.names, still[0], there or still[0], strict=True)
                if there is None or one != other
            ]
            raise CopyFailed(
                f"{table.describe(table.key_of(still[0]))} differs in the target, in {', '.join(columns)}, though it was"
                " copied twice. Does another program write there?"
            )
        return len(differing)

    def _differing(self, table: CopiedTable, rows: Sequence[Row], keys: Sequence[Key]) -> list[Row]:
        found = self._target.of_keys(table, keys)
        return [
            row
            for key, row in zip(keys, rows, strict=True)
            if (there := found.get(key)) is None or _canonical(table, there) != _canonical(table, row)
        ]

    def _row_there(self, table: CopiedTable, key: Key) -> Row | None:
        with self._connection.begin():
            return self._target.of_keys(table, [key]).get(key)

    def _remove_surplus(self, table: CopiedTable, rows: int) -> int:
        """Delete the rows of the target that the source has no more. Returns their number."""
        with self._connection.begin():
            surplus = self._target.count(table) - rows
        after, removed = None, 0
        while removed < surplus:
            with self._connection.begin():
                chunk = self._target.next_chunk(table, after)
                if chunk is None:
                    break
                keys = [table.key_of(row) for row in chunk.rows]
                here = self._source.of_keys(table, keys)
                if gone := [key for key in keys if key not in here]:
                    self._target.delete(table, gone)
            after, removed = chunk.last, removed + len(gone)
        if removed != surplus:
            raise CopyFailed(f"{table.name}: the target has {surplus - removed} rows more than the source: start again")
        return removed

    @contextmanager
    def _blaming(self, table: CopiedTable, rows: Sequence[Row]) -> Iterator[None]:
        """Name the row that the target rejects."""
        try:
            yield
        except DBAPIError as error:
            if not blames_items(error):
                raise
            row = self._first_rejected(table, rows)
            raise CopyFailed(
                f"{table.describe(table.key_of(row))}: the target rejects it: {error_text(error)}. {_REMEDY}"
            ) from None

    def _first_rejected(self, table: CopiedTable, rows: Sequence[Row]) -> Row:
        """Find the row by halves, each tried in a transaction that is undone."""
        while len(rows) > 1:
            half = rows[: len(rows) // 2]
            rows = half if self._is_rejected(table, half) else rows[len(half) :]
        return rows[0]

    def _is_rejected(self, table: CopiedTable, rows: Sequence[Row]) -> bool:
        with self._connection.begin() as tried:
            try:
                self._target.insert(table, rows)
            except DBAPIError as error:
                if not blames_items(error):
                    raise
                return True
            finally:
                tried.rollback()
        return False

    def _copied_back(self, rows: int) -> None:
        if self._checkpoints is not None and self._checkpoints.due(rows):
            self._checkpoints.made(complete=checkpoint(self._connection.engine))


_REMEDY = "Repair the row in the source, then run it again: it goes on there; `--dry-run` lists every such row"


def _canonical(table: CopiedTable, row: Row) -> bytes:
    try:
        return canonical(table, row)
    except ValueError as error:
        raise CopyFailed(f"{table.describe(table.key_of(row))}: its JSON {error}. {_REMEDY}") from None
