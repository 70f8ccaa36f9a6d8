"""Tables and views, from `inbox.db`."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Column, create_engine

from docs.blocks.common import join_names, table
from inbox.db.schema import metadata
from inbox.db.views import VIEWS, View


def schema_tables() -> str:
    """Describe every table with its columns, by the comments that a database has too."""
    parts = []
    for each in metadata.tables.values():
        rows = [(f"`{column.name}`", _type_of(column), column.comment or "") for column in each.columns]
        columns = (
            table(("column", "type", "meaning"), rows) if len(rows) > 1 else f"Its column: {', '.join(rows[0])}.\n"
        )
        parts.append(f"### `{each.name}`\n\n{each.comment}\n\n{columns}")
    return "\n".join(parts)


def _type_of(column: Column[Any]) -> str:
    written = str(column.type.compile(create_engine("postgresql+psycopg://").dialect)).lower()
    return written.replace("timestamp with time zone", "timestamptz") + (", null" if column.nullable else "")


def schema_views() -> str:
    """Describe every view with its columns; those of a table are named only."""
    return "\n".join(f"### `{view.name}`\n\n{view.comment}\n\n{_describe_columns(view)}" for view in VIEWS)


def _describe_columns(view: View) -> str:
    rest = dict(view.columns)
    parts = []
    for name in ("inbox", "open_delivery", "gate"):
        comments = {column.name: column.comment for column in metadata.tables[name].columns}
        if shared := [column for column, comment in rest.items() if comment == comments.get(column)]:
            parts.append(f"As in `{name}`: {join_names(f'`{column}`' for column in shared)}.\n")
            rest = {column: comment for column, comment in rest.items() if column not in shared}
    own = [table(("column", "meaning"), ((f"`{column}`", comment) for column, comment in rest.items()))] if rest else []
    return "\n".join([*parts, *own])
