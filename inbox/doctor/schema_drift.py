"""Compares the database's tables, indexes, views and triggers with those of this version.

SQLite keeps the text of each definition, which is compared with that of a database made in memory. Postgres keeps its own
form: columns and constraints are compared by name and type, indexes and triggers by their tokens, functions by their text,
and views by the plans of two queries, one of the view and one of its definition. Nothing is executed.

Objects that this version doesn't know are no finding: a DBA may add an index, and a later version may add a column.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from functools import cache

from sqlalchemy import Connection, Table, create_engine, event, inspect, text
from sqlalchemy.dialects import postgresql
from sqlalchemy.schema import CreateIndex

from inbox.db import migrate, roles, views
from inbox.db.dialect import POSTGRES, SQLITE
from inbox.db.schema import metadata
from inbox.errors import NotExamined
from inbox.examination import DoctorFinding, Examination, FindingKind, Installation, sql_name

MISSING = FindingKind(
    "object_missing",
    "critical",
    "A table, column, constraint, index, view, function or trigger of this version is missing.",
    "statements fail or read whole tables, or nothing keeps an invariant any more",
    "the statement that makes it, or else: restore it from migrations/versions/",
)
CHANGED = FindingKind(
    "object_changed",
    "warning",
    "A definition differs from this version's.",
    "this version is tested with its own definitions: plans, invariants or listings may be wrong",
    "the statements that make it again, or else: compare it with migrations/versions/",
)
INVALID = FindingKind(
    "index_invalid",
    "warning",
    "An index is not valid.",
    "a CREATE INDEX or REINDEX … CONCURRENTLY failed: every write pays for it, and no query uses it",
    "REINDEX INDEX CONCURRENTLY {index};",
)
DISABLED = FindingKind(
    "trigger_disabled",
    "critical",
    "A trigger is disabled.",
    "nothing keeps anybody from changing or deleting events and facts",
    "ALTER TABLE {table} ENABLE TRIGGER {trigger};",
)
ROW_MISSING = FindingKind(
    "row_missing",
    "critical",
    "A table has lost its only row.",
    "programs lock that row, or keep their place in it: lanes get out of order, payloads go too early, or nothing is pruned",
    "the statement that makes the row again",
)


def _schema(installation: Installation) -> Iterator[DoctorFinding]:
    if installation.engine is None or not migrate.is_exactly_head(installation.engine):
        raise NotExamined("needs the schema of exactly this version: see the examination migrations")
    with installation.reading() as connection:
        if connection.dialect.name == SQLITE:
            yield from _of_sqlite(connection)
            yield from _rows(connection)
            return
        yield from _columns(connection)
        yield from _constraints(connection)
        yield from _indexes(connection)
        yield from _triggers(connection)
        yield from _functions(connection)
    with installation.reading() as connection:
        yield from _rows(connection)
    for name, definition in _views(POSTGRES).items():
        with installation.reading() as connection:
            yield from _view(connection, name, definition)


def _rows(connection: Connection) -> Iterator[DoctorFinding]:
    present = inspect(connection).get_table_names()
    for table, statement in views.ROWS.items():
        if table in present and connection.execute(text(f"SELECT 1 FROM {table} WHERE id = 1")).first() is None:
            yield ROW_MISSING.found(table, f"{table} has lost its row", mend=f"{statement};")


# --- SQLite


def _of_sqlite(connection: Connection) -> Iterator[DoctorFinding]:
    statement = text("SELECT type, name, sql FROM sqlite_master WHERE sql IS NOT NULL")
    present = {(row.type, row.name): row.sql for row in connection.execute(statement)}
    for (kind, name), definition in _expected_of_sqlite().items():
        found = present.get((kind, name))
        if found is None:
            yield MISSING.found(name, f"the {kind} {name} is missing", mend=f"{_one_line(definition)};")
        elif _one_line(found) != _one_line(definition):
            mend = None if kind == "table" else f"DROP {kind.upper()} {name}; {_one_line(definition)};"
            yield CHANGED.found(name, f"the {kind} {name} has another definition", mend=mend)


@cache
def _expected_of_sqlite() -> Mapping[tuple[str, str], str]:
    """Make the schema in memory, and read its definitions."""
    made = create_engine("sqlite://")

    @event.listens_for(made, "begin")
    def _begin(connection: Connection) -> None:
        connection.exec_driver_sql("BEGIN")

    try:
        with made.begin() as connection:
            metadata.create_all(connection)
            statement = text("SELECT type, name, sql FROM sqlite_master WHERE sql IS NOT NULL")
            return {(row.type, row.name): row.sql for row in connection.execute(statement)}
    finally:
        made.dispose()


def _one_line(sql: str) -> str:
    """Write a statement on one line, without its comments."""
    return " ".join(" ".join(re.sub(r"--.*", "", line) for line in sql.splitlines()).split())


# --- Postgres


def _columns(connection: Connection) -> Iterator[DoctorFinding]:
    present = {(row.table, row.column): row for row in connection.execute(_COLUMNS)}
    tables = {table for table, _ in present}
    for table in metadata.sorted_tables:
        if table.name not in tables:
            yield MISSING.found(table.name, f"the table {table.name} is missing")
            continue
        for column in table.columns:
            name = f"{table.name}.{column.name}"
            found = present.get((table.name, column.name))
            if found is None:
                yield MISSING.found(name, f"the column {name} is missing")
                continue
            wanted = column.type.compile(postgresql.dialect()).casefold()  # type: ignore[no-untyped-call]  # SQLAlchemy's own
            if found.type.casefold() != wanted:
                yield CHANGED.found(name, f"the column {name} has the type {found.type}, not {wanted}")
            elif found.required == column.nullable:
                yield CHANGED.found(name, f"the column {name} {'may' if column.nullable else 'must not'} be empty here")


def _constraints(connection: Connection) -> Iterator[DoctorFinding]:
    present = {row.name: row for row in connection.execute(_CONSTRAINTS)}
    dialect = postgresql.dialect()  # type: ignore[no-untyped-call]  # SQLAlchemy's own
    for table in metadata.sorted_tables:
        for constraint in table.constraints:
            rule = getattr(constraint, "_ddl_if", None)
            if constraint.name is None or (rule is not None and rule.dialect not in {None, dialect.name}):
                continue
            name = str(constraint.name)
            if name not in present:
                yield MISSING.found(name, f"the constraint {name} of {table.name} is missing")
            elif not present[name].convalidated:
                mend = f"ALTER TABLE {sql_name(table.name)} VALIDATE CONSTRAINT {sql_name(name)};"
                yield CHANGED.found(name, f"the constraint {name} of {table.name} was never validated", mend=mend)


def _indexes(connection: Connection) -> Iterator[DoctorFinding]:
    present = {row.name: row for row in connection.execute(_INDEXES)}
    for row in present.values():
        if not row.valid:
            yield INVALID.found(row.name, f"the index {row.name} of {row.table} is not valid", index=sql_name(row.name))
    for table in metadata.sorted_tables:
        for index in sorted(table.indexes, key=lambda one: str(one.name)):
            name = str(index.name)
            statement = str(CreateIndex(index).compile(dialect=postgresql.dialect()))  # type: ignore[no-untyped-call]
            made = " ".join(statement.split())
            if name not in present:
                yield MISSING.found(
                    name, f"the index {name} of {table.name} is missing", mend=_concurrently(made, table)
                )
            elif _tokens(present[name].definition) != _tokens(made):
                mend = f"DROP INDEX {sql_name(name)}; {made};"
                yield CHANGED.found(name, f"the index {name} of {table.name} has another definition", mend=mend)


def _concurrently(statement: str, table: Table) -> str:
    """Let an index be made beside running programs, where the table may be large and has no partitions."""
    if table.dialect_options["postgresql"].get("partition_by"):
        return f"{statement};"
    return statement.replace(" INDEX ", " INDEX CONCURRENTLY ", 1) + ";"


_TOKEN = re.compile(r"'(?:[^']|'')*'|[\w.]+|[<>=!]+")
_STORAGE_PARAMETER = re.compile(r"(?<=\w)='(\w+)'")
"""As Postgres writes one of `WITH (…)`; it puts spaces around every comparison."""
_WITHOUT_MEANING = frozenset({"any", "array", "in", "text", "btree", "using", "only", "public", "=", "on"})


def _tokens(definition: str) -> Counter[str]:
    """Count the words, values and comparisons of a definition, but for those that Postgres adds or rewrites."""
    plain = _STORAGE_PARAMETER.sub(r" = \1", definition)
    found = (token if token.startswith("'") else token.casefold().rpartition(".")[2] for token in _TOKEN.findall(plain))
    return Counter(token for token in found if token not in _WITHOUT_MEANING)


_TRIGGER = re.compile(r"\s*CREATE TRIGGER (\w+)\b.*?\bON (\w+)", re.DOTALL)
_FUNCTION = re.compile(r"\s*CREATE (?:OR REPLACE )?FUNCTION (\w+)\(.*?\bAS \$(\w*)\$(.*)\$\2\$", re.DOTALL)
_VIEW = re.compile(r"\s*CREATE VIEW (\w+) AS(.*)", re.DOTALL)


def _triggers(connection: Connection) -> Iterator[DoctorFinding]:
    present = {row.name: row for row in connection.execute(_TRIGGERS)}
    for statement in views.statements(POSTGRES):
        if (made := _TRIGGER.match(statement)) is None:
            continue
        name, table = made.groups()
        found = present.get(name)
        again = " ".join(statement.split())
        if found is None:
            yield MISSING.found(name, f"the trigger {name} of {table} is missing", mend=f"{again};")
        elif not found.enabled:
            what = f"the trigger {name} of {table} is disabled"
            yield DISABLED.found(name, what, table=sql_name(table), trigger=sql_name(name))
        elif _tokens(found.definition) != _tokens(statement):
            mend = f"DROP TRIGGER {name} ON {table}; {again};"
            yield CHANGED.found(name, f"the trigger {name} of {table} has another definition", mend=mend)


def _functions(connection: Connection) -> Iterator[DoctorFinding]:
    present = {row.name: row for row in connection.execute(_FUNCTIONS)}
    for statement in views.statements(POSTGRES):
        if (made := _FUNCTION.match(statement)) is None:
            continue
        name, _, body = made.groups()
        if name not in present:
            yield MISSING.found(name, f"the function {name} is missing", mend=f"{statement.strip()};")
            continue
        found, again = present[name], statement.strip().replace("CREATE FUNCTION", "CREATE OR REPLACE FUNCTION", 1)
        if found.source.strip() != body.strip():
            yield CHANGED.found(name, f"the function {name} has another body", mend=f"{again};")
        elif found.is_definer != ("SECURITY DEFINER" in statement) or found.is_pinned != (
            "SET search_path" in statement
        ):
            yield CHANGED.found(
                name, f"the function {name} has other rights or no search_path of its own", mend=f"{again};"
            )


@cache
def _views(dialect: str) -> Mapping[str, str]:
    found = (_VIEW.match(statement) for statement in views.statements(dialect))
    return {made[1]: made[2] for made in found if made is not None}


def _view(connection: Connection, name: str, definition: str) -> Iterator[DoctorFinding]:
    """Compare a view with its definition: Postgres plans a query of either in the same way."""
    again = f"CREATE VIEW {name} AS {_one_line(definition)};"
    if not connection.execute(_HAS_VIEW, {"name": name}).scalar():
        yield MISSING.found(name, f"the view {name} is missing", mend=again)
        return
    for _ in range(2):  # statistics may be renewed between the two plans
        if _plan(connection, f"SELECT * FROM {name} v") == _plan(connection, f"SELECT * FROM ({definition}) v"):
            return
    yield CHANGED.found(name, f"the view {name} has another definition", mend=f"DROP VIEW {name}; {again}")


def _plan(connection: Connection, query: str) -> tuple[tuple[str, ...], str]:
    """Return the names of a query's columns, and its plan."""
    plain = connection.execution_options(no_parameters=True)  # a percent sign is one
    names = tuple(plain.exec_driver_sql(f"SELECT * FROM ({query}) AS q LIMIT 0").keys())
    lines = plain.exec_driver_sql(f"EXPLAIN (VERBOSE, COSTS OFF) {query}").scalars()
    return names, "\n".join(line for line in lines if not line.startswith("Query Identifier"))


_NAMESPACE = "(SELECT oid FROM pg_namespace WHERE nspname = current_schema())"
_COLUMNS = text(f"""
SELECT c.relname AS "table", a.attname AS "column", format_type(a.atttypid, a.atttypmod) AS type, a.attnotnull AS required
FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
WHERE c.relnamespace = {_NAMESPACE} AND c.relkind IN ('r', 'p')
""")
_CONSTRAINTS = text(f"""
SELECT conname AS name, convalidated FROM pg_constraint WHERE connamespace = {_NAMESPACE} AND conrelid <> 0
""")
_INDEXES = text(f"""
SELECT c.relname AS name, t.relname AS "table", i.indisvalid AND i.indisready AS valid, pg_get_indexdef(i.indexrelid) AS definition
FROM pg_index i
JOIN pg_class c ON c.oid = i.indexrelid
JOIN pg_class t ON t.oid = i.indrelid
WHERE c.relnamespace = {_NAMESPACE}
""")
_TRIGGERS = text(f"""
SELECT t.tgname AS name, t.tgenabled IN ('O', 'A') AS enabled, pg_get_triggerdef(t.oid) AS definition
FROM pg_trigger t JOIN pg_class c ON c.oid = t.tgrelid
WHERE NOT t.tgisinternal AND t.tgparentid = 0 AND c.relnamespace = {_NAMESPACE}
""")
_FUNCTIONS = text(f"""
SELECT proname AS name, prosrc AS source, prosecdef AS is_definer,
       coalesce(array_to_string(proconfig, ' ') LIKE '%search_path=%', false) AS is_pinned
FROM pg_proc WHERE pronamespace = {_NAMESPACE}
""")
_HAS_VIEW = text(f"""
SELECT EXISTS (SELECT FROM pg_class WHERE relnamespace = {_NAMESPACE} AND relkind = 'v' AND relname = :name)
""")

RIGHTS = FindingKind(
    "rights_lacking",
    "warning",
    "The roles of this installation have no rights on a table or view.",
    "programs and people that log in as one of them fail where they need it, as after a migration",
    "inbox roles | psql",
)


def _rights(installation: Installation) -> Iterator[DoctorFinding]:
    if installation.engine is None:
        raise NotExamined("needs a database url that can be used")
    for name in roles.lacking(installation.engine):
        yield RIGHTS.found(name, f"the roles of `inbox roles` have no rights on {name}")


EXAMINATIONS = (
    Examination(
        "schema",
        "Database",
        "Tables, columns, constraints, indexes, views, functions and triggers, against those of this version.",
        _schema,
        (MISSING, CHANGED, INVALID, DISABLED, ROW_MISSING),
    ),
    Examination(
        "rights",
        "Database",
        "Rights of the roles that `inbox roles` makes.",
        _rights,
        (RIGHTS,),
        on=(POSTGRES,),
    ),
)
