"""Differences between Postgres and SQLite in statements and errors.

Statements have one text for both databases, with fragments from here for the parts that differ. Other modules check the
database only for features that one of them lacks. `inbox.db.columns` has the differences of columns.
"""

from __future__ import annotations

import hashlib
import json
import re
import sqlite3
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any, Literal

import msgspec
from sqlalchemy.exc import DataError, DBAPIError, IntegrityError, InterfaceError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError

from inbox.events.timestamps import time_text


def rows_param(rows: Iterable[Mapping[str, object]]) -> str:
    """Encode rows as a single bound parameter for `Sql.rows`, by `json_param`."""
    return json_param([dict(row) for row in rows])


def json_param(value: object) -> str:
    """Encode a value as JSON for a bound parameter, with times by `time_text` and bytes in hex.

    Every text, including keys, becomes storable. One check covers the whole value.
    """
    written = _dumps(value)
    return written if is_clean_json(written) else _dumps(make_all_storable(value))


def json_text(value: object) -> str:
    """Encode a value as JSON that must be stored unchanged.

    Raises:
        ValueError: it contains a text that is not storable.
    """
    written = msgspec.json.encode(value).decode()
    if not is_clean_json(written):
        raise ValueError("a text has a NUL")
    return written


def require_storable(rows: Iterable[tuple[Any, ...]]) -> None:
    """Check that the texts of rows can be stored unchanged.

    Raises:
        ValueError: a text is not storable.
    """
    if not is_storable("".join([value for row in rows for value in row if isinstance(value, str)])):
        raise ValueError("a text has a NUL or a lone surrogate")


def array_param(values: Sequence[str | bytes | int | datetime | None]) -> str:
    """Encode a column of a batch as the text of a Postgres array, for a `CAST(:values AS type[])`.

    This takes a third of the time that psycopg takes for a list:
    https://www.postgresql.org/docs/current/arrays.html#ARRAYS-IO
    """
    return "{" + ",".join(map(_element, values)) + "}"


def _element(value: str | bytes | int | datetime | None) -> str:
    if value is None:
        return "NULL"
    if isinstance(value, str):
        escaped = value.replace("\\", "\\\\").replace('"', '\\"')
        return f'"{escaped}"'
    if isinstance(value, datetime):
        return f'"{time_text(value)}"'
    if isinstance(value, bytes):
        return f'"\\\\x{value.hex()}"'
    return str(value)


class Blobs:
    """Bytes of many rows as one bound parameter. As hex in the rows' JSON they would take 48 times the memory.

    Each row has the position and length of its bytes in two columns, which `Sql.blob` reads.
    """

    def __init__(self) -> None:
        self._parts: list[bytes] = []
        self._size = 0

    def place(self, blob: bytes | None) -> tuple[int | None, int | None]:
        """Add a value. Returns the position of its first byte, counted from 1, and its length; None for no value."""
        if blob is None:
            return None, None
        at = self._size + 1
        self._parts.append(blob)
        self._size += len(blob)
        return at, len(blob)

    def join(self) -> bytes:
        """Join all values; a single one is not copied."""
        return b"".join(self._parts)


def is_clean_json(written: str) -> bool:
    """Return whether every text in this JSON is storable."""
    return is_storable(written) and not ("\\u0000" in written and _NUL_IN_JSON.search(written))


def _dumps(value: object) -> str:
    return json.dumps(value, default=_encode, ensure_ascii=False, separators=(",", ":"))


_NUL_IN_JSON = re.compile(r"(?<!\\)(?:\\\\)*\\u0000")
"""Pattern of a NUL as written by `json`, not preceded by an escaping backslash."""


def make_storable(value: str) -> str:
    """Make a text storable in both databases: NUL and lone surrogates become Python's escapes.

    Postgres has no NUL in text or jsonb (postgresql.org/docs/current/datatype-character.html); no driver encodes a lone
    surrogate.
    """
    return value.replace("\x00", "\\x00").encode("utf-8", "backslashreplace").decode("utf-8")


def is_storable(value: str) -> bool:
    """Return whether `make_storable` would leave the text unchanged."""
    if "\x00" in value:
        return False
    try:
        return value.isascii() or bool(value.encode("utf-8"))
    except UnicodeEncodeError:
        return False


def make_all_storable(value: Any) -> Any:  # noqa: ANN401  # any JSON value, with times and bytes
    """Make every text of a value storable, including keys."""
    if isinstance(value, str):
        return make_storable(value)
    if isinstance(value, Mapping):
        return {make_storable(str(key)): make_all_storable(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [make_all_storable(item) for item in value]
    return value


def _encode(value: object) -> str:
    if isinstance(value, datetime):
        return time_text(value)
    if isinstance(value, bytes):
        return value.hex()
    raise TypeError(f"no column takes a {type(value).__name__}")


POSTGRES, SQLITE = "postgresql", "sqlite"


def as_json(value: Any) -> Any:  # noqa: ANN401  # any JSON value
    """Decode a driver's value of a JSON column, which is text on SQLite."""
    return json.loads(value) if isinstance(value, str) else value


def as_list(value: list[str] | str) -> list[str]:
    """Decode a driver's value of a list column, which is text on SQLite."""
    return list(json.loads(value)) if isinstance(value, str) else value


class Sql:
    """SQL fragments of one dialect, for statements whose text is otherwise the same."""

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
        """The database's clock, or `:now` in tests."""
        # Not clock_timestamp(), which is volatile: Postgres could not use an index for it.
        self.statement_time = "statement_timestamp()" if self.is_postgres else "'now'"
        self.pipelines = self.is_postgres
        """True if the driver can send several statements without waiting for each result: see `inbox.db.pipeline`."""
        self.pause_after_write = 0.0 if self.is_postgres else 0.002
        """Seconds that writers sleep after each transaction, except the receiver, which they would starve on SQLite."""

    def rows(self, parameter: str, **columns: str) -> str:
        """Return a table of the rows encoded by `rows_param`, named like the bound parameter.

        `columns` maps each column to its type: text, bigint, boolean, json, time or bytes.

        For a limit unknown at planning time, Postgres divides its row estimate by ten: 10 instead of 100. For 100 rows,
        it would scan a seemingly small table instead of using an index, and so read all dead rows that an open
        transaction keeps.
        """
        if self.is_postgres:
            types = {"json": "jsonb", "time": "timestamptz", "bytes": "text"}
            shape = ", ".join(f'"{name}" {types.get(kind, kind)}' for name, kind in columns.items())
            given = f"jsonb_to_recordset(CAST(:{parameter} AS jsonb)) AS given({shape})"
            return f"(SELECT * FROM {given} LIMIT (SELECT CAST(NULL AS bigint))) AS {parameter}"
        picked = ", ".join(f"json_extract(value, '$.{name}') AS \"{name}\"" for name in columns)
        return f"(SELECT {picked} FROM json_each(:{parameter})) AS {parameter}"

    def lock(self, alias: str, *, skip: bool = False) -> str:
        """Return the clause that locks rows of a table; with `skip`, it skips rows that are already locked."""
        return f"FOR UPDATE OF {alias}{' SKIP LOCKED' * skip}" if self.is_postgres else ""

    def bound(self, parameter: str, kind: str) -> str:
        """Return a parameter with an explicit type for Postgres."""
        return f"CAST(:{parameter} AS {kind})" if self.is_postgres else f":{parameter}"

    def keys(self, parameter: str) -> str:
        """Return a table of delivery keys (seq and route), as `rows` does."""
        return self.rows(parameter, seq="bigint", route="text")

    def deliveries(self, keys: str, **columns: str) -> str:
        """Return the rows of `open_delivery`, as `o`, with the keys in a parameter, which may have other `columns`."""
        rows = self.rows(keys, seq="bigint", route="text", **columns)
        return self.look_up(rows, "open_delivery o", f"o.seq = {keys}.seq AND o.route = {keys}.route")

    def has_key(self, alias: str, keys: str, *, found: bool = False) -> str:
        """Return the condition that joins rows of `open_delivery` with `keys`: see `match_keys`."""
        return f"{alias}.seq = {keys}.seq AND {alias}.route = {keys}.route{self.match_keys(alias, keys, found=found)}"

    def match_keys(self, alias: str, keys: str, *, found: bool = False) -> str:
        """Return a condition that makes Postgres look up the changed rows by `keys`, as `look_up` does for reads.

        `keys` is a parameter of `rows`, or with `found` a common table expression.
        """
        if not self.is_postgres:
            return ""
        return f" AND {alias}.seq = ANY (ARRAY(SELECT seq FROM {keys if found else self.keys(keys)}))"

    def look_up(self, rows: str, found: str, condition: str) -> str:
        """Join each row of `rows` with rows of `found` (table and alias) by an indexed `condition`.

        Postgres looks them up row by row, whatever its statistics say: OFFSET 0 keeps the planner from flattening the
        subquery. Otherwise, after an ANALYZE of the empty table, it would read the whole index, even the primary key.
        Rows are locked in the order of `rows`.
        """
        if self.is_postgres:
            alias = found.rsplit(maxsplit=1)[-1]
            return f"{rows} CROSS JOIN LATERAL (SELECT * FROM {found} WHERE {condition} OFFSET 0) AS {alias}"
        return f"{rows} JOIN {found} ON {condition}"

    def select_first(self, rows: str, found: str, condition: str, order: str, most: str) -> str:
        """Join like `look_up`, but with only the first `most` rows of `found` in index order.

        Further rows are not read. SQLite has no LATERAL, so it uses rowids.
        """
        alias = found.rsplit(maxsplit=1)[-1]
        few = f"FROM {found} WHERE {condition} ORDER BY {order} LIMIT {most}"
        if self.is_postgres:
            return f"{rows} CROSS JOIN LATERAL (SELECT * {few}) AS {alias}"
        return f"{rows} CROSS JOIN {found} ON {alias}.rowid IN (SELECT {alias}.rowid {few})"

    def blobs(self, parameter: str) -> str:
        """Return a table of the value of `Blobs.join`, so that a statement binds it only once."""
        value = f"CAST(:{parameter} AS bytea)" if self.is_postgres else f":{parameter}"
        return f"(SELECT {value} AS {parameter}) AS {parameter}"

    def blob(self, blobs: str, at: str, size: str) -> str:
        """Return the bytes at the position given by `Blobs.place`; a single value is not copied."""
        return f"CASE WHEN {size} = length({blobs}) THEN {blobs} ELSE substr({blobs}, {at}, {size}) END"

    def hex_bytes(self, expression: str) -> str:
        """Decode the hex text of `expression` to bytes."""
        return f"decode({expression}, 'hex')" if self.is_postgres else f"from_hex({expression})"

    def has_all(self, column: str, parameter: str) -> str:
        """Return the condition that a list column contains every text of the bound JSON list."""
        if self.is_postgres:
            return f"{column} @> ARRAY(SELECT jsonb_array_elements_text(CAST(:{parameter} AS jsonb)))"
        has = f"SELECT value FROM json_each({column})"
        return f"NOT EXISTS (SELECT 1 FROM json_each(:{parameter}) wanted WHERE wanted.value NOT IN ({has}))"

    def optional(self, column: str, kind: str, *, parameter: str | None = None, operator: str = "=") -> str:
        """Return a condition on a column that is true for every row if its parameter is null."""
        name = parameter or column
        value = f"CAST(:{name} AS {'timestamptz' if kind == 'time' else kind})" if self.is_postgres else f":{name}"
        return f"({value} IS NULL OR {column} {operator} {value})"

    def contains(self, column: str, parameter: str) -> str:
        """Return the condition that a text contains the parameter, ignoring case; it is true if the parameter is null."""
        if self.is_postgres:
            value = f"CAST(:{parameter} AS text)"
            return f"({value} IS NULL OR position(lower({value}) IN lower({column})) > 0)"
        return f"(:{parameter} IS NULL OR instr(lower({column}), lower(:{parameter})) > 0)"

    def has_bytes(self, column: str, parameter: str) -> str:
        """Return the condition that a column of bytes contains those of the parameter."""
        return f"position(:{parameter} IN {column}) > 0" if self.is_postgres else f"instr({column}, :{parameter}) > 0"

    def extract_status(self, fact: str) -> str:
        """Return the HTTP status of a fact's last call; null for malformed facts, so that they don't break the view."""
        if self.is_postgres:
            return f"CAST(substring({fact}.detail #>> '{{calls,-1,status}}' FROM '^[0-9][0-9][0-9]$') AS int)"
        return f"{fact}.detail ->> '$.calls[#-1].status'"

    def sha256(self, expression: str) -> str:
        """Return the SHA-256 of a UTF-8 text, in hex."""
        if self.is_postgres:
            return f"encode(sha256(convert_to({expression}, 'UTF8')), 'hex')"
        return f"sha256_hex(CAST({expression} AS BLOB))"

    def number(self, expression: str) -> str:
        """Return a text of up to 18 digits as a number; null for other texts, so that a bad fact breaks no statement."""
        if self.is_postgres:
            return f"CAST(substring({expression} FROM '^[0-9]{{1,18}}$') AS bigint)"
        is_number = f"length({expression}) BETWEEN 1 AND 18 AND {expression} NOT GLOB '*[^0-9]*'"
        return f"CASE WHEN {is_number} THEN CAST({expression} AS bigint) END"

    def without(self, json: str, key: str) -> str:
        """Return a JSON object without one of its keys."""
        return f"{json} - '{key}'" if self.is_postgres else f"json_remove({json}, '$.{key}')"

    def time(self, parameter: str) -> str:
        """Return the time in a parameter formatted by `time_text`."""
        return f"CAST({parameter} AS timestamptz)" if self.is_postgres else parameter

    def seconds_between(self, earlier: str, later: str) -> str:
        """Return the seconds from one time to another."""
        if self.is_postgres:
            return f"CAST(round(extract(epoch FROM {later} - {earlier}), 3) AS float8)"
        return f"round((julianday({later}) - julianday({earlier})) * 86400, 3)"

    def seconds_since(self, column: str) -> str:
        """Return the seconds from a time until the statement."""
        return self.seconds_between(column, self.statement_time)

    def ago(self, seconds: int) -> str:
        """Return the time so many seconds before the statement, usable with an index."""
        return self.plus_seconds(self.statement_time, f"{-seconds}")

    def minute(self, time: str) -> str:
        """Return the beginning of the minute of `time`."""
        return f"date_trunc('minute', {time})" if self.is_postgres else f"substr({time}, 1, 17) || '00.000000Z'"

    def second(self, time: str) -> str:
        """Return a time as text, to the second, in UTC."""
        if self.is_postgres:
            return f"to_char({time} AT TIME ZONE 'UTC', 'YYYY-MM-DD HH24:MI:SS\"Z\"')"
        return f"substr({time}, 1, 19) || 'Z'"

    def hour(self, time: str) -> str:
        """Return the beginning of the hour of `time`, in UTC."""
        return f"date_trunc('hour', {time}, 'UTC')" if self.is_postgres else f"substr({time}, 1, 14) || '00:00.000000Z'"

    def plus_seconds(self, time: str, seconds: str) -> str:
        """Return `time` plus so many seconds."""
        if self.is_postgres:
            return f"{time} + make_interval(secs => {seconds})"
        return f"strftime('%Y-%m-%d %H:%M:%f', {time}, printf('%+.3f seconds', {seconds})) || '000Z'"


def each_name(column: str, table: str, condition: str = "1 = 1") -> str:
    """Select the distinct values of a column, as `name`, by one index lookup each; a DISTINCT would read every row.

    The index must begin with the columns fixed by `condition`, then the column. The table's alias is `t`.
    """
    first = f"SELECT min(t.{column}) FROM {table} t WHERE {condition}"
    return f"""(
        WITH RECURSIVE found(name) AS (
            {first}
            UNION ALL
            SELECT ({first} AND t.{column} > found.name) FROM found WHERE found.name IS NOT NULL)
        SELECT name FROM found WHERE name IS NOT NULL)"""


def sqlite_functions(connection: Any) -> None:  # noqa: ANN401  # the driver's connection
    """Add SQL functions that SQLite or its older versions lack (`unhex` came with 3.41)."""
    connection.create_function("from_hex", 1, _from_hex, deterministic=True)
    connection.create_function("sha256_hex", 1, _sha256_hex, deterministic=True)


def _from_hex(text: str | None) -> bytes | None:
    return None if text is None else bytes.fromhex(text)


def _sha256_hex(stored: bytes | None) -> str | None:
    """Hash a text, passed as bytes, since sqlite3 can't pass text that is not valid UTF-8."""
    return None if stored is None else hashlib.sha256(stored).hexdigest()


_DATA_ERROR_CLASSES = ("22", "23", "54")
_UNIQUE_VIOLATION = "23505"
_UNIQUE_VIOLATIONS_OF_SQLITE = frozenset(
    {sqlite3.SQLITE_CONSTRAINT_UNIQUE, sqlite3.SQLITE_CONSTRAINT_PRIMARYKEY, sqlite3.SQLITE_CONSTRAINT_ROWID}
)
_DEADLOCK = "40P01"


def _sqlstate(error: DBAPIError) -> str | None:
    return getattr(error.orig, "sqlstate", None)


def is_data_error(error: DBAPIError) -> bool:
    """Return whether the rows are at fault (SQLSTATE classes 22, 23, 54), so that other rows may be stored.

    A number already in use is never the row's fault: see `is_unique_violation`.
    """
    if is_unique_violation(error):
        return False
    if (sqlstate := _sqlstate(error)) is not None:
        return sqlstate[:2] in _DATA_ERROR_CLASSES
    return isinstance(error, DataError | IntegrityError)  # from SQLite, or from a driver that can't send the value


def is_unique_violation(error: DBAPIError) -> bool:
    """Return whether a unique constraint rejected a row.

    Intake skips known keys (ON CONFLICT), so only a number assigned by the database can be the cause.
    """
    if (sqlstate := _sqlstate(error)) is not None:
        return sqlstate == _UNIQUE_VIOLATION
    return getattr(error.orig, "sqlite_errorcode", None) in _UNIQUE_VIOLATIONS_OF_SQLITE


_DAMAGED_OF_SQLITE = frozenset(
    {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_FULL}
)
_DAMAGED = ("XX001", "XX002", "58030")
"""SQLSTATEs: data corrupted, index corrupted, I/O error."""


def is_damage(error: DBAPIError) -> bool:
    """Return whether the error shows that stored data is damaged or unreadable."""
    code = getattr(error.orig, "sqlite_errorcode", None)
    return _sqlstate(error) in _DAMAGED if code is None else code & _PRIMARY_CODE in _DAMAGED_OF_SQLITE


def is_deadlock(error: DBAPIError) -> bool:
    """Return whether the database aborted this transaction because of a deadlock."""
    return _sqlstate(error) == _DEADLOCK


Failure = Literal["unreachable", "busy", "fault"]
"""`unreachable`: the database can't be used now. `busy`: the transaction lost to another one; a retry may succeed.
`fault`: the items or the code are at fault; a retry would fail again."""

# https://www.postgresql.org/docs/current/errcodes-appendix.html
_UNREACHABLE_CLASSES = ("08", "28", "3D", "53", "57", "58")
_READ_ONLY = "25006"
_BUSY_CLASS = "40"
_BUSY_STATES = frozenset({"55P03", "57014", "25P03", "25P04"})
"""SQLSTATEs: lock not available, statement cancelled, transaction idle or open for too long."""

# https://www.sqlite.org/rescode.html
_BUSY_CODES = frozenset({sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED})
_FAULTS_OF_SQLITE = (sqlite3.DataError, sqlite3.IntegrityError, sqlite3.InterfaceError, sqlite3.InternalError)
_PRIMARY_CODE = 0xFF


def classify_failure(error: BaseException) -> Failure:
    """Classify an exception of a step that uses the database."""
    if isinstance(error, PoolTimeoutError) or (isinstance(error, DBAPIError) and error.connection_invalidated):
        return "unreachable"
    if not isinstance(error, DBAPIError):
        return "fault"
    if (sqlstate := _sqlstate(error)) is not None:
        if sqlstate in _BUSY_STATES or sqlstate[:2] == _BUSY_CLASS:
            return "busy"
        return "unreachable" if sqlstate == _READ_ONLY or sqlstate[:2] in _UNREACHABLE_CLASSES else "fault"
    code = getattr(error.orig, "sqlite_errorcode", None)
    if code is None:
        is_away = isinstance(error, OperationalError | InterfaceError)
    elif code & _PRIMARY_CODE in _BUSY_CODES:
        return "busy"
    else:
        is_away = not isinstance(error.orig, _FAULTS_OF_SQLITE) and code & _PRIMARY_CODE != sqlite3.SQLITE_ERROR
    return "unreachable" if is_away else "fault"


# Feature not supported (such as a cached plan whose result has changed), transaction state, statement name, schema name,
# syntax and privileges, prerequisite state.
_STATEMENT_CLASSES = ("0A", "25", "26", "3F", "42", "55")
_STATEMENT_ERROR_OF_SQLITE = re.compile(r"no such \w+: |table \S+ has no column named ")
"""Messages by which SQLite tells these errors from faulty values, such as malformed JSON: both have the same code."""


def blames_items(error: BaseException) -> bool:
    """Return whether an exception may be one item's fault, so that a step may quarantine it and handle the others.

    An item is not at fault if the statement fails for all values, as when a table, a column or a privilege is missing.
    """
    if classify_failure(error) != "fault":
        return False
    if not isinstance(error, DBAPIError):
        return True
    if (sqlstate := _sqlstate(error)) is not None:
        return sqlstate[:2] not in _STATEMENT_CLASSES
    return _STATEMENT_ERROR_OF_SQLITE.match(str(error.orig)) is None


_TOO_LONG = frozenset({"57014", "25P03", "25P04"})
_HELD_UP = _TOO_LONG | {"55P03", _DEADLOCK}


def takes_too_long(error: BaseException) -> bool:
    """Return whether Postgres ended a statement or transaction at a time limit, so that fewer items may succeed."""
    return isinstance(error, DBAPIError) and _sqlstate(error) in _TOO_LONG


def is_wait_timeout(error: BaseException) -> bool:
    """Return whether a time limit of Postgres, a lock timeout or a deadlock ended a statement or transaction."""
    return isinstance(error, DBAPIError) and _sqlstate(error) in _HELD_UP


LONGEST_ERROR_TEXT = 300


def error_text(error: BaseException) -> str:
    """Format an exception as one line for a column or log: its type and the first line of its message.

    The statement, its parameters and the database's details are omitted, as they may contain confidential values.
    """
    cause = error.orig if isinstance(error, DBAPIError) and error.orig is not None else error
    lines = str(cause).splitlines()
    line = f"{type(cause).__name__}: {lines[0]}" if lines and lines[0] else type(cause).__name__
    return make_storable(line[:LONGEST_ERROR_TEXT])


_LOCK_WAITS = frozenset({"55P03", _DEADLOCK})


def is_lock_wait(error: DBAPIError) -> bool:
    """Return whether a lock timed out or ended in a deadlock, so that a retry may succeed."""
    primary_code = getattr(error.orig, "sqlite_errorcode", 0) & _PRIMARY_CODE
    return _sqlstate(error) in _LOCK_WAITS or primary_code == sqlite3.SQLITE_BUSY


_NO_RIGHT = "42501"
_HINT = re.compile(r"\s*Is the server running [^?]*\?|\(Background on this error at: [^)]*\)")
"""Unhelpful parts of messages: a question of libpq, and links to SQLAlchemy's documentation."""


def trouble_text(error: BaseException) -> str:
    """Format an error of the database or its connection for people.

    Connection errors of libpq have several lines with tabs, but no password. Statement errors are cut to the first
    line, as in `error_text`, since the other lines may hold values. Other exceptions are reduced to their type.
    """
    is_of_driver = isinstance(error, DBAPIError)
    cause = error.orig if isinstance(error, DBAPIError) and error.orig is not None else error
    failure = classify_failure(error)
    if failure == "fault" and not is_of_driver:
        return type(cause).__name__
    words = str(cause).strip()
    is_of_statement = isinstance(cause, sqlite3.Error) or getattr(cause, "sqlstate", None) is not None
    if failure != "unreachable" or is_of_statement:
        words = words.partition("\n")[0]
    line = " ".join(_HINT.sub("", words).split())
    return make_storable(line[:LONGEST_ERROR_TEXT]) or type(cause).__name__


def remedy(error: DBAPIError) -> str:
    """Return advice for the operator to append to a message, after a semicolon; empty if the error already says it."""
    if getattr(error.orig, "sqlstate", None) == _NO_RIGHT:
        return "; this login lacks the right: use one whose role has it (docs/how-to/limit-what-roles-may-do.md)"
    if is_lock_wait(error):
        return "; another session holds a lock: try again, and if that fails, find the session with `inbox doctor`"
    return ""
