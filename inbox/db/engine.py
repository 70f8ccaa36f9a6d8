"""Database connections of both programs. Each pins the settings that guarantees need, whatever the server's defaults."""

from __future__ import annotations

import contextlib
import os
import re
import sqlite3
import time
from collections import Counter
from collections.abc import Mapping
from contextlib import AbstractContextManager, closing, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from sqlalchemy import URL, Connection, Engine, create_engine, event, make_url, text
from sqlalchemy.engine import ExceptionContext
from sqlalchemy.exc import ArgumentError
from sqlalchemy.pool import NullPool

from inbox.config.values import DatabaseUrl, SchemaName
from inbox.db.dialect import POSTGRES, SQLITE, sqlite_functions
from inbox.errors import ConfigError

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncEngine


LOCK_TIMEOUT_SECONDS = 2
"""Lock timeout, after which the statement fails: the receiver responds 503, the relay retries."""
SQLITE_WAIT_SECONDS = 5.0
"""Seconds to wait for another writer of a SQLite file."""

PINNED: Mapping[str, str] = {
    # statements after a lock must see rows committed before its grant, or lanes stay without a head
    "default_transaction_isolation": "read committed",
    "synchronous_commit": "on",
    "lock_timeout": f"{LOCK_TIMEOUT_SECONDS}s",
    "idle_in_transaction_session_timeout": "3s",  # a frozen process must not keep the order lock
    "timezone": "UTC",
}
"""Settings of every transaction on Postgres, overriding the server's. `inbox.db.guarantees` checks them."""

QUICK: Mapping[str, str] = {
    "jit": "off",  # compiling takes a quarter of a second, for queries of a few milliseconds
}
"""Performance settings of every transaction on Postgres; the URL's `options` may override them."""

DEFAULT_SCHEMA = "public"
_ISOLATION = "default_transaction_isolation"
_PARAMETER_REFUSED = "unsupported startup parameter"
"""PgBouncer's error for unsupported options: https://www.pgbouncer.org/config.html#ignore_startup_parameters."""

CHANNEL = "left('inbox_relay_' || current_schema(), 63)"
"""SQL expression of the channel on which receivers wake relays, one per schema. Truncated names that collide only cause
needless wake-ups."""
NOTIFY = text(f"SELECT pg_notify({CHANNEL}, '')")

OLDEST_SQLITE = (3, 38, 0)
"""First version with the `->>` operator, which the views use."""


def parse_url(url: str) -> URL:
    """Parse the database's URL, and set the driver.

    Raises:
        ConfigError: it is neither Postgres nor a SQLite file.
    """
    try:
        parsed = make_url(url)
    except (
        ArgumentError,
        ValueError,
    ):  # ValueError: an invalid port, not shown, as it may be part of a password
        raise ConfigError(
            f"{_origin(url)}: can't be read; use sqlite:///inbox.db or postgresql+psycopg://user@host:5432/name"
        ) from None
    if parsed.get_backend_name() == POSTGRES:
        _check_places(url)
        _check_query(parsed, _origin(url))
        return _with_password_in_place(parsed.set(drivername="postgresql+psycopg"))
    if parsed.get_backend_name() == SQLITE and parsed.database not in (None, "", ":memory:"):
        return parsed.set(drivername="sqlite+pysqlite")
    raise ConfigError(f"{_origin(url)}: it is neither postgresql+psycopg://… nor a file such as sqlite:///inbox.db")


def format_url(url: URL) -> str:
    """Format a parsed URL for people, without the passwords of the user and the client key."""
    plain = url.difference_update_query(["sslpassword"])
    return plain.render_as_string(hide_password=True).replace("sqlite+pysqlite:", "sqlite:")


def _origin(url: str) -> str:
    """Return the key or variable that the URL comes from."""
    return url.origin if isinstance(url, DatabaseUrl) else DatabaseUrl(url).origin


def search_path(schema: str) -> str:
    """Return a search path for `schema` only, excluding other schemas and temporary tables."""
    return f"{schema}, pg_temp"


def read_schema(connection: Connection) -> str:
    """Return the schema of a Postgres connection."""
    return str(connection.get_execution_options()[_IN_SCHEMA])


def connect(url: str, *, application: str, pings: bool = False) -> Engine:
    """Create an engine for threads; with `pings`, it checks that a connection is alive before reusing it.

    Raises:
        ConfigError: as `parse_url`.
    """
    parsed = parse_url(url)
    if parsed.get_backend_name() == SQLITE:
        return _to_sqlite(parsed, _origin(url), SQLITE_WAIT_SECONDS, pool_reset_on_return="rollback")
    way = _way_to_postgres(parsed, application)
    made = create_engine(way.url, connect_args=way.arguments, pool_timeout=LOCK_TIMEOUT_SECONDS, pool_pre_ping=pings)
    made.update_execution_options(**{_IN_SCHEMA: way.schema})
    _connect_patiently(made)
    if way.pooled:
        _pin_transactions(made, way.schema)
    else:
        _explain_refusal(made, _origin(url))
    return made


def connect_thread(url: str) -> Engine:
    """Create an engine, without a pool, for the single thread in which a receiver writes to SQLite.

    Raises:
        ConfigError: as `parse_url`.
    """
    return _to_sqlite(parse_url(url), _origin(url), LOCK_TIMEOUT_SECONDS, poolclass=NullPool)


def connect_async(url: str, *, application: str) -> AsyncEngine:
    """Create an engine for the receiver's event loop on Postgres, in autocommit: each statement is a transaction.

    Behind a pooler there is no autocommit: see `one_transaction`. It has no pool, as each link keeps its own connection.

    Raises:
        ConfigError: as `parse_url`.
    """
    from sqlalchemy.ext.asyncio import create_async_engine  # noqa: PLC0415  # it loads sqlalchemy.orm, which commands don't need

    from inbox.db.unanswered import ImpatientConnection  # noqa: PLC0415  # as below

    way = _way_to_postgres(parse_url(url), application)
    level = {} if way.pooled else {"isolation_level": "AUTOCOMMIT"}
    arguments = {**way.arguments, "async_creator_fn": ImpatientConnection.connect}
    made = create_async_engine(way.url, connect_args=arguments, poolclass=NullPool, **level)
    made.sync_engine.update_execution_options(**{_IN_SCHEMA: way.schema})
    if way.pooled:
        _pin_transactions(made.sync_engine, way.schema)
    return made


def is_behind_pooler(engine: Engine) -> bool:
    """Return whether the URL declares a pooler, which may give each transaction another server connection."""
    return _POOLED in engine.get_execution_options()


def one_transaction(connection: Connection) -> AbstractContextManager[object]:
    """Begin a transaction on a receiver's connection, except in autocommit, where each statement is one."""
    if connection.dialect.name == POSTGRES and not is_behind_pooler(connection.engine):
        return nullcontext()
    return connection.begin()


def reading(connection: Connection) -> Connection:
    """Mark the connection's next transaction as reading, so that on SQLite it does not take the write lock."""
    return connection.execution_options(sqlite_begin="DEFERRED")


def snapshot(connection: Connection) -> Connection:
    """Make the connection's next transaction read from one snapshot, as all transactions on SQLite do."""
    if connection.dialect.name == SQLITE:
        return reading(connection)
    if connection.get_execution_options().get(_POOLED):
        return connection.execution_options(postgresql_begin="REPEATABLE READ READ ONLY")
    return connection.execution_options(isolation_level="REPEATABLE READ")


_POOLED = "pooled"
_IN_SCHEMA = "in_schema"


class _Way(NamedTuple):
    url: URL
    arguments: dict[str, Any]
    """Arguments of the driver's `connect`."""
    pooled: bool
    schema: str


def _way_to_postgres(url: URL, application: str) -> _Way:
    """Choose where to set the pinned settings: at the connection's start, or behind a pooler in each transaction.

    Behind a pooler in transaction mode, each transaction may use another server connection. The pooler rejects options,
    a SET would affect other clients, and prepared statements would be missing later.
    """
    pooled = "pooler" in url.query
    schema = _get_text(url, "schema") or DEFAULT_SCHEMA
    arguments: dict[str, Any] = {
        "connect_timeout": 2,
        "application_name": application,
        "keepalives_idle": 10,
        "keepalives_interval": 5,
        "keepalives_count": 3,
        "tcp_user_timeout": 8000,  # ms; detects half-open connections before a lease ends
    }
    options = [_get_text(url, "options")]
    if pooled:
        arguments |= {"autocommit": True, "prepare_threshold": None}  # we begin transactions ourselves
    else:  # of repeated options, the last one counts
        pins = {**PINNED, "search_path": search_path(schema)}
        options = [*_options(QUICK), *options, *_options(pins)]
    if together := " ".join(options).strip():
        arguments["options"] = together
    return _Way(url.difference_update_query(["pooler", "schema", "options"]), arguments, pooled, schema)


def _options(settings: Mapping[str, str]) -> list[str]:
    return [f"-c {name}=" + value.replace(" ", r"\ ") for name, value in settings.items()]


_BEHIND_THE_USER = re.compile(r"[\w+]+://(?:[^:/]*(?::[^@]*)?@)?(?P<place>[^?]*)\??(?P<query>.*)", re.DOTALL)
"""Pattern of a URL as SQLAlchemy reads it: the password ends at the first @."""
_AT_IN_A_NAME = re.compile(r"(?:^|&)[^=&]*@")


def _check_places(url: str) -> None:
    """Reject an unescaped @ in a password, whose rest would become the host or name, which errors show."""
    found = _BEHIND_THE_USER.match(url)
    if found and ("@" in found["place"] or _AT_IN_A_NAME.search(found["query"])):
        raise ConfigError(f"{_origin(url)}: an @ within the user, the password or the name has to be written %40")


def _with_password_in_place(url: URL) -> URL:
    """Move a password from the query to the user part, where SQLAlchemy hides it."""
    given = _get_text(url, "password")
    return url.difference_update_query(["password"]).set(password=given) if given else url


def _check_query(url: URL, origin: str) -> None:
    """Reject invalid values of `pooler` and `schema`."""
    if "pooler" in url.query and url.query["pooler"] != "transaction":
        raise ConfigError(f'{origin}: pooler can only be "transaction"; leave it out without a pooler')
    if "schema" in url.query:
        try:
            SchemaName.parse(url.query["schema"])
        except ValueError as error:
            raise ConfigError(f"{origin}: {error}") from None


def _connect_patiently(engine: Engine) -> None:
    @event.listens_for(engine, "do_connect")
    def _connecting(_dialect: object, _record: object, arguments: list[Any], options: dict[str, Any]) -> object:
        from inbox.db.unanswered import PatientConnection  # noqa: PLC0415  # it loads psycopg, which SQLite doesn't need

        return PatientConnection.connect(*arguments, **options)


def _get_text(url: URL, name: str) -> str:
    value = url.query.get(name, "")
    return value if isinstance(value, str) else " ".join(value)


def _pin_transactions(engine: Engine, schema: str) -> None:
    """Set the pinned settings at the beginning of each transaction.

    They are sent in one message with BEGIN, which saves a round trip.
    """
    engine.update_execution_options(**{_POOLED: True})
    settings = [f"{name} = '{value}'" for name, value in {**QUICK, **PINNED}.items() if name != _ISOLATION]
    settings.append(f"search_path = {search_path(schema)}")  # a list, which quotes would turn into a single name
    pins = "; ".join(f"SET LOCAL {setting}" for setting in settings)

    @event.listens_for(engine, "begin")
    def _begin(connection: Connection) -> None:
        options = connection.get_execution_options()
        if options.get("isolation_level") != "AUTOCOMMIT":
            mode = options.get("postgresql_begin", PINNED[_ISOLATION])
            connection.exec_driver_sql(f"BEGIN ISOLATION LEVEL {mode}; {pins}")


def _explain_refusal(engine: Engine, origin: str) -> None:
    """Raise a ConfigError with a remedy if a pooler rejects the pinned settings of a new connection."""

    @event.listens_for(engine, "handle_error")
    def _explain_pooler(context: ExceptionContext) -> None:
        message = str(context.original_exception).strip()
        if context.connection is None and _PARAMETER_REFUSED in message:
            raise ConfigError(
                f"{origin}: a connection pooler rejects required settings; if it is in transaction mode, add"
                f" pooler=transaction to the url: …?pooler=transaction ({message})"
            ) from context.original_exception


def _to_sqlite(url: URL, origin: str, wait: float, **pooling: Any) -> Engine:  # noqa: ANN401  # `create_engine`'s
    """Create an engine with WAL, an fsync at every commit, and transactions that take the write lock at their start.

    A deferred transaction that first reads and then writes fails at once with SQLITE_BUSY_SNAPSHOT if another one
    committed in between, whatever the busy timeout. Python's sqlite3 would begin deferred ones, hence the listeners.

    A new file is readable only by its owner, as the mode is the only protection of its webhooks. SQLite gives the files
    beside it (-wal, -shm) the same mode (`findCreateFileMode` in its os_unix.c).
    """
    if sqlite3.sqlite_version_info < OLDEST_SQLITE:
        oldest = ".".join(str(part) for part in OLDEST_SQLITE)
        raise ConfigError(f"SQLite {sqlite3.sqlite_version} is too old: {oldest} or newer is needed, or Postgres")
    folder = Path(url.database or "").parent
    if not folder.is_dir():
        raise ConfigError(f"{origin}: there is no folder {folder} for the SQLite file; make it first")
    engine = create_engine(url, connect_args={"timeout": wait}, **pooling)

    @event.listens_for(engine, "do_connect")
    def _connecting(*_: object) -> None:
        name = engine.url.database or ""
        if not name.startswith("file:"):  # a URI, which SQLite reads
            with contextlib.suppress(OSError):  # it exists, or SQLite will give a better error
                os.close(os.open(name, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))

    @event.listens_for(engine, "connect")
    def _on_connect(connection: Any, _record: object) -> None:  # noqa: ANN401  # the driver's connection
        connection.isolation_level = None  # we begin transactions ourselves
        cursor = connection.cursor()
        # Set before a new file's first page is written, so that pruning can shrink the file. In an existing file, the
        # PRAGMA would write, and so wait for the lock.
        cursor.execute("PRAGMA page_count")
        if cursor.fetchone()[0] == 0:
            cursor.execute("PRAGMA auto_vacuum=INCREMENTAL")
        cursor.execute("PRAGMA journal_mode=WAL")
        cursor.execute("PRAGMA synchronous=FULL")
        cursor.execute("PRAGMA wal_autocheckpoint=0")  # `checkpoint` does it instead
        cursor.close()
        sqlite_functions(connection)

    @event.listens_for(engine, "begin")
    def _begin(connection: Connection) -> None:
        mode = connection.get_execution_options().get("sqlite_begin", "IMMEDIATE")
        connection.exec_driver_sql(f"BEGIN {mode}")

    return engine


LONGEST_READ_SECONDS = 5.0
"""Time limit of statements on Postgres, and of transactions on SQLite, in read-only engines."""
_STEPS_BETWEEN_LOOKS = 10_000
"""Steps of SQLite's virtual machine between two checks of the time: about a millisecond."""


def connect_read_only(url: str, *, application: str, seconds: float = LONGEST_READ_SECONDS) -> Engine:
    """Create a read-only engine, whose statements end after some seconds.

    A SQLite file is opened read-only: other engines would create a missing file and set its journal mode.

    Raises:
        ConfigError: as `parse_url`.
    """
    parsed = parse_url(url)
    if parsed.get_backend_name() == SQLITE:
        return _read_sqlite(parsed, seconds)
    made = connect(url, application=application, pings=True)

    @event.listens_for(made, "begin")
    def _begin(connection: Connection) -> None:
        # The lock timeout comes first, or it would be reported as a slow query.
        waiting = min(seconds / 2, LOCK_TIMEOUT_SECONDS)
        connection.exec_driver_sql(
            f"SET TRANSACTION READ ONLY; SET LOCAL statement_timeout = {round(seconds * 1000)};"
            f" SET LOCAL lock_timeout = {round(waiting * 1000)}"
        )

    return made


def _decode(stored: bytes) -> str:
    """Decode a text leniently: SQLite may hold manually written invalid UTF-8, which must not break listings."""
    return stored.decode(errors="replace")


def _read_sqlite(url: URL, seconds: float) -> Engine:
    name = url.database or ""
    place = name if name.startswith("file:") else Path(name).absolute().as_uri()
    read_only = URL.create("sqlite+pysqlite", database=place, query={"mode": "ro", "uri": "true"})
    made = create_engine(read_only, poolclass=NullPool, connect_args={"timeout": 1.0})

    @event.listens_for(made, "connect")
    def _on_connect(connection: Any, _record: object) -> None:  # noqa: ANN401  # the driver's connection
        connection.isolation_level = None  # we begin transactions ourselves
        connection.text_factory = _decode
        sqlite_functions(connection)

    @event.listens_for(made, "begin")
    def _begin(connection: Connection) -> None:
        end = time.monotonic() + seconds
        driver: Any = connection.connection.driver_connection
        driver.set_progress_handler(lambda: int(time.monotonic() > end), _STEPS_BETWEEN_LOOKS)
        connection.exec_driver_sql("BEGIN")

    return made


# --- Checkpoints: copy SQLite's write-ahead log back into the file, only while no other connection can commit.
#
# SQLite up to 3.51.2 can lose committed transactions (https://sqlite.org/wal.html#walresetbug). A checkpoint reads the
# log's length. If another connection's commit then restarts the log, the checkpoint marks uncopied pages of the new log
# as copied, and later checkpoints skip them. So two conditions must hold during a checkpoint:
#
# - No connection commits: we hold the write lock, which committing or restarting the log requires.
# - Only one checkpoint runs: SQLite has a lock for that, and the write lock separates our own.
#
# A checkpoint in mode FULL doesn't guarantee this: it takes the write lock, but continues without it after its busy
# timeout (`sqlite3WalCheckpoint` in wal.c: the mode becomes PASSIVE). So this code uses two connections: one takes the
# write lock, the other copies. Without the lock, nothing is copied.
#
# Automatic checkpoints run alongside commits, so they are off on every connection. The checkpoint of the last closing
# connection is safe: SQLite first checks that there is no other.

EVERY_CHANGES = 2000
"""Changed rows between two checkpoints of a file: hundreds of events, with their payloads and deliveries."""
_CHECKPOINT_WAIT_SECONDS = 0.05
"""Seconds to wait for the write lock and for readers of older snapshots; a long read must not delay the receiver."""
_TICK = 0.002
"""Seconds between two checks for such readers; most reads are shorter."""


def is_checkpoint_due(connection: Connection) -> bool:
    """Return whether this process has changed `EVERY_CHANGES` rows of a SQLite file since a checkpoint."""
    if connection.dialect.name != SQLITE:
        return False
    driver: Any = connection.connection.driver_connection
    file = str(connection.engine.url.database)
    _changed[file] += driver.total_changes - connection.info.get(_COUNTED, 0)
    connection.info[_COUNTED] = driver.total_changes
    if _changed[file] < EVERY_CHANGES:
        return False
    _changed[file] = 0
    return True


_COUNTED = "changes_counted"
_changed = Counter[str]()
"""Rows that this process has changed in each file since its last checkpoint, over any number of connections."""


def checkpoint(engine: Engine) -> bool:
    """Copy the log back into the file, outside any transaction of the caller. Returns whether everything was copied.

    Commits are safe even if this fails; only the log keeps growing.
    """
    path = Path(engine.url.database or "").absolute()
    try:
        with closing(_connect_apart(path)) as holder, closing(_connect_apart(path)) as copier:
            holder.execute("BEGIN IMMEDIATE")
            return _copy_all(copier, time.monotonic() + _CHECKPOINT_WAIT_SECONDS)
    except sqlite3.Error:
        return False


def _connect_apart(path: Path) -> sqlite3.Connection:
    """Open a separate connection, as the pool's may all be in use. Closing it ends its transaction and releases its lock."""
    return sqlite3.connect(path, timeout=_CHECKPOINT_WAIT_SECONDS, isolation_level=None)


def _copy_all(copier: sqlite3.Connection, until: float) -> bool:
    """Copy until nothing is left or time is up. Pages that readers of older snapshots need stay in the log."""
    while True:
        busy, in_log, copied = copier.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()
        if not busy and in_log == copied:
            return True
        if time.monotonic() >= until:
            return False
        time.sleep(_TICK)
