"""Options and the database that commands of `relay` share."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from inbox.config.model import Config
    from relay.store.database import Database

OfSource = Annotated[str | None, typer.Option("--source", help="Only of this source.")]
OfEntity = Annotated[str | None, typer.Option("--entity", help="This entity, as TYPE/ID.")]


def database_of(config: Config, application: str = "inbox-relay-cli") -> Database:
    """The database that the configuration names, which has to be of this version."""
    from inbox.db import engine, migrate
    from relay.store.database import Database

    made = engine.connect(config.database.url, application=application)
    migrate.require_current(made)
    return Database(made)


def open_database() -> tuple[Config, Database]:
    """The configuration, and its database."""
    from inbox.loader.load import read_config

    config = read_config()
    return config, database_of(config)
