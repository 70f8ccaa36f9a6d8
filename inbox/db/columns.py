"""Column types for both databases, and factories of columns, indexes and conditions of tables."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from datetime import datetime
from typing import Any

from sqlalchemy import (
    ARRAY,
    JSON,
    BigInteger,
    CheckConstraint,
    Column,
    DateTime,
    Index,
    Integer,
    Text,
    text,
)
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.engine import Dialect
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.schema import CreateColumn, CreateTable
from sqlalchemy.sql import ColumnElement
from sqlalchemy.sql.compiler import DDLCompiler, SQLCompiler
from sqlalchemy.types import TypeDecorator, TypeEngine

from inbox.db.dialect import POSTGRES, SQLITE
from inbox.events.states import SAYS_NOTHING
from inbox.events.timestamps import as_time, time_text


class UtcDateTime(TypeDecorator[datetime]):
    """An aware UTC datetime: `timestamptz` on Postgres; on SQLite text of fixed width, which sorts chronologically."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def load_dialect_impl(self, dialect: Dialect) -> TypeEngine[Any]:
        """Choose text on SQLite, `timestamptz` on Postgres."""
        return dialect.type_descriptor(Text() if dialect.name == SQLITE else DateTime(timezone=True))

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> Any:  # noqa: ANN401  # the driver's value
        """Convert an instant to the driver's value."""
        if value is None or dialect.name != SQLITE:
            return value
        return time_text(value)

    def process_result_value(self, value: Any, dialect: Dialect) -> datetime | None:  # noqa: ANN401, ARG002  # the driver's value
        """Convert a stored value to an aware instant in UTC."""
        return None if value is None else as_time(value)


BigId = BigInteger().with_variant(Integer(), SQLITE)
"""Type of auto-incrementing keys; on SQLite only an INTEGER primary key increments."""

JsonValue = JSONB(none_as_null=True).with_variant(JSON(none_as_null=True), SQLITE)
TextList = ARRAY(Text).with_variant(JSON(), SQLITE)


class ByDialect(ColumnElement[Any]):
    """An SQL expression with a separate text for each dialect."""

    inherit_cache = False

    def __init__(self, postgres: str, sqlite: str) -> None:
        self.texts = {POSTGRES: postgres, SQLITE: sqlite}


@compiles(ByDialect)
def _compile_by_dialect(element: ByDialect, compiler: SQLCompiler, **_: Any) -> str:  # noqa: ANN401  # SQLAlchemy's own keywords
    return element.texts.get(compiler.dialect.name, element.texts[POSTGRES])


DATABASE_ROLE = ByDialect("SESSION_USER", "'sqlite'")
"""The connection's role; SQLite has none."""
DATABASE_TIME = ByDialect("clock_timestamp()", "(strftime('%Y-%m-%d %H:%M:%f', 'now') || '000Z')")
"""The database's current time, for a `UtcDateTime` column."""


def readable(column: Column[Any]) -> dict[str, str]:
    """Return, by dialect, the condition that a value is null or readable. Unreadable values would crash readers."""
    name = column.name
    if isinstance(column.type, UtcDateTime):
        first, last = "0001-01-01 00:00:00.000000Z", "9999-12-31 23:59:59.999999Z"
        day = f"substr({name}, 1, 10)"
        return {
            POSTGRES: f"{name} BETWEEN '{first}' AND '{last}'",  # excludes 'infinity' and years outside datetime's range
            SQLITE: f"date({day}) IS {day} AND {name} >= '{first}'"
            f" AND (length({name}) = 10 OR substr({name}, 11) GLOB '[ T][0-2][0-9]:[0-5][0-9]*')",
        }
    if column.type is JsonValue:
        return {
            POSTGRES: f"jsonb_typeof({name}) = 'object'",
            SQLITE: f"{name} IS NULL OR CASE WHEN json_valid({name}) THEN json_type({name}) = 'object' ELSE 0 END",
        }
    if column.type is TextList:  # without nulls
        return {
            POSTGRES: f"array_position({name}, NULL) IS NULL",  # an error for a list of lists
            SQLITE: f"CASE WHEN json_valid({name}) THEN json_type({name}) = 'array' ELSE 0 END",
        }
    return {}


# SQLite has no COMMENT ON, so the comments are in CREATE TABLE, where `.schema inbox` shows them.


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


_Type = type[TypeEngine[Any]] | TypeEngine[Any]

HOT = {"fillfactor": 70, "autovacuum_vacuum_scale_factor": 0.02, "autovacuum_vacuum_cost_delay": 0}
"""Storage parameters for frequently changed rows: free space on each page for new versions, and early vacuum."""

PRUNED = {"autovacuum_vacuum_scale_factor": 0.02}
"""Storage parameters for rows that retention deletes: autovacuum starts at 2 % dead rows, not at 20 %."""


def number(name: str, comment: str) -> Column[int]:
    """Make an auto-incrementing primary key."""
    return Column(name, BigId, primary_key=True, autoincrement=True, comment=comment)


def only_row() -> tuple[Column[int], CheckConstraint]:
    """Make the key of a table that always has exactly one row."""
    key = Column("id", Integer, primary_key=True, autoincrement=False, comment="always 1")
    return key, CheckConstraint("id = 1", name="one_row")


def not_null(name: str, kind: _Type, comment: str, *, default: str | ColumnElement[Any] | None = None) -> Column[Any]:
    """Make a NOT NULL column; `default` is an SQL expression."""
    given = text(default) if isinstance(default, str) else default
    return Column(name, kind, nullable=False, server_default=given, comment=comment)


def nullable(name: str, kind: _Type, comment: str) -> Column[Any]:
    """Make a nullable column; the comment explains nulls."""
    return Column(name, kind, comment=comment)


def count(name: str, kind: _Type, comment: str) -> Column[Any]:
    """Make a column that counts from 0."""
    return not_null(name, kind, comment, default="0")


def partial_index(name: str, *columns: str, where: str, unique: bool = False) -> Index:
    """Make an index of the rows that meet an SQL condition."""
    return Index(name, *columns, unique=unique, postgresql_where=text(where), sqlite_where=text(where))


def format_values(states: Iterable[str]) -> str:
    """Format values as the list of an SQL `IN`; they contain no quotes."""
    return ", ".join(f"'{state}'" for state in states)


def checks(name: str, conditions: Mapping[str, str]) -> Iterator[CheckConstraint]:
    """Yield a check for each dialect."""
    for dialect, condition in conditions.items():
        yield CheckConstraint(condition, name=name).ddl_if(dialect=dialect)


def says_why(column: str) -> Iterator[CheckConstraint]:
    """Yield the check that a text gives a reason."""
    return checks(column, {dialect: f"NOT ({_says_nothing(column, dialect)})" for dialect in (POSTGRES, SQLITE)})


def _says_nothing(column: str, dialect: str) -> str:
    # as character codes: white space, and the percent sign, which the Postgres driver would take for a parameter
    coded = r"E' \t\n\r' || chr(37)" if dialect == POSTGRES else "' ' || char(9, 10, 13, 37)"
    others = "".join(sorted(set(SAYS_NOTHING) - set(" \t\n\r%"))).replace("'", "''")
    return f"trim({column}, {coded} || '{others}') = ''"
