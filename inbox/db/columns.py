"""Types, conditions and comments of columns on Postgres and on SQLite."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import ARRAY, JSON, BigInteger, Column, DateTime, Integer, Text
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.engine import Dialect
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.schema import CreateColumn, CreateTable
from sqlalchemy.sql.compiler import DDLCompiler
from sqlalchemy.types import TypeDecorator, TypeEngine

from inbox.db.dialect import SQLITE
from inbox.events.timestamps import as_time, time_text


class UtcDateTime(TypeDecorator[datetime]):
    """An aware UTC datetime: `timestamptz` on Postgres; on SQLite text of fixed width, so that its order is the order of time."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def load_dialect_impl(self, dialect: Dialect) -> TypeEngine[Any]:
        """Choose text on SQLite, `timestamptz` on Postgres."""
        return dialect.type_descriptor(Text() if dialect.name == SQLITE else DateTime(timezone=True))

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> Any:  # noqa: ANN401  # what the driver takes
        """Convert an instant to the dialect's form."""
        if value is None or dialect.name != SQLITE:
            return value
        return time_text(value)

    def process_result_value(self, value: Any, dialect: Dialect) -> datetime | None:  # noqa: ANN401, ARG002  # as the driver gives it
        """Convert a stored value to an aware instant in UTC."""
        return None if value is None else as_time(value)


BigId = BigInteger().with_variant(Integer(), SQLITE)
"""Type that counts up by itself; on SQLite only an INTEGER primary key does."""

JsonValue = JSONB(none_as_null=True).with_variant(JSON(none_as_null=True), SQLITE)
TextList = ARRAY(Text).with_variant(JSON(), SQLITE)


def _readable_time(column: str) -> dict[str, str]:
    """Make each dialect's condition that a time is readable or null. An unreadable one would crash its readers."""
    first, last = "0001-01-01 00:00:00.000000Z", "9999-12-31 23:59:59.999999Z"
    day = f"substr({column}, 1, 10)"
    return {
        "postgresql": f"{column} BETWEEN '{first}' AND '{last}'",  # not 'infinity', nor a year outside datetime's range
        "sqlite": f"date({day}) IS {day} AND {column} >= '{first}'"
        f" AND (length({column}) = 10 OR substr({column}, 11) GLOB '[ T][0-2][0-9]:[0-5][0-9]*')",
    }


def _readable_object(column: str) -> dict[str, str]:
    """Make each dialect's condition that JSON is an object."""
    return {
        "postgresql": f"jsonb_typeof({column}) = 'object'",
        "sqlite": f"{column} IS NULL OR CASE WHEN json_valid({column}) THEN json_type({column}) = 'object' ELSE 0 END",
    }


def _readable_list(column: str) -> dict[str, str]:
    """Make each dialect's condition that a value is a list without nulls."""
    return {
        "postgresql": f"array_position({column}, NULL) IS NULL",  # an error for a list of lists
        "sqlite": f"CASE WHEN json_valid({column}) THEN json_type({column}) = 'array' ELSE 0 END",
    }


def readable(column: Column[Any]) -> dict[str, str]:
    """Make each dialect's condition that a value of a column can be read."""
    if isinstance(column.type, UtcDateTime):
        return _readable_time(column.name)
    if column.type is JsonValue:
        return _readable_object(column.name)
    return _readable_list(column.name) if column.type is TextList else {}


# SQLite has no COMMENT ON. A DBA finds the comments in the table's text: `.schema inbox`.


@compiles(CreateColumn, SQLITE)
def _column_with_comment(element: CreateColumn, compiler: DDLCompiler, **kw: Any) -> str | None:  # noqa: ANN401  # passed through
    text: str | None = compiler.visit_create_column(element, **kw)  # type: ignore[no-untyped-call]  # SQLAlchemy has no types here
    comment = element.element.comment
    return f"-- {comment}\n\t{text}" if text and comment else text


@compiles(CreateTable, SQLITE)
def _table_with_comment(element: CreateTable, compiler: DDLCompiler, **kw: Any) -> str:  # noqa: ANN401  # passed through
    text: str = compiler.visit_create_table(element, **kw)  # type: ignore[no-untyped-call]  # SQLAlchemy has no types here
    comment = element.element.comment
    return text.replace("(", f"( -- {comment}", 1) if comment else text
