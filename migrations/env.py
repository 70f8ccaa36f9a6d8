"""What alembic runs for every command: which database, which tables.

`inbox migrate` hands its connection in; a bare `alembic` command reads the URL from inbox.toml, as everything else
does.
"""

from __future__ import annotations

from alembic import context
from sqlalchemy import Connection

from inbox.db import engine
from inbox.db.schema import metadata
from inbox.loader.load import read_config


def run(connection: Connection) -> None:
    """Run the migrations that were asked for, each in a transaction of its own; SQLite's DDL is transactional too."""
    context.configure(
        connection=connection,
        target_metadata=metadata,
        transactional_ddl=True,
        transaction_per_migration=True,
        compare_server_default=True,
    )
    with context.begin_transaction():
        context.run_migrations()


given: Connection | None = context.config.attributes.get("connection")
if given is not None:
    run(given)
else:
    with engine.connect(read_config().database.url, application="alembic").connect() as own:
        run(own)
