"""The roles of a Postgres database: `roles.sql` gives each its rights and timeouts, and nothing more."""

from __future__ import annotations

import re
from importlib.resources import files
from typing import Literal, get_args

from sqlalchemy import Engine, text

from inbox.config.values import SchemaName
from inbox.db.dialect import POSTGRES
from inbox.db.engine import DEFAULT_SCHEMA, reading, schema_of, search_path
from inbox.errors import ConfigError

Role = Literal["receiver", "relay", "web", "operator", "reader", "reader_without_payloads"]
"""A group role: its name in the database has a prefix. Login roles become its members."""
ROLES: tuple[Role, ...] = get_args(Role)
DEFAULT_PREFIX = "inbox"
_LONGEST_PREFIX = 63 - max(len(f"_{role}") for role in ROLES)
_NAME = re.compile(rf"\binbox_({'|'.join(sorted(ROLES, reverse=True))})\b")
_PATH = "search_path = public, pg_temp"


def script(schema: str = DEFAULT_SCHEMA, prefix: str | None = None) -> str:
    """Return the statements for psql. The prefix of the names is the schema's name unless given, or `inbox` in `public`.

    Raises:
        ConfigError: the prefix makes no names that Postgres takes without quotes.
    """
    before = prefix or _prefix_in(schema)
    try:
        for role in ROLES:
            SchemaName.parse(f"{before}_{role}")  # the same rule
    except ValueError:
        raise ConfigError(
            f"the prefix {before!r} makes no name of a role: use small letters, digits and _, at most {_LONGEST_PREFIX}, with"
            " --prefix"
        ) from None
    written = files("inbox.db").joinpath("roles.sql").read_text(encoding="utf-8")
    return _NAME.sub(rf"{before}_\1", written).replace(_PATH, f"search_path = {search_path(schema)}", 1)


def lacking(engine: Engine) -> list[str]:
    """List the tables and views that the relay's role can't read, where there is one: after a migration, the new ones."""
    if engine.dialect.name != POSTGRES:
        return []
    with engine.connect() as connection, reading(connection).begin():
        relay = f"{_prefix_in(schema_of(connection))}_relay"
        return [str(row.name) for row in connection.execute(_LACKING, {"relay": relay})]


def _prefix_in(schema: str) -> str:
    return DEFAULT_PREFIX if schema == DEFAULT_SCHEMA else schema


_LACKING = text("""
SELECT c.relname AS name
FROM pg_class c JOIN pg_roles r ON r.rolname = :relay
WHERE c.relnamespace = CAST(current_schema() AS regnamespace) AND c.relkind IN ('r', 'p', 'v') AND NOT c.relispartition
  AND c.relowner = (SELECT o.relowner FROM pg_class o WHERE o.oid = CAST('inbox' AS regclass))
  AND NOT has_table_privilege(r.oid, c.oid, 'SELECT')
ORDER BY c.relname
""")
