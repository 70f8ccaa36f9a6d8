"""Searches the tables that have rows of no certain entity for those that name the one to erase.

Texts may be encoded, so that rows are searched here and not in SQL. `rejected_request` may be large: it is read in parts.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import msgspec
from sqlalchemy import ColumnElement, Connection, Table, and_, exists, func, or_, select, update

from inbox.db.dialect import as_json
from inbox.db.erasure.columns import searched
from inbox.db.erasure.subject import ERASED, ErasureSubject
from inbox.db.schema import (
    alert,
    gate,
    inbox,
    payload_reveal,
    pruning,
    rejected_request,
    relay_command,
    relay_node,
    sweep_watermark,
)

ROWS_OF_A_PART = 500
BYTES_OF_A_PART = 4 * 1024 * 1024
"""Of bodies; a single one may be larger."""

_HAS_ENDED = relay_command.c.state.not_in(("asked", "running"))
_SEARCHED_WHOLE: Mapping[str, tuple[Table, ColumnElement[bool] | None]] = {
    "relay_command": (relay_command, _HAS_ENDED),  # an open one can't be done without its selection
    "alert": (alert, None),
    "payload_reveal": (payload_reveal, None),
    "gate": (
        gate,
        or_(gate.c.pause_reason.is_not(None), gate.c.breaker_cause.is_not(None), gate.c.hold_reason.is_not(None)),
    ),
    "relay_node": (relay_node, relay_node.c.failing.is_not(None)),
    "pruning": (pruning, pruning.c.error.is_not(None)),
    "sweep_watermark": (sweep_watermark, sweep_watermark.c.error.is_not(None)),
}
"""Tables that stay small, each with a condition on rows that may name anybody."""


class NamingRow(msgspec.Struct, frozen=True):
    """A row that names the entity."""

    table: str
    key: Mapping[str, Any]
    emptied: Mapping[str, Any]
    """The columns that change, without the entity."""


class Naming(msgspec.Struct, frozen=True):
    """Rows that name the entity, and the place up to which `rejected_request` has been searched."""

    rows: tuple[NamingRow, ...]
    position: int | None

    def empty(self, connection: Connection) -> int:
        """Take the entity out of these rows. Returns their number."""
        for row in self.rows:
            table = rejected_request.metadata.tables[row.table]
            is_it = and_(*(table.c[name] == value for name, value in row.key.items()))
            connection.execute(update(table).where(is_it).values(dict(row.emptied)))
        return len(self.rows)


def search(
    connection: Connection, subject: ErasureSubject, position: int | None, *, own_command: int | None = None
) -> Naming | None:
    """Search the next part. None: nothing names the entity any more."""
    until = _until(connection, position or 0)
    if until is not None:
        return Naming(tuple(_rejected(connection, subject, position or 0, until)), until)
    rows = tuple(row for name in _SEARCHED_WHOLE for row in _in_table(connection, subject, name, own_command))
    return Naming(rows, position) if rows else None


def open_commands(connection: Connection, subject: ErasureSubject) -> list[int]:
    """Return the ids of commands that name the entity and have not ended, other than those that erase it."""
    rows = connection.execute(
        select(relay_command.c.id, relay_command.c.selection).where(~_HAS_ENDED, relay_command.c.kind != "erase")
    )
    return [row.id for row in rows if subject.without(as_json(row.selection)) != as_json(row.selection)]


def _until(connection: Connection, after: int) -> int | None:
    """Return the last id of the next part; None behind the last row."""
    size = func.coalesce(func.length(rejected_request.c.body), 0).label("size")
    number = rejected_request.c.id
    rows = connection.execute(select(number, size).where(number > after).order_by(number).limit(ROWS_OF_A_PART)).all()
    total, last = 0, None
    for row in rows:
        total += row.size
        if last is not None and total > BYTES_OF_A_PART:
            break
        last = row.id
    return last


def _rejected(connection: Connection, subject: ErasureSubject, after: int, until: int) -> Iterator[NamingRow]:
    """Yield requests of the source that name the entity, or have become an event of it. Nothing of their sender stays."""
    table, names = rejected_request, searched("rejected_request")
    became = exists().where(
        inbox.c.seq == table.c.readmitted_seq,
        inbox.c.source == subject.source,
        inbox.c.entity_type == subject.entity_type,
        inbox.c.entity_id.in_((subject.entity_id, subject.pseudonym)),
    )
    chosen = (table.c.id > after, table.c.id <= until, table.c.source == subject.source)
    for row in connection.execute(select(table, became.label("became")).where(*chosen)).mappings():
        if row["became"] or any(subject.without(row[name]) != row[name] for name in names):
            emptied = {name: None if table.c[name].nullable else ERASED for name in names}
            changed = {name: value for name, value in emptied.items() if row[name] != value}
            if changed:
                yield NamingRow(table.name, {"id": row["id"]}, changed)


def _in_table(
    connection: Connection, subject: ErasureSubject, name: str, own_command: int | None
) -> Iterator[NamingRow]:
    table, condition = _SEARCHED_WHOLE[name]
    keys = [column.name for column in table.primary_key]
    columns = [table.c[each] for each in (*keys, *searched(name))]
    statement = select(*columns) if condition is None else select(*columns).where(condition)
    if table is relay_command and own_command is not None:
        statement = statement.where(table.c.id != own_command)
    for row in connection.execute(statement).mappings():
        changed = {each: _without(subject, row[each]) for each in searched(name)}
        changed = {each: value for each, value in changed.items() if value != row[each]}
        if changed:
            yield NamingRow(name, {each: row[each] for each in keys}, changed)


def _without(subject: ErasureSubject, value: Any) -> Any:  # noqa: ANN401  # a value of any column
    """Return a value without the entity; a JSON object keeps its keys, as they are the product's own."""
    return (
        {key: subject.without(item) for key, item in value.items()}
        if isinstance(value, dict)
        else subject.without(value)
    )
