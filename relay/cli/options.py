"""Options that several commands of `relay` share, and the way to the configuration and its database."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated

import typer

from inbox.cli.terminal import fail

if TYPE_CHECKING:
    from inbox.config.model import Config
    from relay.store.database import Database

AsJson = Annotated[bool, typer.Option("--json", help="An array of objects instead of text.")]
Since = Annotated[
    datetime | None, typer.Option("--since", help="Only since; UTC.", formats=["%Y-%m-%d", "%Y-%m-%dT%H:%M:%S"])
]
OfRoute = Annotated[str | None, typer.Option("--route", help="Only of this route.")]
OfSource = Annotated[str | None, typer.Option("--source", help="Only of this source.")]
OfEntity = Annotated[str | None, typer.Option("--entity", help="This entity, as TYPE/ID.")]


def utc(moment: datetime | None) -> datetime | None:
    """Read the time of `--since` as UTC."""
    return None if moment is None else moment.replace(tzinfo=UTC)


def parse_entity(entity: str | None) -> tuple[str | None, str | None]:
    """Split `--entity` into type and id."""
    if entity is None:
        return None, None
    entity_type, _, entity_id = entity.partition("/")
    if not entity_type or not entity_id:
        fail(f"--entity must be TYPE/ID, such as USER/IDNUMBER1234, not {entity!r}")
    return entity_type, entity_id


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
