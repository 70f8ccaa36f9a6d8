"""A picture of the tables, joined by the columns that hold the key of another table."""

from __future__ import annotations

import re

from sqlalchemy import Column

from inbox.db.schema import metadata

_REFERENCE = re.compile(r"\b([a-z_]+)\.([a-z_]+)\b")


def draw_entities() -> str:
    """Draw each key with the columns that hold it, then the remaining tables."""
    referring = _find_references()
    lines = []
    for key, columns in referring.items():
        width = max(len(str(column)) for column in columns)
        for position, column in enumerate(columns):
            corner = "─┬─" if position == 0 else " ├─"
            if position == len(columns) - 1:
                corner = " └─" if position else "───"
            lead = f"{key} ◄" if position == 0 else " " * (len(key) + 2)
            lines.append(f"{lead}{corner} {column!s:{width}}  {_describe_number(column)}")
        lines.append("")
    named = {name.split(".")[0] for name in referring} | {c.table.name for some in referring.values() for c in some}
    lines += ["by themselves:"]
    lines += [
        f"  {table.name} ({', '.join(column.name for column in table.primary_key)})"
        for table in metadata.tables.values()
        if table.name not in named
    ]
    return "\n".join(["```text", *lines, "```"])


def _find_references() -> dict[str, list[Column[object]]]:
    """Return each key with the columns whose comments name it."""
    keys = {
        str(column): column
        for table in metadata.tables.values()
        for column in table.primary_key
        if len(table.primary_key) == 1
    }
    found: dict[str, list[Column[object]]] = {}
    for table in metadata.tables.values():
        for column in table.columns:
            for name in {".".join(match) for match in _REFERENCE.findall(column.comment or "")}:
                if name in keys:
                    found.setdefault(name, []).append(column)
    return found


def _describe_number(column: Column[object]) -> str:
    """Return the number of rows for one row of the other table."""
    alone = column.primary_key and len(column.table.primary_key) == 1
    return ("0 or 1" if alone else "any number") + (", or empty" if column.nullable else "")
