"""Alembic's environment: the database and tables of its commands.

`inbox migrate` passes its connection; a bare `alembic` command reads the URL from inbox.toml.
"""

from __future__ import annotations

from alembic import context
from sqlalchemy import Connection

from inbox.db import engine
from inbox.db.leaves import is_leaf
from inbox.db.schema import metadata
from inbox.loader.load import read_config


def run(connection: Connection) -> None:
    """Run the requested migrations, each in its own transaction; SQLite's DDL is transactional too."""
    context.configure(
        connection=connection,
        target_metadata=metadata,
        transactional_ddl=True,
        transaction_per_migration=True,
        compare_server_default=True,
        include_name=lambda name, kind, _: kind != "table" or not is_leaf(name or ""),
    )
    with context.begin_transaction():
        context.run_migrations()


given: Connection | None = context.config.attributes.get("connection")
if given is not None:
    run(given)
else:
    with engine.connect(read_config().database.url, application="alembic").connect() as own:
        run(own)
