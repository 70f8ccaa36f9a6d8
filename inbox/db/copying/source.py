"""The source of a copy: nothing writes to it while it is read, so that every table is of the same moment."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager

from sqlalchemy import Connection, Engine, text
from sqlalchemy.exc import DBAPIError

from inbox.db.copying.tables import CopiedTable
from inbox.db.dialect import SQLITE, Sql, is_lock_wait
from inbox.db.engine import reading
from inbox.errors import ConfigError
from inbox.events.states import GONE_SECONDS

_PROBE_SECONDS = 0.5


def running_programs(engine: Engine) -> list[str]:
    """List the relays that work on the database, the receivers that Postgres knows, and other programs with a SQLite file open."""
    sql = Sql(engine.dialect.name)
    silent = sql.seconds_between("heartbeat_at", sql.now)
    relays = text(f"""
SELECT host, pid FROM relay_node WHERE stopped_at IS NULL AND {silent} <= {GONE_SECONDS} ORDER BY host, pid
""")
    with engine.connect() as connection, reading(connection).begin():
        found = [f"relay {row.host} pid {row.pid}" for row in connection.execute(relays, {"now": None})]
        if sql.is_postgres:
            found += [f"receiver with the session pid {row.pid}" for row in connection.execute(_RECEIVERS)]
    engine.dispose()  # our own connections keep a SQLite file open too
    if not sql.is_postgres and not found and not _is_alone(engine.url.database or ""):
        found.append("program that has the file open (`fuser` names its pid)")
    return found


@contextmanager
def held(engine: Engine, tables: tuple[CopiedTable, ...]) -> Iterator[Connection]:
    """Hold the database against writers while the block reads it.

    Raises:
        ConfigError: somebody writes at this moment.
    """
    with engine.connect() as connection, connection.begin():  # on SQLite this takes the write lock
        if connection.dialect.name != SQLITE:
            connection.execute(text("SET LOCAL idle_in_transaction_session_timeout = 0"))
            connection.execute(text(f"LOCK TABLE {', '.join(table.name for table in tables)} IN SHARE MODE"))
        yield connection


@contextmanager
def explaining_locks() -> Iterator[None]:
    """Word a lock that somebody else has.

    Raises:
        ConfigError: instead of the error of a lock wait.
    """
    try:
        yield
    except DBAPIError as error:
        if not is_lock_wait(error):
            raise
        raise ConfigError(
            "a transaction of another program holds a lock: end it, and stop receivers and relays; then run it again"
        ) from None


def _is_alone(path: str) -> bool:
    """Return whether no other connection has the SQLite file open: only then can one have it alone."""
    with closing(sqlite3.connect(path, timeout=_PROBE_SECONDS, uri=path.startswith("file:"))) as connection:
        try:
            connection.execute("PRAGMA locking_mode = EXCLUSIVE")
            connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY:
                raise
            return False
    return True


_RECEIVERS = text("""
SELECT DISTINCT pid FROM pg_stat_activity
WHERE datname = current_database() AND application_name LIKE 'inbox-receiver%'
ORDER BY pid
""")
