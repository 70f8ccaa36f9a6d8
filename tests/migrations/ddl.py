"""Schema of a database as text, read from the database itself; it includes what alembic's comparison ignores."""

from __future__ import annotations

from sqlalchemy import Engine, text

from inbox.db.dialect import POSTGRES

Schema = dict[tuple[str, str], str]
"""(kind, name) → definition."""

_POSTGRES = {
    "column": """
        SELECT c.relname || '.' || a.attname,
               concat_ws(' ', a.attnum, format_type(a.atttypid, a.atttypmod), CASE WHEN a.attnotnull THEN 'NOT NULL' END,
                         'DEFAULT ' || pg_get_expr(d.adbin, d.adrelid), 'IDENTITY ' || nullif(a.attidentity::text, ''),
                         'GENERATED ' || nullif(a.attgenerated::text, ''), 'COLLATE ' || nullif(a.attcollation, 0)::regcollation)
        FROM pg_class c
        JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
        LEFT JOIN pg_attrdef d ON d.adrelid = c.oid AND d.adnum = a.attnum
        WHERE c.relnamespace = 'public'::regnamespace AND c.relkind IN ('r', 'v', 'p', 'm')
    """,
    "index": "SELECT indexname, indexdef FROM pg_indexes WHERE schemaname = 'public'",
    "constraint": """
        SELECT conrelid::regclass || '.' || conname, pg_get_constraintdef(oid) FROM pg_constraint
        WHERE connamespace = 'public'::regnamespace
    """,
    "view": """
        SELECT relname, pg_get_viewdef(oid) FROM pg_class
        WHERE relnamespace = 'public'::regnamespace AND relkind IN ('v', 'm')
    """,
    "trigger": """
        SELECT tgrelid::regclass || '.' || tgname, pg_get_triggerdef(oid) || ' ' || tgenabled::text FROM pg_trigger
        WHERE NOT tgisinternal
    """,
    "function": """
        SELECT oid::regprocedure::text, pg_get_functiondef(oid) FROM pg_proc
        WHERE pronamespace = 'public'::regnamespace
    """,
    "comment": """
        SELECT c.relname || coalesce('.' || a.attname, ''), d.description
        FROM pg_description d
        JOIN pg_class c ON c.oid = d.objoid AND d.classoid = 'pg_class'::regclass
        LEFT JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum = d.objsubid AND d.objsubid > 0
        WHERE c.relnamespace = 'public'::regnamespace
    """,
    "storage": """
        SELECT relname, concat_ws(' ', relkind, relpersistence, reloptions::text) FROM pg_class
        WHERE relnamespace = 'public'::regnamespace
    """,
    "sequence": """
        SELECT sequencename, concat_ws(' ', data_type, start_value, min_value, max_value, increment_by, cycle, cache_size)
        FROM pg_sequences WHERE schemaname = 'public'
    """,
}

_SQLITE = "SELECT type, name, coalesce(sql, '') FROM sqlite_master"

_ALEMBIC = "alembic_version"
"""Alembic's own table; a database made by `create_all` has none."""


def schema_of(engine: Engine) -> Schema:
    """Read every definition in the database except alembic's own."""
    with engine.connect() as connection:
        if connection.dialect.name == POSTGRES:
            queries = {kind: connection.execute(text(query)) for kind, query in _POSTGRES.items()}
            found = {(kind, name): definition for kind, rows in queries.items() for name, definition in rows}
        else:
            found = {(kind, name): _lines(sql) for kind, name, sql in connection.execute(text(_SQLITE))}
    return {(kind, name): definition for (kind, name), definition in found.items() if _ALEMBIC not in name}


def differences(one: Schema, other: Schema) -> list[tuple[str, str]]:
    """List kind and name of the definitions that differ."""
    return sorted(key for key in one.keys() | other.keys() if one.get(key) != other.get(key))


def _lines(sql: str) -> str:
    """Remove indentation and blank lines. Line breaks stay, as they end comments."""
    return "\n".join(line for line in (line.strip() for line in sql.splitlines()) if line)
