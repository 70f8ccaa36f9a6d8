"""Databases of both kinds, their outages, and the settings and roles that a DBA makes."""

from __future__ import annotations

import contextlib
import os
import shutil
import sqlite3
from collections.abc import Iterator
from itertools import count
from pathlib import Path

import psycopg
import pytest
import tenacity
from sqlalchemy import Connection, Engine, create_engine, make_url, text

from inbox.db import engine as engines
from inbox.db import migrate
from inbox.db.dialect import POSTGRES
from inbox.db.engine import PINNED
from inbox.db.migrate import ROLES, Role, roles_script

ON_POSTGRES = pytest.mark.parametrize("database_url", ["postgres"], indirect=True)
ON_SQLITE = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
ON_BOTH = pytest.mark.parametrize("database_url", ["sqlite", "postgres"], indirect=True)
"""For folders whose tests run on SQLite by default."""


def url_of_kind(request: pytest.FixtureRequest, usual: str = "sqlite") -> str:
    """Return the URL of a database of the kind in the fixture's parameter, or of the usual kind."""
    url: str = request.getfixturevalue(f"{getattr(request, 'param', usual)}_database_url")
    return url


@contextlib.contextmanager
def open_engine(database_url: str) -> Iterator[Engine]:
    """Open an engine as the relay does, for the block."""
    made = engines.connect(database_url, application="tests")
    try:
        yield made
    finally:
        made.dispose()


def migrate_database(database_url: str) -> str:
    """Migrate a database and return its URL."""
    with open_engine(database_url) as engine:
        migrate.upgrade(engine)
    return database_url


def copy_sqlite(template: Path, folder: Path) -> str:
    """Copy a SQLite file into a folder and return the URL of the copy."""
    return f"sqlite:///{shutil.copy(template, folder / 'inbox.db')}"


class PostgresServer:
    """A shared server on which tests may create databases, through one shared connection."""

    def __init__(self, url: str) -> None:
        self.url = url
        administration = make_url(url).set(drivername="postgresql+psycopg")
        self._administration = create_engine(
            administration, isolation_level="AUTOCOMMIT", pool_size=1, pool_pre_ping=True
        )
        self._numbers = count(1)

    def run(self, *statements: str) -> None:
        """Run each statement as the superuser."""
        with self._administration.connect() as connection:
            for statement in statements:
                connection.execute(text(statement))

    @contextlib.contextmanager
    def database(self, template: str | None = None) -> Iterator[str]:
        """Create a database for the block, empty or a copy of a template; yields its URL."""
        name = f"inbox_relay_{os.getpid()}_{next(self._numbers)}"
        self.run(f"CREATE DATABASE {name}" + (f" TEMPLATE {template} STRATEGY FILE_COPY" if template else ""))
        try:
            yield make_url(self.url).set(database=name).render_as_string(hide_password=False)
        finally:
            self.run(f"DROP DATABASE {name} WITH (FORCE)")

    def close(self) -> None:
        """Disconnect."""
        self._administration.dispose()


def is_postgres(database_url: str) -> bool:
    """Return whether it is a Postgres database."""
    return make_url(database_url).get_backend_name() == POSTGRES


def connect_postgres(database_url: str, database: str | None = None) -> psycopg.Connection:
    """Connect in autocommit mode, to another database of the same server if one is named."""
    url = make_url(database_url).set(drivername="postgresql")
    if database is not None:
        url = url.set(database=database)
    return psycopg.connect(url.render_as_string(hide_password=False), autocommit=True)


Trouble = contextlib.AbstractContextManager[None]


def down(database_url: str) -> Trouble:
    """Block all writes: Postgres refuses connections, another connection locks SQLite."""
    if is_postgres(database_url):
        return _alter(database_url, "ALLOW_CONNECTIONS false", "ALLOW_CONNECTIONS true")
    return _lock_file(_name(database_url))


def gone(database_url: str) -> Trouble:
    """Block reads too: Postgres refuses connections, the SQLite file is moved away."""
    return down(database_url) if is_postgres(database_url) else _move_away(Path(_name(database_url)))


def read_only(database_url: str) -> Trouble:
    """Make the database read-only, like a replica."""
    setting = "default_transaction_read_only"
    return _alter(database_url, f"SET {setting} = on", f"RESET {setting}")


def lock_inbox(database_url: str) -> Trouble:
    """Hold a lock on the inbox for the block."""
    return _lock_table(database_url) if is_postgres(database_url) else down(database_url)


def disconnect(database_url: str) -> None:
    """Terminate every connection to a Postgres database."""
    with contextlib.closing(connect_postgres(database_url, "postgres")) as server:
        _disconnect(server, _name(database_url))


def _name(database_url: str) -> str:
    name = make_url(database_url).database
    assert name is not None
    return name


def _disconnect(server: psycopg.Connection, name: str) -> None:
    server.execute("SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE datname = %s", (name,))


@contextlib.contextmanager
def _alter(database_url: str, change: str, undo: str) -> Iterator[None]:
    """Alter the database for the block; all its connections end, before and afterwards."""
    name = _name(database_url)
    with contextlib.closing(connect_postgres(database_url, "postgres")) as server:
        server.execute(f'ALTER DATABASE "{name}" {change}'.encode())
        _disconnect(server, name)
        try:
            yield
        finally:
            server.execute(f'ALTER DATABASE "{name}" {undo}'.encode())
            _disconnect(server, name)


@contextlib.contextmanager
def _move_away(path: Path) -> Iterator[None]:
    elsewhere = path.rename(path.with_suffix(".away"))
    try:
        yield
    finally:
        elsewhere.rename(path)


@contextlib.contextmanager
def _lock_table(database_url: str) -> Iterator[None]:
    with contextlib.closing(connect_postgres(database_url)) as other, other.transaction():
        other.execute("LOCK TABLE inbox")
        yield


@contextlib.contextmanager
def _lock_file(path: str) -> Iterator[None]:
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        try:
            yield
        finally:
            other.execute("ROLLBACK")


HOSTILE = {
    "default_transaction_isolation": "repeatable read",
    "synchronous_commit": "off",
    "lock_timeout": "0",
    "idle_in_transaction_session_timeout": "0",
    "timezone": "Europe/Helsinki",
}
"""Wrong values for all pinned settings."""


def set_otherwise(database_url: str) -> None:
    """Give all pinned settings wrong values, as the database's owner."""
    name = make_url(database_url).database
    with contextlib.closing(connect_postgres(database_url)) as owner:
        for setting, value in HOSTILE.items():
            owner.execute(f"ALTER DATABASE \"{name}\" SET {setting} = '{value}'".encode())


def read_pinned(connection: Connection, *more: str) -> dict[str, str]:
    """Return the values of all pinned settings and `more` on this connection, the isolation level as its default."""
    names = {
        name: "transaction_isolation" if name == "default_transaction_isolation" else name for name in [*PINNED, *more]
    }
    columns = ", ".join(f"current_setting('{name}') AS {setting}" for setting, name in names.items())
    return dict(connection.execute(text(f"SELECT {columns}")).mappings().one())


class Granted:
    """A database with its roles, whose names begin with `prefix`."""

    def __init__(self, url: str, prefix: str, schema: str = "public") -> None:
        self.prefix, self.schema = prefix, schema
        self.admin_url = make_url(url).update_query_dict({"schema": schema}).render_as_string(hide_password=False)
        self.server_url = url

    def name(self, role: Role) -> str:
        """Return the name of the group role."""
        return f"{self.prefix}_{role}"

    def login(self, role: Role) -> str:
        """Return the name of its one login role."""
        return f"{self.prefix}_{role}_login"

    def url(self, role: Role) -> str:
        """Return the URL of the login role."""
        url = make_url(self.admin_url).set(username=self.login(role))
        return url.render_as_string(hide_password=False)

    def grant(self) -> None:
        """Grant the roles their rights, as the superuser."""
        with contextlib.closing(connect_postgres(self.server_url)) as admin:
            admin.execute(roles_script(self.schema, self.prefix).encode())

    @contextlib.contextmanager
    def connect(self, role: Role) -> Iterator[psycopg.Connection]:
        """Connect as psql does: with the settings of the login role, in autocommit mode."""
        url = make_url(self.server_url).set(username=self.login(role)).render_as_string(hide_password=False)
        with contextlib.closing(connect_postgres(url)) as connection:
            yield connection

    def allows(self, role: Role, statement: str) -> bool:
        """Return whether the role may run the statement; it is rolled back."""
        with self.connect(role) as connection:
            connection.execute(b"BEGIN")
            try:
                connection.execute(statement.encode())
            except (psycopg.errors.InsufficientPrivilege, psycopg.errors.ReadOnlySqlTransaction):
                return False
            finally:
                connection.execute(b"ROLLBACK")
        return True


@contextlib.contextmanager
def grant_roles(url: str, prefix: str, schema: str = "public") -> Iterator[Granted]:
    """Create the roles of a migrated database for the block, with a login for each."""
    made = Granted(url, prefix, schema)
    with contextlib.closing(connect_postgres(url)) as admin:
        try:
            made.grant()
            for role in ROLES:
                admin.execute(f"CREATE ROLE {made.login(role)} LOGIN IN ROLE {made.name(role)}".encode())
            made.grant()  # members inherit no settings, so grant again for them
            yield made
        finally:
            names = [*map(made.login, ROLES), *map(made.name, ROLES)]
            for (name,) in admin.execute("SELECT rolname FROM pg_roles WHERE rolname = ANY(%s)", (names,)).fetchall():
                _where_others_lock_too(admin, f"REASSIGN OWNED BY {name} TO CURRENT_USER")
                admin.execute(f"DROP OWNED BY {name} CASCADE".encode())
            for name in reversed(names):
                admin.execute(f"DROP ROLE IF EXISTS {name}".encode())


@tenacity.retry(
    retry=tenacity.retry_if_exception_type(psycopg.errors.DeadlockDetected), stop=tenacity.stop_after_attempt(9)
)
def _where_others_lock_too(admin: psycopg.Connection, statement: str) -> None:
    """Run a statement that locks tables in its own order, and may deadlock with relays and receivers."""
    admin.execute(statement.encode())
