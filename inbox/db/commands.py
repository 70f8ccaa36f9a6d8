"""Statements of both command lines that insert and stop a row of `relay_command`."""

from __future__ import annotations

from functools import cache

from sqlalchemy import TextClause, text

from inbox.db.dialect import Sql


@cache
def ask(sql: Sql) -> TextClause:
    """Insert a command: `kind`, `selection` as JSON, `reason`, `who`, `dry_run`, and what was `planned`. Returns its id."""
    selected = "CAST(:selection AS jsonb)" if sql.is_postgres else ":selection"
    planned = "CAST(:planned AS bigint)" if sql.is_postgres else ":planned"
    return text(f"""
INSERT INTO relay_command (kind, selection, reason, asked_by, asked_at, dry_run, matched)
VALUES (:kind, {selected}, :reason, :who, {sql.now}, :dry_run, {planned})
RETURNING id
""")


@cache
def stop(sql: Sql) -> TextClause:
    """Stop the command `id` and return it, unless it has ended; `answer` says who did, null: the person who had asked for it."""
    answer = "CAST(:answer AS text)" if sql.is_postgres else ":answer"
    return text(f"""
UPDATE relay_command
SET state = 'cancelled', finished_at = {sql.now}, answer = coalesce({answer}, 'stopped by who had asked for it')
WHERE id = :id AND state IN ('asked', 'running')
RETURNING id
""")
