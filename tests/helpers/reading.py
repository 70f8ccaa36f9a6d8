"""Queries of tests on the tables: rows as dictionaries."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Engine, text

from inbox.db.engine import reading

Row = dict[str, Any]


def rows(engine: Engine, statement: str, **parameters: object) -> list[Row]:
    """The rows of a query. On SQLite it does not take the write lock."""
    with engine.connect() as connection, reading(connection).begin():
        return [dict(row._mapping) for row in connection.execute(text(statement), parameters)]


def count(engine: Engine, what: str, **parameters: object) -> int:
    """Count the rows of `what` (a table, perhaps with a condition)."""
    return int(rows(engine, f"SELECT count(*) AS n FROM {what}", **parameters)[0]["n"])


def duplicates(engine: Engine) -> int:
    """Count the duplicate requests that were noted: as rows, or as a count."""
    return int(rows(engine, "SELECT coalesce(sum(times), 0) AS n FROM duplicate_request")[0]["n"])
