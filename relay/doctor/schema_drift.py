"""Compares the database with this version's schema: tables of Postgres with Alembic, everything else by definition.

Unknown objects are not findings: a DBA may have added an index, or a later version a column.
"""

from __future__ import annotations

import re
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any

from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import CheckConstraint, Connection, create_engine, text
from sqlalchemy.dialects import postgresql
from sqlalchemy.schema import CreateIndex

from inbox.db import migrate, views
from inbox.db.dialect import POSTGRES
from inbox.db.leaves import is_leaf
from inbox.db.schema import metadata
from inbox.errors import NotExamined
from relay.doctor.run import Installation
from relay.findings import Finding, FindingKind

DIFFERS = FindingKind(
    "schema_differs",
    "critical",
    "A table, column, constraint, index, view, function or trigger is missing or differs from this version's.",
    "restore it from migrations/versions/",
)
RIGHTS = FindingKind(
    "rights_lacking",
    "warning",
    "The roles of this installation lack rights on a table or view, for example after a migration.",
    "inbox roles | psql",
)
UNLIMITED = FindingKind(
    "owner_unlimited",
    "warning",
    "The owner of the tables has no idle_in_transaction_session_timeout: a forgotten transaction keeps a route locked.",
    "inbox roles | psql",
)


def examine_schema(installation: Installation) -> Iterator[Finding]:
    """Tables, indexes, views, functions and triggers, compared with this version's."""
    if not migrate.is_exactly_head(installation.engine):
        raise NotExamined("needs the schema of exactly this version: see the examination migrations")
    with installation.reading() as connection:
        found = dict((_compare_postgres if connection.dialect.name == POSTGRES else _compare_sqlite)(connection))
        for table in sorted(views.ROWS.keys() - found.keys()):
            if connection.execute(text(f"SELECT 1 FROM {table} WHERE id = 1")).first() is None:
                found[table] = "has lost its row"
    for name, told in found.items():
        yield DIFFERS.found(name, f"{name} {told}")


def _compare_sqlite(connection: Connection) -> Iterator[tuple[str, str]]:
    """Yield each object whose definition differs from the one in a new in-memory database."""
    present, expected = _texts(connection), _read_definitions()
    for name, definition in expected.items():
        if present.get(name) != definition:
            yield name, "has another definition" if name in present else "is missing"


@cache
def _read_definitions() -> Mapping[str, str]:
    made = create_engine("sqlite://")
    try:
        with made.begin() as connection:
            metadata.create_all(connection)
            return _texts(connection)
    finally:
        made.dispose()


def _texts(connection: Connection) -> dict[str, str]:
    rows = connection.execute(text("SELECT name, sql FROM sqlite_master WHERE sql IS NOT NULL"))
    return {row.name: " ".join(re.sub(r"--.*", "", row.sql).split()) for row in rows}


def _compare_postgres(connection: Connection) -> Iterator[tuple[str, str]]:
    ours = {"include_name": lambda name, kind, _: kind != "table" or not is_leaf(name or ""), "compare_type": True}
    with warnings.catch_warnings():
        warnings.simplefilter(
            "ignore"
        )  # Alembic warns of objects that it can't compare, such as unvalidated constraints
        differences: list[Any] = compare_metadata(MigrationContext.configure(connection, opts=ours), metadata)
    for each in (part for one in differences for part in (one if isinstance(one, list) else [one])):
        if each[0] in {"add_table", "add_index", "add_constraint"}:
            yield each[1].name, "is missing"
        elif not each[0].startswith("remove_") and not each[0].endswith("_comment"):
            yield f"{each[2]}.{getattr(each[3], 'name', each[3])}", f"differs: {each[0].replace('_', ' ')}"
    rows = connection.execute(_OBJECTS).all()
    for kind, statements in _collect_definitions().items():
        present = {row.name: row.definition for row in rows if row.kind == kind}
        for name, statement in statements.items():
            if name not in present:
                yield name, "is missing, disabled or not valid"
            elif (kind in {"INDEX", "TRIGGER"} and _tokens(present[name]) != _tokens(statement)) or (
                kind == "VIEW" and not _is_same_view(connection, name, statement)
            ):
                yield name, "has another definition"
            elif kind == "FUNCTION" and " ".join(present[name].split()) != _function(statement):
                yield name, "has another body, other rights or no search_path of its own"


_DEFINED = re.compile(r"\s*CREATE (?:OR REPLACE )?(TRIGGER|FUNCTION|VIEW) (\w+)")
_OBJECTS = text("""
SELECT 'FUNCTION' AS kind, p.proname AS name,
       p.prosrc || CASE WHEN p.prosecdef THEN ' SECURITY DEFINER' ELSE '' END
           || CASE WHEN CAST(p.proconfig AS text) LIKE '%search_path%' THEN ' SET search_path' ELSE '' END AS definition
FROM pg_proc p WHERE p.pronamespace = CAST(current_schema() AS regnamespace)
UNION ALL SELECT 'VIEW', v.viewname, '' FROM pg_views v WHERE v.schemaname = current_schema()
UNION ALL SELECT 'TRIGGER', t.tgname, pg_get_triggerdef(t.oid) FROM pg_trigger t JOIN pg_class c ON c.oid = t.tgrelid
WHERE c.relnamespace = CAST(current_schema() AS regnamespace) AND t.tgparentid = 0 AND NOT t.tgisinternal
  AND t.tgenabled IN ('O', 'A')
UNION ALL SELECT 'INDEX', c.relname, pg_get_indexdef(i.indexrelid) FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid
WHERE c.relnamespace = CAST(current_schema() AS regnamespace) AND i.indisvalid AND i.indisready
UNION ALL SELECT 'CHECK', k.conname, '' FROM pg_constraint k
WHERE k.connamespace = CAST(current_schema() AS regnamespace) AND k.contype = 'c' AND k.convalidated
""")


@cache
def _collect_definitions() -> Mapping[str, Mapping[str, str]]:
    """Return the objects of each kind on Postgres, with the statements that create them."""
    made: dict[str, dict[str, str]] = {kind: {} for kind in ("VIEW", "FUNCTION", "TRIGGER", "INDEX", "CHECK")}
    for statement in views.statements(POSTGRES):
        if found := _DEFINED.match(statement):
            made[found[1]][found[2]] = statement
    compiled = postgresql.dialect()  # type: ignore[no-untyped-call]  # SQLAlchemy's own
    for table in metadata.sorted_tables:
        made["INDEX"] |= {str(each.name): str(CreateIndex(each).compile(dialect=compiled)) for each in table.indexes}
        for each in table.constraints:
            rule = getattr(each, "_ddl_if", None)
            if isinstance(each, CheckConstraint) and each.name and (rule is None or rule.dialect in {None, POSTGRES}):
                made["CHECK"][str(each.name)] = ""
    return made


def _function(statement: str) -> str:
    """Return a function's body and properties, in the form of `_OBJECTS`."""
    _, _, rest = statement.partition("$$")
    body, _, _ = rest.rpartition("$$")
    more = [word for word in ("SECURITY DEFINER", "SET search_path") if word in statement.replace(body, "")]
    return " ".join([*body.split(), *more])


_TOKEN = re.compile(r"'(?:[^']|'')*'|[\w.]+|[<>=!]+")
_STORAGE_PARAMETER = re.compile(r"(?<=\w)='(\w+)'")
"""A parameter in Postgres' `WITH (…)`. Unlike a comparison, it has no spaces around `=`."""
_WITHOUT_MEANING = frozenset({"any", "array", "in", "text", "btree", "using", "only", "public", "=", "on"})


def _tokens(definition: str) -> Counter[str]:
    """Count the words, values and comparisons of a definition, except those that Postgres adds or rewrites."""
    plain = _STORAGE_PARAMETER.sub(r" = \1", definition)
    found = (token if token.startswith("'") else token.casefold().rpartition(".")[2] for token in _TOKEN.findall(plain))
    return Counter(token for token in found if token not in _WITHOUT_MEANING)


def _is_same_view(connection: Connection, name: str, statement: str) -> bool:
    """Return whether a view equals its definition: Postgres plans a query of either in the same way."""
    definition = statement.partition(" AS")[2]
    return _plan(connection, f"SELECT * FROM {name} v") == _plan(connection, f"SELECT * FROM ({definition}) v")


def _plan(connection: Connection, query: str) -> tuple[tuple[str, ...], str]:
    """Return the names of a query's columns, and its plan."""
    plain = connection.execution_options(no_parameters=True)  # percent signs are literal
    names = tuple(plain.exec_driver_sql(f"SELECT * FROM ({query}) AS q LIMIT 0").keys())
    lines = plain.exec_driver_sql(f"EXPLAIN (VERBOSE, COSTS OFF) {query}").scalars()
    return names, "\n".join(line for line in lines if not line.startswith("Query Identifier"))


def examine_rights(installation: Installation) -> Iterator[Finding]:
    """Rights of the roles that `inbox roles` creates, and the owner's timeout, on Postgres."""
    for name in migrate.lacking_rights(installation.engine):
        yield RIGHTS.found(name, f"the roles of `inbox roles` lack rights on {name}")
    for owner in migrate.list_unlimited_owners(installation.engine):
        yield UNLIMITED.found(owner, f"{owner} owns the tables, and its transactions may stay open forever")
