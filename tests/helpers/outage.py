"""Ways to take a database away from a receiver and to give it back, without touching the server other tests use."""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import psycopg
from sqlalchemy import make_url

from inbox.db.dialect import POSTGRES


def is_postgres(database_url: str) -> bool:
    """Return whether it is a Postgres database."""
    return make_url(database_url).get_backend_name() == POSTGRES


def connect_postgres(database_url: str, database: str | None = None) -> psycopg.Connection:
    """A connection in autocommit, to another database of the same server when one is named."""
    url = make_url(database_url).set(drivername="postgresql")
    if database is not None:
        url = url.set(database=database)
    return psycopg.connect(url.render_as_string(hide_password=False), autocommit=True)


@contextlib.contextmanager
def down(database_url: str) -> Iterator[None]:
    """The database can't be written to at all: Postgres takes no connections, SQLite is locked by somebody else."""
    name = _name(database_url)
    if not is_postgres(database_url):
        with _locked_file(name):
            yield
        return
    with contextlib.closing(connect_postgres(database_url, "postgres")) as server:
        server.execute(f'ALTER DATABASE "{name}" ALLOW_CONNECTIONS false')
        _disconnect(server, name)
        try:
            yield
        finally:
            server.execute(f'ALTER DATABASE "{name}" ALLOW_CONNECTIONS true')


@contextlib.contextmanager
def gone(database_url: str) -> Iterator[None]:
    """Nobody can even read the database: Postgres takes no connections, a SQLite file is elsewhere."""
    if is_postgres(database_url):
        with down(database_url):
            yield
        return
    path = Path(_name(database_url))
    elsewhere = path.with_suffix(".away")
    path.rename(elsewhere)
    try:
        yield
    finally:
        elsewhere.rename(path)


@contextlib.contextmanager
def read_only(database_url: str) -> Iterator[None]:
    """The database answers but takes no writes, as a replica does."""
    name = _name(database_url)
    with contextlib.closing(connect_postgres(database_url, "postgres")) as server:
        server.execute(f'ALTER DATABASE "{name}" SET default_transaction_read_only = on')
        _disconnect(server, name)
        try:
            yield
        finally:
            server.execute(f'ALTER DATABASE "{name}" RESET default_transaction_read_only')
            _disconnect(server, name)


@contextlib.contextmanager
def locked(database_url: str) -> Iterator[None]:
    """Somebody holds a lock on the inbox and does not let go."""
    if not is_postgres(database_url):
        with down(database_url):
            yield
        return
    with contextlib.closing(connect_postgres(database_url)) as other, other.transaction():
        other.execute("LOCK TABLE inbox")
        yield


def disconnect(database_url: str) -> None:
    """Break every connection to a Postgres database."""
    with contextlib.closing(connect_postgres(database_url, "postgres")) as server:
        _disconnect(server, _name(database_url))


def _name(database_url: str) -> str:
    name = make_url(database_url).database
    assert name is not None
    return name


def _disconnect(server: psycopg.Connection, name: str) -> None:
    server.execute("SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE datname = %s", (name,))


@contextlib.contextmanager
def _locked_file(path: str) -> Iterator[None]:
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        try:
            yield
        finally:
            other.execute("ROLLBACK")
