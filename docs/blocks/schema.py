"""Tables and views, from `inbox.db`."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Column, create_engine

from docs.blocks.common import table
from inbox.db.schema import metadata
from inbox.db.views import VIEWS


def schema_tables() -> str:
    """Every table with its columns, from the comments that a database has too."""
    parts = []
    for each in metadata.tables.values():
        rows = (
            (
                f"`{column.name}`",
                _type_of(column),
                column.comment or "",
            )
            for column in each.columns
        )
        parts.append(f"### `{each.name}`\n\n{each.comment}\n\n{table(('column', 'type', 'meaning'), rows)}")
    return "\n".join(parts)


def _type_of(column: Column[Any]) -> str:
    written = str(column.type.compile(create_engine("postgresql+psycopg://").dialect)).lower()
    return written.replace("timestamp with time zone", "timestamptz") + (", null" if column.nullable else "")


def schema_views() -> str:
    """Every view with its columns."""
    return "\n".join(
        f"### `{view.name}`\n\n{view.comment}\n\n"
        + table(("column", "meaning"), ((f"`{column}`", comment) for column, comment in view.columns.items()))
        for view in VIEWS
    )
