"""Options that several commands of `relay` share, and the way to the configuration and its database."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING, Annotated

import typer

from inbox.cli.options import TIME_FORMATS

if TYPE_CHECKING:
    from inbox.config.model import Config
    from relay.store.database import Database

Since = Annotated[datetime | None, typer.Option("--since", help="Only since this time; UTC.", formats=TIME_FORMATS)]
OfRoute = Annotated[str | None, typer.Option("--route", help="Only of this route.")]
OfSource = Annotated[str | None, typer.Option("--source", help="Only of this source.")]
OfEntity = Annotated[str | None, typer.Option("--entity", help="This entity, as TYPE/ID.")]


def load_config() -> Config:
    """Read inbox.toml, which loads the presets of all sources."""
    from inbox.loader.load import read_config

    return read_config()


def database_of(config: Config) -> Database:
    """Connect to the configuration's database, and require that its schema is current."""
    from inbox.db import engine, migrate
    from relay.store.database import Database

    made = engine.connect(config.database.url, application="inbox-relay-cli")
    migrate.require_current(made)
    return Database(made)


def open_database() -> tuple[Config, Database]:
    """Read the configuration, and connect to its database."""
    config = load_config()
    return config, database_of(config)
