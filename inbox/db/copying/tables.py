"""Tables that a copy carries, the forms of their values, and the hash of a row that is the same on both databases. Pure."""

from __future__ import annotations

import json
from decimal import MAX_EMAX, MIN_EMIN, Context, Decimal
from functools import cache
from typing import Literal, NamedTuple

import msgspec
from sqlalchemy import Boolean, Column, Integer, LargeBinary, Text

from inbox.db.columns import JsonValue, TextList, UtcDateTime
from inbox.db.schema import metadata

Kind = Literal["text", "number", "flag", "time", "json", "list", "bytes"]
Value = int | str | bytes | bool | tuple[str, ...] | None
"""A value on its way: times as `time_text` writes them, JSON as text, lists as tuples."""
Row = tuple[Value, ...]
Key = tuple[int | str, ...]


class CopiedColumn(NamedTuple):
    """A column."""

    name: str
    kind: Kind


class CopiedTable(NamedTuple):
    """A table with its columns in their order, and its primary key."""

    name: str
    fields: tuple[CopiedColumn, ...]
    key: tuple[str, ...]
    counter: str | None
    """Column that counts up by itself."""

    @property
    def names(self) -> tuple[str, ...]:
        """Return the names of the columns."""
        return tuple(field.name for field in self.fields)

    def key_of(self, row: Row) -> Key:
        """Return the values of the primary key."""
        return tuple(row[at] for at in _positions(self))  # type: ignore[misc]  # keys are numbers, texts and times

    def describe(self, key: Key) -> str:
        """Name a row: `inbox seq=5`."""
        return f"{self.name} {' '.join(f'{name}={value}' for name, value in zip(self.key, key, strict=True))}"


@cache
def _positions(table: CopiedTable) -> tuple[int, ...]:
    return tuple(table.names.index(name) for name in table.key)


def copied_tables() -> tuple[CopiedTable, ...]:
    """List every table of the schema, in its order."""
    return tuple(
        CopiedTable(
            str(table.name),  # SQLAlchemy's names are of a type of their own
            tuple(CopiedColumn(str(column.name), _kind(column)) for column in table.columns),
            tuple(str(column.name) for column in table.primary_key),
            str(table.primary_key.columns[0].name) if table.dialect_options["sqlite"]["autoincrement"] else None,
        )
        for table in metadata.tables.values()
    )


def _kind(column: Column[object]) -> Kind:
    of = column.type
    if of is JsonValue:
        return "json"
    if of is TextList:
        return "list"
    kinds: tuple[tuple[type, Kind], ...] = (
        (UtcDateTime, "time"),
        (Boolean, "flag"),
        (Integer, "number"),
        (LargeBinary, "bytes"),
        (Text, "text"),
    )
    for each, kind in kinds:
        if isinstance(of, each):
            return kind
    raise TypeError(f"{column}: a copy has no form for {of!r}")


def canonical(table: CopiedTable, row: Row) -> bytes:
    """Encode a row so that equal rows of both databases have equal bytes.

    Raises:
        ValueError: a text of a JSON column is no JSON.
    """
    return _PACK.encode(
        tuple(
            canonical_json(value) if field.kind == "json" and isinstance(value, str) else value
            for field, value in zip(table.fields, row, strict=True)
        )
    )


def canonical_json(text: str) -> bytes:
    """Encode JSON with sorted keys and one form for each number: Postgres keeps neither the order nor `1e2`.

    Raises:
        ValueError: it is no JSON.
    """
    return _JSON.encode(parsed_json(text))


def parsed_json(text: str) -> object:
    """Parse JSON whose numbers keep all their digits.

    Raises:
        ValueError: it is no JSON, or nested too deep.
    """
    try:
        return json.loads(text, parse_float=_number, parse_int=_number, parse_constant=_no_number)
    except RecursionError:
        raise ValueError("is nested too deep") from None


_PACK = msgspec.msgpack.Encoder()
_JSON = msgspec.json.Encoder(order="sorted", decimal_format="number")
_MOST_DIGITS = 18
"""A whole number of so many digits fits into 64 bits."""
_ALL_DIGITS = Context(prec=1_000_000, Emax=MAX_EMAX, Emin=MIN_EMIN)


def _number(literal: str) -> int | Decimal:
    if len(literal) < _MOST_DIGITS and literal.lstrip("-").isdecimal():
        return int(literal)
    try:
        exact = Decimal(literal).normalize(_ALL_DIGITS)
    except ArithmeticError:
        raise ValueError("has a number out of range") from None
    is_whole = exact.as_tuple().exponent in range(_MOST_DIGITS)
    return int(exact) if is_whole and exact.adjusted() < _MOST_DIGITS else exact


def _no_number(literal: str) -> object:
    raise ValueError(f"{literal} is no JSON")
