"""Options that commands of both command lines share, and the database that the commands of `inbox` open."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated

import typer

from inbox.cli.terminal import fail

if TYPE_CHECKING:
    from sqlalchemy import Engine

    from inbox.config.model import Config

AsJson = Annotated[bool, typer.Option("--json", help="JSON instead of text, with every column.")]
AsNdjson = Annotated[bool, typer.Option("--ndjson", help="JSON, one object a line, with every column.")]
Wide = Annotated[
    bool, typer.Option("--wide", help="Every column, whole and with absolute times, in lines of any length.")
]
Columns = Annotated[
    str | None, typer.Option("--columns", metavar="A,B,…", help="These columns; a wrong name lists the right ones.")
]
TIME_FORMATS = ["%Y-%m-%d", "%Y-%m-%dT%H:%M:%S"]
Since = Annotated[
    datetime | None, typer.Option("--since", help="Only received at or after this time; UTC.", formats=TIME_FORMATS)
]


def utc(moment: datetime | None) -> datetime | None:
    """Return a moment that was given without an offset, in UTC."""
    return None if moment is None else moment.replace(tzinfo=UTC)


def parse_entity(entity: str | None, *, may_be_a_type: bool = False) -> tuple[str | None, str | None]:
    """Return the type and the id that `--entity` names; the id is None for a type alone, where that is allowed."""
    if entity is None:
        return None, None
    entity_type, _, entity_id = entity.partition("/")
    if not may_be_a_type and not (entity_type and entity_id):
        fail(f"--entity must be TYPE/ID, such as USER/IDNUMBER1234, not {entity!r}")
    return entity_type or None, entity_id or None


@contextmanager
def open_database(config: Config | None = None) -> Iterator[Engine]:
    """Open the database that the configuration names. Its schema must be one that this version works with."""
    from inbox.db import engine, migrate
    from inbox.loader.load import read_config

    made = engine.connect((config or read_config()).database.url, application="inbox-cli")
    try:
        migrate.require_current(made)
        yield made
    finally:
        made.dispose()
