"""Brings a database to the present schema, and tells whether it is there. Alembic's files travel inside the package."""

from __future__ import annotations

from importlib.resources import files

from alembic import command
from alembic.config import Config as AlembicConfig
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, Engine, text

from inbox.db.dialect import POSTGRES
from inbox.db.engine import reading
from inbox.errors import ConfigError

_ADVISORY_LOCK = 0x1B0C_0DE5
"""So that two processes that migrate at once do it one after the other."""


def upgrade(engine: Engine) -> tuple[str | None, str]:
    """Run every migration the database does not have yet, in one transaction.

    Returns:
        The revision before (None: empty database) and after.
    """
    config = _alembic()
    with engine.begin() as connection:
        if connection.dialect.name == POSTGRES:
            connection.execute(text("SET LOCAL lock_timeout = '60s'"))
            connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _ADVISORY_LOCK})
        before = _revision(connection)
        config.attributes["connection"] = connection
        command.upgrade(config, "head")
        return before, head()


def require_current(engine: Engine) -> None:
    """Make sure that the database has the schema this version works with.

    Raises:
        ConfigError: it has not; the text says what to run.
    """
    with engine.connect() as connection:
        revision = _revision(reading(connection))
    if revision != head():
        has = f"revision {revision}" if revision else "no tables yet"
        raise ConfigError(f"the database has {has}, this version needs {head()}: run `inbox migrate`")


def head() -> str:
    """The newest revision that this version knows."""
    revision = ScriptDirectory.from_config(_alembic()).get_current_head()
    if revision is None:
        raise ConfigError("the installed package has no migrations: install it again")
    return revision


def _revision(connection: Connection) -> str | None:
    return MigrationContext.configure(connection).get_current_revision()


def _alembic() -> AlembicConfig:
    config = AlembicConfig()
    config.set_main_option("script_location", str(files("migrations")))
    return config
