"""Statements of both command lines that insert and stop a row of `relay_command`."""

from __future__ import annotations

from functools import cache

from sqlalchemy import TextClause, text

from inbox.db.dialect import Sql


@cache
def ask(sql: Sql) -> TextClause:
    """Insert a command: `kind`, `selection` as JSON, `reason`, `who` and `dry_run`. Returns its id."""
    selected = "CAST(:selection AS jsonb)" if sql.is_postgres else ":selection"
    return text(f"""
INSERT INTO relay_command (kind, selection, reason, asked_by, asked_at, dry_run)
VALUES (:kind, {selected}, :reason, :who, {sql.now}, :dry_run)
RETURNING id
""")


@cache
def stop(sql: Sql) -> TextClause:
    """Stop the command `id`, unless it has ended."""
    return text(f"""
UPDATE relay_command SET state = 'cancelled', finished_at = {sql.now}, answer = 'stopped by who had asked for it'
WHERE id = :id AND state IN ('asked', 'running')
""")
