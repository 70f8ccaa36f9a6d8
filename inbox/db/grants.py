"""Makes the roles of a Postgres database, and gives each the rights of `inbox.db.roles` and nothing more.

It looks at the database (`look`), writes the statements that are missing (`statements`, pure), and runs them. Running them
again changes nothing, except for what has come since: tables of a migration, and login roles.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import msgspec
from sqlalchemy import Connection, Engine, text
from sqlalchemy.exc import DBAPIError

from inbox.config.types import SchemaName
from inbox.db.dialect import POSTGRES, is_lock_wait
from inbox.db.engine import DEFAULT_SCHEMA, reading, schema_of, search_path
from inbox.db.leaves import is_leaf
from inbox.db.roles import FUNCTIONS, ROLES, SEQUENCES, SETTINGS, TABLES, VIEWS, Grants, Role
from inbox.errors import ConfigError

DEFAULT_PREFIX = "inbox"
_WAIT = "1s"
"""Wait for the lock of a table whose owner changes: what comes later waits behind it."""
_LONGEST_PREFIX = 63 - max(len(f"_{role}") for role in ROLES)
_KINDS = {"r": "TABLE", "p": "TABLE", "v": "VIEW"}


class Surroundings(msgspec.Struct, frozen=True):
    """State of a database that the statements depend on."""

    database: str
    schema: str
    version: int
    """Major version of Postgres."""
    user: str
    is_superuser: bool
    memberships: frozenset[str]
    """Roles that the user is a member of."""
    roles: frozenset[str]
    """Names of all roles that exist."""
    logins: Mapping[str, tuple[str, ...]]
    """Login roles of each group role, but no superusers."""
    owners: Mapping[str, str]
    """Owner of each table and view of ours, by what ALTER calls it: `TABLE inbox`."""
    functions: Mapping[str, str]
    """Owner of each function of ours, by its signature: `f(bigint)`."""


def names(schema: str, prefix: str | None) -> Mapping[Role, str]:
    """Return the name of each role: its prefix is the schema's name, or `inbox` in the schema `public`.

    Raises:
        ConfigError: the prefix makes no names that Postgres takes without quotes.
    """
    before = prefix or (DEFAULT_PREFIX if schema == DEFAULT_SCHEMA else schema)
    called = {role: f"{before}_{role}" for role in ROLES}
    try:
        for name in called.values():
            SchemaName.parse(name)  # the same rule
    except ValueError:
        raise ConfigError(
            f"the prefix {before!r} makes no name of a role: use small letters, digits and _, at most {_LONGEST_PREFIX}, with"
            " --prefix"
        ) from None
    return called


def grant(engine: Engine, prefix: str | None = None) -> list[str]:
    """Make the roles and give them their rights. Returns the statements that were run.

    What is done stays when a later statement fails, and is not done again.

    Raises:
        ConfigError: it is no Postgres, a table is locked, or this role may not do it; the message has a remedy.
    """
    first, *rest = [*_written(engine, prefix)]
    for part in (first, *rest):
        try:
            with engine.begin() as connection:
                connection.execute(text(f"SET LOCAL lock_timeout = '{_WAIT}'"))
                for statement in part:
                    connection.exec_driver_sql(statement)
        except DBAPIError as error:
            if is_lock_wait(error):
                raise ConfigError(
                    f"`{part[0]}` waits for a lock that somebody holds. Wait until that transaction has ended"
                    " (pg_stat_activity has it), then run `inbox migrate --grant` again: what was done stays"
                ) from None
            if getattr(error.orig, "sqlstate", None) == _NOT_ALLOWED:
                raise ConfigError(
                    f"the database refuses: {str(error.orig).splitlines()[0]}. Run `inbox migrate --grant` as a superuser, or"
                    " have one run the statements of `inbox migrate --grant --sql`"
                ) from None
            raise
    return [statement for part in (first, *rest) for statement in part]


def script(engine: Engine, prefix: str | None = None) -> str:
    """Return what `grant` would run, as a script for psql."""
    parts = _written(engine, prefix)
    with engine.connect() as connection:
        path = search_path(schema_of(connection))
    head = f"SET search_path = {path};\nSET lock_timeout = '{_WAIT}';"
    return "\n\n".join([head, *("\n".join(f"{line};" for line in ("BEGIN", *part, "COMMIT")) for part in parts)])


_NOT_ALLOWED = "42501"


def _written(engine: Engine, prefix: str | None) -> list[list[str]]:
    if engine.dialect.name != POSTGRES:
        raise ConfigError(
            "--grant: a SQLite file has no roles; its mode decides who may read and write it, see"
            " docs/how-to/limit-what-roles-may-do.md"
        )
    with engine.connect() as connection, reading(connection).begin():
        called = names(schema_of(connection), prefix)
        return statements(look(connection, called), called)


def look(connection: Connection, called: Mapping[Role, str]) -> Surroundings:
    """Read the state that the statements depend on."""
    about = connection.execute(_ABOUT, {"roles": list(called.values())}).one()
    owners = connection.execute(_OWNERS, {"names": [*TABLES, *VIEWS]}).all()
    return Surroundings(
        database=about.database,
        schema=schema_of(connection),
        version=about.version // 10000,
        user=about.role,
        is_superuser=about.is_superuser,
        memberships=frozenset(about.memberships),
        roles=frozenset(connection.scalars(text("SELECT rolname FROM pg_roles"))),
        logins={row.role: tuple(row.logins) for row in connection.execute(_LOGINS, {"roles": list(called.values())})},
        owners={f"{_KINDS[row.kind]} {row.name}": row.owner for row in owners},
        functions={
            row.signature: row.owner for row in connection.execute(_FUNCTION_OWNERS, {"names": list(FUNCTIONS)})
        },
    )


def statements(found: Surroundings, called: Mapping[Role, str]) -> list[list[str]]:
    """Write the statements, each list for a transaction. A change of owner locks its table, so it has one of its own."""
    owner = called["owner"]
    grantees = ", ".join(called[role] for role in ROLES if role != "owner")
    schema = f"SCHEMA {found.schema}"
    made = [f"CREATE ROLE {name} NOLOGIN" for name in called.values() if name not in found.roles]
    if not found.is_superuser and owner not in found.memberships:
        made.append(f"GRANT {owner} TO CURRENT_USER")
    made += [f"GRANT USAGE, CREATE ON {schema} TO {owner}", f"GRANT USAGE ON {schema} TO {grantees}"]
    if found.schema != DEFAULT_SCHEMA:  # public belongs to all applications of the database
        made.append(f"REVOKE ALL ON {schema} FROM PUBLIC")
    # only as a whole: for one schema it would take nothing away (a note of ALTER DEFAULT PRIVILEGES)
    made.append(f"ALTER DEFAULT PRIVILEGES FOR ROLE {owner} REVOKE ALL ON FUNCTIONS FROM PUBLIC")
    handed = [f"ALTER {thing} OWNER TO {owner}" for thing, now in found.owners.items() if now != owner]
    handed += [f"ALTER FUNCTION {one} OWNER TO {owner}" for one, now in found.functions.items() if now != owner]
    rights = [*_rights(found, called, grantees), *_settings(found, called)]
    return [made, *([each] for each in handed), rights]


def _rights(found: Surroundings, called: Mapping[Role, str], grantees: str) -> Iterator[str]:
    functions = {one: FUNCTIONS[one.partition("(")[0]] for one in found.functions}
    # access through inbox_payload asks for no right on a leaf, but a GRANT ON ALL TABLES gave some
    leaves: dict[str, Grants] = {
        name: {} for name in (thing.partition(" ")[2] for thing in found.owners) if is_leaf(name)
    }
    tables = {**TABLES, **VIEWS, **leaves}
    for kind, things in (("TABLE", tables), ("SEQUENCE", SEQUENCES), ("FUNCTION", functions)):
        for name, grants in things.items():
            # what PUBLIC or a role was given by hand or by an older version goes, in the same transaction
            yield f"REVOKE ALL ON {kind} {name} FROM PUBLIC, {grantees}"
            yield from _grants(f"{kind} {name}", grants, called)


def _grants(thing: str, grants: Grants, called: Mapping[Role, str]) -> Iterator[str]:
    for role, privileges in grants.items():
        yield f"GRANT {privileges} ON {thing} TO {called[role]}"


def _settings(found: Surroundings, called: Mapping[Role, str]) -> Iterator[str]:
    """Write the settings of the group roles, and of their login roles: a member inherits rights, but no settings."""
    taken: set[str] = set()
    for role in ROLES:
        settings = {
            name: setting.value for name, setting in SETTINGS[role].items() if setting.since <= found.version
        } | {"search_path": search_path(found.schema)}
        for login in (called[role], *found.logins.get(called[role], ())):
            if login in taken:  # of several groups, the first counts
                continue
            taken.add(login)
            for name, value in settings.items():
                literal = value if name == "search_path" else f"'{value}'"
                yield f"ALTER ROLE {_quoted(login)} IN DATABASE {_quoted(found.database)} SET {name} = {literal}"


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def lacking(engine: Engine, prefix: str | None = None) -> list[str]:
    """List the tables and views on which the roles have no rights yet, where there are roles: after a migration, the new ones."""
    if engine.dialect.name != POSTGRES:
        return []
    with engine.connect() as connection, reading(connection).begin():
        called = names(schema_of(connection), prefix)
        rows = connection.execute(_LACKING, {"owner": called["owner"], "names": [*TABLES, *VIEWS]})
        return [str(row.name) for row in rows]


_ABOUT = text("""
SELECT current_database() AS database, CAST(current_setting('server_version_num') AS int) AS version, r.rolname AS role,
       r.rolsuper AS is_superuser,
       ARRAY(SELECT m.rolname FROM pg_roles m WHERE m.rolname = ANY(:roles) AND pg_has_role(m.oid, 'MEMBER')) AS memberships
FROM pg_roles r WHERE r.rolname = current_user
""")

_LOGINS = text("""
SELECT g.rolname AS role, array_agg(l.rolname ORDER BY l.rolname) AS logins
FROM pg_roles g JOIN pg_roles l ON l.rolcanlogin AND NOT l.rolsuper AND l.oid <> g.oid AND pg_has_role(l.oid, g.oid, 'MEMBER')
WHERE g.rolname = ANY(:roles)
GROUP BY g.rolname
""")

_OWNERS = text("""
SELECT c.relname AS name, c.relkind AS kind, pg_get_userbyid(c.relowner) AS owner
FROM pg_class c
WHERE c.relnamespace = CAST(current_schema() AS regnamespace) AND c.relkind IN ('r', 'p', 'v')
  AND (c.relname = ANY(:names)
       OR c.oid IN (SELECT i.inhrelid FROM pg_inherits i JOIN pg_class p ON p.oid = i.inhparent
                    WHERE p.relnamespace = c.relnamespace AND p.relname = ANY(:names)))
ORDER BY c.relkind, c.relname
""")

_FUNCTION_OWNERS = text("""
SELECT p.proname || '(' || pg_get_function_identity_arguments(p.oid) || ')' AS signature, pg_get_userbyid(p.proowner) AS owner
FROM pg_proc p
WHERE p.pronamespace = CAST(current_schema() AS regnamespace) AND p.proname = ANY(:names)
ORDER BY 1
""")

_LACKING = text("""
SELECT c.relname AS name
FROM pg_class c JOIN pg_roles r ON r.rolname = :owner AND r.oid <> c.relowner
WHERE c.relnamespace = CAST(current_schema() AS regnamespace) AND c.relkind IN ('r', 'p', 'v') AND c.relname = ANY(:names)
ORDER BY c.relname
""")
