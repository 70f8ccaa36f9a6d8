"""Where Postgres and SQLite differ: the only file that asks which of the two it is.

Statements of both sides are one text for both databases. What can't be the same is a fragment from here.
"""

from __future__ import annotations

import json
import re
import sqlite3
from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Any, Literal

from sqlalchemy import ARRAY, JSON, BigInteger, DateTime, Integer, Text
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.engine import Dialect
from sqlalchemy.exc import DataError, DBAPIError, IntegrityError, InterfaceError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.schema import CreateColumn, CreateTable
from sqlalchemy.sql.compiler import DDLCompiler
from sqlalchemy.types import TypeDecorator, TypeEngine

from inbox.events.timestamps import as_time, time_text

POSTGRES, SQLITE = "postgresql", "sqlite"


class UtcDateTime(TypeDecorator[datetime]):
    """An aware UTC datetime: `timestamptz` on Postgres; on SQLite text of fixed width, so that its order is the order of time."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def load_dialect_impl(self, dialect: Dialect) -> TypeEngine[Any]:
        """Text on SQLite."""
        return dialect.type_descriptor(Text() if dialect.name == SQLITE else DateTime(timezone=True))

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> Any:  # noqa: ANN401  # what the driver takes
        """Write the instant as the dialect stores it."""
        if value is None or dialect.name != SQLITE:
            return value
        return time_text(value)

    def process_result_value(self, value: Any, dialect: Dialect) -> datetime | None:  # noqa: ANN401, ARG002  # as the driver gives it
        """Give the instant back, aware and in UTC."""
        return None if value is None else as_time(value)


BigId = BigInteger().with_variant(Integer(), SQLITE)
"""Counts up by itself; on SQLite only an INTEGER primary key does."""

JsonValue = JSONB(none_as_null=True).with_variant(JSON(none_as_null=True), SQLITE)
TextList = ARRAY(Text).with_variant(JSON(), SQLITE)


def as_json(value: Any) -> Any:  # noqa: ANN401  # any JSON value
    """What a driver gives for a JSON column of a textual statement: SQLite gives its text."""
    return json.loads(value) if isinstance(value, str) else value


def as_list(value: list[str] | str) -> list[str]:
    """What a driver gives for a list column of a textual statement."""
    return list(json.loads(value)) if isinstance(value, str) else value


def rows_param(rows: Iterable[Mapping[str, object]]) -> str:
    """Rows as the one bound parameter that `Sql.rows` unfolds. Times are written by `time_text`, bytes in hex.

    Every text, keys too, becomes `storable`. The check costs a look at the whole; only a bad one is taken apart.
    """
    built = [dict(row) for row in rows]
    written = _dumps(built)
    return written if _is_clean(written) else _dumps(_all_storable(built))


def verbatim_param(rows: Iterable[Mapping[str, object]]) -> str:
    """As `rows_param`, for texts that are stored as they came or not at all.

    Raises:
        ValueError: one of them is not storable.
    """
    written = _dumps([dict(row) for row in rows])
    if not _is_clean(written):
        raise ValueError("a text has a NUL or a lone surrogate")
    return written


class Blobs:
    """The bytes of many rows as one bound parameter, beside the rows: as hex in their JSON they took 48 times their memory.

    A row has their place, in two columns. `Sql.blob` takes them from there.
    """

    def __init__(self) -> None:
        self._parts: list[bytes] = []
        self._size = 0

    def place(self, blob: bytes | None) -> tuple[int | None, int | None]:
        """Put it there. Returns the place of its first byte, counted from 1, and how many it has; None for none."""
        if blob is None:
            return None, None
        at = self._size + 1
        self._parts.append(blob)
        self._size += len(blob)
        return at, len(blob)

    def joined(self) -> bytes:
        """All of them; a single one is not copied."""
        return b"".join(self._parts)


def _is_clean(written: str) -> bool:
    """True when every text in this JSON is storable; the search is made only where it may find something."""
    return is_storable(written) and not ("\\u0000" in written and _NUL_IN_JSON.search(written))


def _dumps(value: object) -> str:
    return json.dumps(value, default=_encode, ensure_ascii=False, separators=(",", ":"))


_NUL_IN_JSON = re.compile(r"(?<!\\)(?:\\\\)*\\u0000")
"""As `json` writes it, and no backslash before it that makes another text of it."""


def storable(value: str) -> str:
    """The text as both databases take it: NUL and lone surrogates as the escapes that Python writes for them.

    Postgres has no NUL in text or jsonb (postgresql.org/docs/current/datatype-character.html); no driver encodes a lone
    surrogate.
    """
    return value.replace("\x00", "\\x00").encode("utf-8", "backslashreplace").decode("utf-8")


def is_storable(value: str) -> bool:
    """`storable` would leave the text as it is."""
    if "\x00" in value:
        return False
    try:
        return value.isascii() or bool(value.encode("utf-8"))
    except UnicodeEncodeError:
        return False


def _all_storable(value: Any) -> Any:  # noqa: ANN401  # any JSON value, with times and bytes
    if isinstance(value, str):
        return storable(value)
    if isinstance(value, Mapping):
        return {storable(str(key)): _all_storable(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_all_storable(item) for item in value]
    return value


def _encode(value: object) -> str:
    if isinstance(value, datetime):
        return time_text(value)
    if isinstance(value, bytes):
        return value.hex()
    raise TypeError(f"no column takes a {type(value).__name__}")


class Sql:
    """The fragments of one dialect, for statements that are otherwise the same text."""

    def __init__(self, dialect: str) -> None:
        if dialect not in {POSTGRES, SQLITE}:
            raise ValueError(f"unsupported database {dialect!r}: use postgresql+psycopg:// or sqlite:///")
        self.name = dialect
        self.is_postgres = dialect == POSTGRES
        self.now = (
            "coalesce(CAST(:now AS timestamptz), clock_timestamp())"
            if self.is_postgres
            else "coalesce(:now, strftime('%Y-%m-%d %H:%M:%f', 'now') || '000Z')"
        )
        """The database's clock, or `:now` when a test hands one in."""
        self.for_update = "FOR UPDATE" if self.is_postgres else ""
        self.for_update_now = "FOR UPDATE NOWAIT" if self.is_postgres else ""
        """For who holds the order lock: a row that a person has locked fails at once, and keeps nobody waiting."""
        self.skip_locked = "FOR UPDATE SKIP LOCKED" if self.is_postgres else ""
        self.keeps_ended_entries = self.is_postgres
        """Whether an index keeps the entries of rows that have ended as long as any snapshot is older."""
        self.needs_checkpoints = not self.is_postgres
        """Whether writers have to copy the write-ahead log back themselves: see `inbox.db.checkpoint`."""
        self.pause_after_write = 0.0 if self.is_postgres else 0.002
        """Seconds every writer but the receiver sleeps after each transaction: back to back, it starves the receiver on SQLite."""

    def rows(self, parameter: str, **columns: str) -> str:
        """A table named like the bound parameter, of the rows that `rows_param` wrote.

        `columns` names each column's type: text, bigint, boolean, json, time or bytes.
        """
        if self.is_postgres:
            types = {"json": "jsonb", "time": "timestamptz", "bytes": "text"}
            shape = ", ".join(f'"{name}" {types.get(kind, kind)}' for name, kind in columns.items())
            return f"jsonb_to_recordset(CAST(:{parameter} AS jsonb)) AS {parameter}({shape})"
        picked = ", ".join(f"json_extract(value, '$.{name}') AS \"{name}\"" for name in columns)
        return f"(SELECT {picked} FROM json_each(:{parameter})) AS {parameter}"

    def lines_of(self, view: str, wanted: str) -> str:
        """The lines of a view with a seq among the rows of the parameter `wanted`, which lie between `:after` and `:last`.

        Postgres looks them up one by one (OFFSET 0 keeps its planner from merging the two): for a range it would join
        the tables of the view from end to end. SQLite does so for single ones, and well for a range.
        """
        if self.is_postgres:
            one = f"SELECT * FROM {view} v WHERE v.seq = {wanted}.seq OFFSET 0"
            return f"{self.rows(wanted, seq='bigint')} CROSS JOIN LATERAL ({one}) AS {view}"
        return f"{view} WHERE {view}.seq > :after AND {view}.seq <= :last"

    def looked_up(self, rows: str, found: str, condition: str) -> str:
        """For each row of `rows`, what the table and alias `found` have by `condition`, which an index answers.

        Postgres looks it up row by row, whatever its statistics say (OFFSET 0 keeps its planner from merging the two).
        Where they say that a partial index is empty, and it is not any more, it would read all of that instead.
        """
        if self.is_postgres:
            alias = found.rsplit(maxsplit=1)[-1]
            return f"{rows} CROSS JOIN LATERAL (SELECT * FROM {found} WHERE {condition} OFFSET 0) AS {alias}"
        return f"{rows} JOIN {found} ON {condition}"

    def first_of(self, rows: str, found: str, condition: str, order: str, most: str) -> str:
        """As `looked_up`, but only the first few of each row of `rows`, by an order that the index has.

        However many there are, no more is read. SQLite has no LATERAL, so it looks them up by their rowids.
        """
        alias = found.rsplit(maxsplit=1)[-1]
        few = f"FROM {found} WHERE {condition} ORDER BY {order} LIMIT {most}"
        if self.is_postgres:
            return f"{rows} CROSS JOIN LATERAL (SELECT * {few}) AS {alias}"
        return f"{rows} CROSS JOIN {found} ON {alias}.rowid IN (SELECT {alias}.rowid {few})"

    def blobs(self, parameter: str) -> str:
        """A table of the one value that `Blobs.joined` gave, so that a statement binds it once however often it is used."""
        value = f"CAST(:{parameter} AS bytea)" if self.is_postgres else f":{parameter}"
        return f"(SELECT {value} AS {parameter}) AS {parameter}"

    def blob(self, blobs: str, at: str, size: str) -> str:
        """The bytes at the place that `Blobs.place` gave; one that is all there is is not copied."""
        return f"CASE WHEN {size} = length({blobs}) THEN {blobs} ELSE substr({blobs}, {at}, {size}) END"

    def hex_bytes(self, expression: str) -> str:
        """The bytes that the hex text of `expression` names."""
        return f"decode({expression}, 'hex')" if self.is_postgres else f"from_hex({expression})"

    def has_all(self, column: str, parameter: str) -> str:
        """Whether a list column has every text of the JSON list that was bound."""
        if self.is_postgres:
            return f"{column} @> ARRAY(SELECT jsonb_array_elements_text(CAST(:{parameter} AS jsonb)))"
        has = f"SELECT value FROM json_each({column})"
        return f"NOT EXISTS (SELECT 1 FROM json_each(:{parameter}) wanted WHERE wanted.value NOT IN ({has}))"

    def optional(self, column: str, kind: str, *, parameter: str | None = None, operator: str = "=") -> str:
        """A condition on a column that holds for every row when its parameter is null."""
        name = parameter or column
        value = f"CAST(:{name} AS {'timestamptz' if kind == 'time' else kind})" if self.is_postgres else f":{name}"
        return f"({value} IS NULL OR {column} {operator} {value})"

    def time(self, parameter: str) -> str:
        """The time that was bound as `time_text` writes it."""
        return f"CAST({parameter} AS timestamptz)" if self.is_postgres else parameter

    def seconds_between(self, earlier: str, later: str) -> str:
        """The seconds from one time to another."""
        if self.is_postgres:
            return f"CAST(extract(epoch FROM {later} - {earlier}) AS float8)"
        return f"round((julianday({later}) - julianday({earlier})) * 86400, 3)"

    def plus_seconds(self, time: str, seconds: str) -> str:
        """`time` and so many seconds."""
        if self.is_postgres:
            return f"{time} + make_interval(secs => {seconds})"
        return f"strftime('%Y-%m-%d %H:%M:%f', {time}, printf('%+.3f seconds', {seconds})) || '000Z'"


def sqlite_functions(connection: Any) -> None:  # noqa: ANN401  # sqlite3's connection, or the adapter of aiosqlite's
    """Functions that statements use and older SQLite versions lack (`unhex` came with 3.41)."""
    connection.create_function("from_hex", 1, _from_hex, deterministic=True)


def _from_hex(text: str | None) -> bytes | None:
    return None if text is None else bytes.fromhex(text)


_DATA_ERROR_CLASSES = ("22", "23", "54")
_UNIQUE_VIOLATION = "23505"
_UNIQUE_VIOLATIONS_OF_SQLITE = frozenset(
    {sqlite3.SQLITE_CONSTRAINT_UNIQUE, sqlite3.SQLITE_CONSTRAINT_PRIMARYKEY, sqlite3.SQLITE_CONSTRAINT_ROWID}
)
_DEADLOCK = "40P01"


def is_data_error(error: DBAPIError) -> bool:
    """Whether the rows themselves are to blame (SQLSTATE classes 22, 23, 54), so that other rows may well be stored.

    A number that is taken is never the row's fault: see `is_taken`.
    """
    if is_taken(error):
        return False
    sqlstate = getattr(error.orig, "sqlstate", None)
    if sqlstate is not None:
        return str(sqlstate)[:2] in _DATA_ERROR_CLASSES
    return isinstance(error, DataError | IntegrityError)  # SQLite's, or of a driver that refuses to send the value


def is_taken(error: DBAPIError) -> bool:
    """Whether a unique constraint has refused a row.

    Intake passes over keys that it knows (ON CONFLICT), so that leaves the numbers, which the database gives itself.
    """
    sqlstate = getattr(error.orig, "sqlstate", None)
    if sqlstate is not None:
        return str(sqlstate) == _UNIQUE_VIOLATION
    return getattr(error.orig, "sqlite_errorcode", None) in _UNIQUE_VIOLATIONS_OF_SQLITE


def constraint_of(error: DBAPIError) -> str:
    """The name of the constraint that has refused a row, and no value of it; SQLite tells the columns."""
    diagnosis = getattr(error.orig, "diag", None)
    name = getattr(diagnosis, "constraint_name", None) or str(error.orig).rpartition(":")[2].strip()
    return str(name)


def is_deadlock(error: DBAPIError) -> bool:
    """Whether the database ended this transaction to let another one go on."""
    return getattr(error.orig, "sqlstate", None) == _DEADLOCK


Failure = Literal["unreachable", "busy", "fault"]
"""`unreachable`: the database as a whole can't be used now. `busy`: the transaction lost to another one; the same again may
well succeed. `fault`: the items or the code are to blame; the same again comes to the same."""

# https://www.postgresql.org/docs/current/errcodes-appendix.html
_UNREACHABLE_CLASSES = ("08", "28", "3D", "53", "57", "58")
_READ_ONLY = "25006"
_BUSY_CLASS = "40"
_BUSY_STATES = frozenset({"55P03", "57014", "25P03", "25P04"})
"""A lock was not available, a statement was cancelled, a transaction was idle or open for too long."""

# https://www.sqlite.org/rescode.html
_BUSY_CODES = frozenset({sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED})
_FAULT_CODES = frozenset(
    {
        sqlite3.SQLITE_ERROR,
        sqlite3.SQLITE_INTERNAL,
        sqlite3.SQLITE_TOOBIG,
        sqlite3.SQLITE_CONSTRAINT,
        sqlite3.SQLITE_MISMATCH,
        sqlite3.SQLITE_MISUSE,
        sqlite3.SQLITE_RANGE,
    }
)
_PRIMARY_CODE = 0xFF


def failure_of(error: BaseException) -> Failure:
    """What an exception says that has ended a step which uses the database."""
    if isinstance(error, PoolTimeoutError):
        return "unreachable"
    if not isinstance(error, DBAPIError):
        return "fault"
    if error.connection_invalidated:
        return "unreachable"
    sqlstate = getattr(error.orig, "sqlstate", None)
    if sqlstate is not None:
        return _failure_of_state(str(sqlstate))
    code = getattr(error.orig, "sqlite_errorcode", None)
    if code is not None:
        primary = code & _PRIMARY_CODE
        return "busy" if primary in _BUSY_CODES else "fault" if primary in _FAULT_CODES else "unreachable"
    return "unreachable" if isinstance(error, OperationalError | InterfaceError) else "fault"


def _failure_of_state(sqlstate: str) -> Failure:
    if sqlstate in _BUSY_STATES or sqlstate[:2] == _BUSY_CLASS:
        return "busy"
    return "unreachable" if sqlstate == _READ_ONLY or sqlstate[:2] in _UNREACHABLE_CLASSES else "fault"


# Feature not supported (such as a cached plan whose result has changed), transaction state, statement name, schema name,
# syntax and privileges, prerequisite state.
_STATEMENT_CLASSES = ("0A", "25", "26", "3F", "42", "55")
_STATEMENT_ERROR_OF_SQLITE = re.compile(r"no such \w+: |table \S+ has no column named ")
"""SQLite has one code for these and for what a value may cause, such as malformed JSON."""


def blames_items(error: BaseException) -> bool:
    """Whether an exception may be one item's fault, so that a step may do the others, and set that one aside.

    Not where the statement can't be run at all, whatever is bound to it: a table or column that is not there, a privilege
    that is missing. The same would be said of every item.
    """
    if failure_of(error) != "fault":
        return False
    if not isinstance(error, DBAPIError):
        return True
    sqlstate = getattr(error.orig, "sqlstate", None)
    if sqlstate is not None:
        return str(sqlstate)[:2] not in _STATEMENT_CLASSES
    return _STATEMENT_ERROR_OF_SQLITE.match(str(error.orig)) is None


_HELD_UP = frozenset({"55P03", "57014"})


def is_held_up(error: BaseException) -> bool:
    """Whether a statement took too long, as by a row that stays locked: for fewer items it may be done in time.

    Not where it waits for the lock that all take in turn.
    """
    return (
        isinstance(error, DBAPIError)
        and getattr(error.orig, "sqlstate", None) in _HELD_UP
        and "order_lock" not in (error.statement or "")
    )


LONGEST_ERROR_TEXT = 300


def error_text(error: BaseException) -> str:
    """An exception in one line, for a column or a log: its type and the first line of its message.

    The statement, its parameters and the database's details stay out: they may hold what is not to be written down.
    """
    cause = error.orig if isinstance(error, DBAPIError) and error.orig is not None else error
    lines = str(cause).splitlines()
    told = f"{type(cause).__name__}: {lines[0]}" if lines and lines[0] else type(cause).__name__
    return storable(told[:LONGEST_ERROR_TEXT])


_LOCK_WAITS = frozenset({"55P03", _DEADLOCK})


def is_lock_wait(error: DBAPIError) -> bool:
    """Whether a lock could not be had in time, or only by a deadlock: nothing is wrong but the moment."""
    sqlstate = getattr(error.orig, "sqlstate", None)
    primary_code = getattr(error.orig, "sqlite_errorcode", 0) & _PRIMARY_CODE
    return sqlstate in _LOCK_WAITS or primary_code == sqlite3.SQLITE_BUSY


# SQLite has no COMMENT ON, so a DBA finds the comments in the table's own text: `.schema inbox`.


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
