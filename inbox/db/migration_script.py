"""Runs the statements of a migration from the SQL file beside it, which a DBA can read."""

from __future__ import annotations

import re
from pathlib import Path

from alembic import op
from sqlalchemy import Connection, text

_CONCURRENTLY = re.compile(
    r"^(CREATE|DROP)\b[^;(]*?\bINDEX\s+CONCURRENTLY\s+(?:IF\s+(?:NOT\s+)?EXISTS\s+)?(\w+)", re.MULTILINE
)
_LONG_WAIT = "10min"
"""Wait of an index for old transactions: it delays nobody."""
_IS_VALID = text("SELECT indisvalid FROM pg_index WHERE indexrelid = to_regclass(:name)")


def run(migration: str) -> None:
    """Run the SQL file of this database beside `migration`. `;` and an empty line separate its statements.

    Postgres makes an index CONCURRENTLY outside a transaction, so a migration that does so contains nothing else: its
    other statements would run again with each try.

    Raises:
        ValueError: statements with and without CONCURRENTLY in one migration.
    """
    connection = op.get_bind()
    file = Path(migration).with_suffix(f".{connection.dialect.name}.sql")
    written = file.read_text(encoding="utf-8").split(";\n\n")
    statements = [statement.rstrip().removesuffix(";") for statement in written]
    concurrent = [found for found in map(_CONCURRENTLY.search, statements) if found]
    if not concurrent:
        for statement in statements:
            connection.exec_driver_sql(statement)
        return
    if len(concurrent) < len(statements):
        raise ValueError(f"{file.name}: a statement with CONCURRENTLY needs its own migration")
    with op.get_context().autocommit_block():
        for statement, found in zip(statements, concurrent, strict=True):
            _change_index(connection, statement, creates=found[1] == "CREATE", name=found[2])


def _change_index(connection: Connection, statement: str, *, creates: bool, name: str) -> None:
    """Create or drop an index. An earlier try that failed may have left it invalid."""
    is_valid = connection.scalar(_IS_VALID, {"name": name})
    if creates and is_valid:
        return
    if creates and is_valid is False:
        connection.exec_driver_sql(f"DROP INDEX CONCURRENTLY {name}")
    if creates or is_valid is not None:
        connection.exec_driver_sql(f"SET lock_timeout = '{_LONG_WAIT}'")
        connection.exec_driver_sql(statement)
        connection.exec_driver_sql("RESET lock_timeout")
