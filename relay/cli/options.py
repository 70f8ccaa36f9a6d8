"""Options that several commands of `relay` share, and the way to the configuration and its database."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from inbox.cli import options

if TYPE_CHECKING:
    from inbox.config.model import Config
    from relay.store.database import Database

Reason = Annotated[str | None, typer.Option(help="Why; it is kept in the log. Needed with --yes.")]
Yes = Annotated[bool, typer.Option("--yes", help="Do it; without it only the plan is shown.")]
ThisEntity = Annotated[str | None, typer.Option("--entity", help="This entity, as TYPE/ID.")]


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


def require_known_filters(
    config: Config,
    database: Database,
    *,
    route: str | None = None,
    source: str | None = None,
    destination: str | None = None,
    cause: str | None = None,
) -> None:
    """Exit with 2 when a filter names nothing: neither of the configuration nor, for routes and sources, of the database."""
    from relay.delivery.facts import CAUSES

    options.require_known_filters(config, database.engine, route=route, source=source, destination=destination)
    options.require_known("cause", cause, CAUSES)
