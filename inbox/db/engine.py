"""How both sides connect, and with which guarantees: set on every connection, never left to a server's defaults."""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Any

from sqlalchemy import URL, Connection, Engine, create_engine, event, make_url
from sqlalchemy.exc import ArgumentError
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine
from sqlalchemy.pool import NullPool

from inbox.db.dialect import POSTGRES, SQLITE, sqlite_functions
from inbox.errors import ConfigError

LOCK_TIMEOUT_SECONDS = 2
"""A statement that waits longer for a lock fails: the receiver answers 503, the relay tries again."""

OLDEST_SQLITE = (3, 38, 0)
"""The first with the `->>` operator that the views use."""


def parse_url(url: str) -> URL:
    """The database's URL, with the driver that both sides use.

    Raises:
        ConfigError: neither Postgres nor a SQLite file.
    """
    try:
        parsed = make_url(url)
    except (ArgumentError, ValueError):  # ValueError: a port that is no number. It is not shown: it may hold a password
        raise ConfigError(
            "[database] url: can't be read; use sqlite:///inbox.db or postgresql+psycopg://user@host:5432/name"
        ) from None
    if parsed.get_backend_name() == POSTGRES:
        return parsed.set(drivername="postgresql+psycopg")
    if parsed.get_backend_name() == SQLITE and parsed.database not in (None, "", ":memory:"):
        return parsed.set(drivername="sqlite+pysqlite")
    raise ConfigError(
        f"[database] url: {parsed.render_as_string()} is neither postgresql+psycopg://… nor a file such as sqlite:///inbox.db"
    )


def connect(url: str, *, application: str) -> Engine:
    """An engine for threads.

    On Postgres a transaction that stops half-way is ended after 3 s, so that it can't hold the order lock.

    Raises:
        ConfigError: as `parse_url`.
    """
    parsed = parse_url(url)
    if parsed.get_backend_name() == SQLITE:
        _check_sqlite(parsed)
        engine = create_engine(parsed, connect_args={"timeout": 5.0}, pool_reset_on_return="rollback")
        _prepare_sqlite(engine)
        return engine
    return create_engine(
        parsed,
        connect_args=_postgres_arguments(application, "-c idle_in_transaction_session_timeout=3000"),
        pool_timeout=LOCK_TIMEOUT_SECONDS,
    )


def connect_async(url: str, *, application: str) -> AsyncEngine:
    """An engine for the receiver's event loop: autocommit, so that one statement is one transaction.

    Connections are not pooled: the receiver keeps the one it writes with.

    Raises:
        ConfigError: as `parse_url`.
    """
    parsed = parse_url(url)
    if parsed.get_backend_name() == SQLITE:
        _check_sqlite(parsed)
        engine = create_async_engine(
            parsed.set(drivername="sqlite+aiosqlite"),
            connect_args={"timeout": LOCK_TIMEOUT_SECONDS},
            poolclass=NullPool,
        )
        _prepare_sqlite(engine.sync_engine)
        return engine
    return create_async_engine(
        parsed,
        connect_args=_postgres_arguments(application, ""),
        poolclass=NullPool,
        isolation_level="AUTOCOMMIT",
    )


def reading(connection: Connection) -> Connection:
    """Make the connection's next transaction one that only reads: on SQLite it does not take the write lock."""
    return connection.execution_options(sqlite_begin="DEFERRED")


def snapshot(connection: Connection) -> Connection:
    """Make the connection's next transaction one that only reads, and sees one moment: on SQLite each does."""
    if connection.dialect.name == SQLITE:
        return reading(connection)
    return connection.execution_options(isolation_level="REPEATABLE READ", postgresql_readonly=True)


def _postgres_arguments(application: str, options: str) -> dict[str, Any]:
    return {
        "connect_timeout": 2,
        "application_name": application,
        "keepalives_idle": 10,
        "keepalives_interval": 5,
        "keepalives_count": 3,
        "tcp_user_timeout": 8000,  # ms; a half-open connection is noticed before a lease ends
        "options": f"-c timezone=UTC -c synchronous_commit=on -c lock_timeout={LOCK_TIMEOUT_SECONDS}s {options}".strip(),
    }


def _check_sqlite(url: URL) -> None:
    if sqlite3.sqlite_version_info < OLDEST_SQLITE:
        oldest = ".".join(str(part) for part in OLDEST_SQLITE)
        raise ConfigError(f"SQLite {sqlite3.sqlite_version} is too old: {oldest} or newer is needed, or Postgres")
    folder = Path(url.database or "").parent
    if not folder.is_dir():
        raise ConfigError(f"[database] url: there is no folder {folder} for the SQLite file; make it first")


def _prepare_sqlite(engine: Engine) -> None:
    """WAL, an fsync at every commit, and write transactions that take the write lock when they begin.

    A deferred transaction that reads first and writes later fails at once with SQLITE_BUSY_SNAPSHOT when another one
    committed in between, whatever the busy timeout. Python's sqlite3 would begin it deferred, hence the listeners.
    """

    @event.listens_for(engine, "connect")
    def _connected(connection: Any, _record: object) -> None:  # noqa: ANN401  # the driver's connection
        connection.isolation_level = None  # we begin transactions ourselves
        cursor = connection.cursor()
        cursor.execute("PRAGMA journal_mode=WAL")
        cursor.execute("PRAGMA synchronous=FULL")
        cursor.execute("PRAGMA wal_autocheckpoint=0")  # inbox.db.checkpoint does it, and says why
        cursor.close()
        sqlite_functions(connection)

    @event.listens_for(engine, "begin")
    def _begin(connection: Connection) -> None:
        mode = connection.get_execution_options().get("sqlite_begin", "IMMEDIATE")
        connection.exec_driver_sql(f"BEGIN {mode}")
