"""Tables and views, from `inbox.db`."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Column, create_engine

from docs.blocks.common import format_list, join_names
from inbox.db.schema import metadata
from inbox.db.views import VIEWS, View


def describe_tables() -> str:
    """Describe every table with its columns, by their comments in the database."""
    return "\n".join(
        f"### `{each.name}`\n\n{each.comment}\n\n"
        + format_list((f"`{column.name}` ({_name_type(column)})", column.comment or "") for column in each.columns)
        for each in metadata.tables.values()
    )


def _name_type(column: Column[Any]) -> str:
    written = str(column.type.compile(create_engine("postgresql+psycopg://").dialect)).lower()
    return written.replace("timestamp with time zone", "timestamptz") + (", null" if column.nullable else "")


def describe_views() -> str:
    """Describe every view; columns of a table are only named."""
    return "\n".join(f"### `{view.name}`\n\n{view.comment}\n\n{_describe_columns(view)}" for view in VIEWS)


def _describe_columns(view: View) -> str:
    rest = dict(view.columns)
    parts = []
    for name in ("inbox", "open_delivery", "gate"):
        comments = {column.name: column.comment for column in metadata.tables[name].columns}
        if shared := [column for column, comment in rest.items() if comment == comments.get(column)]:
            parts.append(f"As in `{name}`: {join_names(f'`{column}`' for column in shared)}.\n")
            rest = {column: comment for column, comment in rest.items() if column not in shared}
    if rest:
        parts.append(format_list((f"`{column}`", comment) for column, comment in rest.items()))
    return "\n".join(parts)
