"""Options that several commands of `relay` share, and the way to the configuration and its database."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from inbox.cli.completion import names_of
from inbox.cli.options import require_known

if TYPE_CHECKING:
    from inbox.config.model import Config
    from relay.store.database import Database

OfRoute = Annotated[str | None, typer.Option("--route", help="Only of this route.", autocompletion=names_of("routes"))]
OfSource = Annotated[
    str | None, typer.Option("--source", help="Only of this source.", autocompletion=names_of("sources"))
]
OfDestination = Annotated[
    str | None,
    typer.Option(
        "--destination", help="Only of the routes to this destination.", autocompletion=names_of("destinations")
    ),
]
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
    from inbox.db.known_names import has_route, has_source
    from relay.delivery.facts import CAUSES

    require_known("route", route, config.routes, stored=lambda name: has_route(database.engine, name))
    require_known("source", source, config.sources, stored=lambda name: has_source(database.engine, name))
    require_known("destination", destination, config.destinations)
    require_known("cause", cause, CAUSES)
