"""Tables and views, from `inbox.db`."""

from __future__ import annotations

import re

from sqlalchemy import create_engine, text

from docs.blocks.common import MEANINGS, table
from inbox.db.dialect import POSTGRES, sqlite_functions
from inbox.db.schema import metadata
from inbox.db.views import statements


def schema_tables() -> str:
    """Every table with its columns, from the comments that a database has too."""
    parts = []
    for each in metadata.tables.values():
        rows = (
            (
                f"`{column.name}`",
                str(column.type.compile(create_engine("postgresql+psycopg://").dialect)).lower(),
                "" if column.nullable else "not null",
                column.comment or "",
            )
            for column in each.columns
        )
        parts.append(f"### `{each.name}`\n\n{each.comment}\n\n{table(('column', 'type', '', 'meaning'), rows)}")
    return "\n".join(parts)


def schema_views() -> str:
    """Every view with its columns; a column named like a table's means the same unless meanings.toml says otherwise."""
    comments = dict(re.findall(r"COMMENT ON VIEW (\w+) IS '(.+)'", "\n".join(statements(POSTGRES))))
    known = {c.name: c.comment or "" for each in ("open_delivery", "inbox") for c in metadata.tables[each].columns}
    engine = create_engine("sqlite://")
    parts = []
    with engine.connect() as connection:
        sqlite_functions(connection.connection.dbapi_connection)
        metadata.create_all(connection)
        for view, comment in comments.items():
            columns = [row[1] for row in connection.execute(text(f"PRAGMA table_info({view})"))]
            rows = ((f"`{column}`", MEANINGS["views"][view].get(column) or known[column]) for column in columns)
            parts.append(f"### `{view}`\n\n{comment}\n\n{table(('column', 'meaning'), rows)}")
    engine.dispose()
    return "\n".join(parts)
