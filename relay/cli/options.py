"""What the commands of `relay` share: options and the database."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated

import typer

from inbox.cli.terminal import fail
from inbox.config.model import Config
from inbox.db import engine, migrate
from inbox.loader.load import read_config
from relay.store.database import Database

AsJson = Annotated[bool, typer.Option("--json", help="An array of objects instead of a table.")]
Since = Annotated[
    datetime | None, typer.Option("--since", help="Only since; UTC.", formats=["%Y-%m-%d", "%Y-%m-%dT%H:%M:%S"])
]
OfSource = Annotated[str | None, typer.Option("--source", help="Only of this source.")]
OfEntity = Annotated[str | None, typer.Option("--entity", help="This entity, as TYPE/ID.")]


def utc(moment: datetime | None) -> datetime | None:
    """What `--since` means."""
    return None if moment is None else moment.replace(tzinfo=UTC)


def parse_entity(entity: str | None) -> tuple[str | None, str | None]:
    """Type and id of what `--entity` names."""
    if entity is None:
        return None, None
    entity_type, _, entity_id = entity.partition("/")
    if not entity_type or not entity_id:
        fail(f"--entity must be TYPE/ID, such as USER/IDNUMBER1234, not {entity!r}")
    return entity_type, entity_id


def database_of(config: Config, application: str = "inbox-relay-cli") -> Database:
    """The database that the configuration names, which has to be of this version."""
    made = engine.connect(config.database.url, application=application)
    migrate.require_current(made)
    return Database(made)


def open_database() -> tuple[Config, Database]:
    """The configuration, and its database."""
    config = read_config()
    return config, database_of(config)
