"""Login roles of every group of a migrated Postgres database, as `inbox roles` and a DBA make them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping

import psycopg
import tenacity
from sqlalchemy import make_url
from tests.helpers.databases import connect_postgres

from inbox.db.migrate import ROLES, Role, roles_script


class Granted:
    """A database with its roles; `prefix` begins their names."""

    def __init__(self, url: str, prefix: str, schema: str = "public") -> None:
        self.prefix, self.schema = prefix, schema
        self.admin_url = make_url(url).update_query_dict({"schema": schema}).render_as_string(hide_password=False)
        self.server_url = url

    def name(self, role: Role) -> str:
        """The group role."""
        return f"{self.prefix}_{role}"

    def login(self, role: Role) -> str:
        """The login role of its one member."""
        return f"{self.prefix}_{role}_login"

    def url(self, role: Role) -> str:
        """The URL of this login role."""
        url = make_url(self.admin_url).set(username=self.login(role))
        return url.render_as_string(hide_password=False)

    def grant(self) -> None:
        """Run the statements, as the superuser."""
        with contextlib.closing(connect_postgres(self.server_url)) as admin:
            admin.execute(roles_script(self.schema, self.prefix).encode())

    @contextlib.contextmanager
    def connected(self, role: Role) -> Iterator[psycopg.Connection]:
        """As psql connects: with the settings of the login role, and in autocommit."""
        url = make_url(self.server_url).set(username=self.login(role)).render_as_string(hide_password=False)
        with contextlib.closing(connect_postgres(url)) as connection:
            yield connection

    def allows(self, role: Role, statement: str) -> bool:
        """Return whether the role may run the statement, which is rolled back."""
        with self.connected(role) as connection:
            connection.execute(b"BEGIN")
            try:
                connection.execute(statement.encode())
            except (psycopg.errors.InsufficientPrivilege, psycopg.errors.ReadOnlySqlTransaction):
                return False
            finally:
                connection.execute(b"ROLLBACK")
        return True

    def settings(self, role: Role) -> Mapping[str, str]:
        """The settings that the login role has from its role, as psql sees them."""
        with self.connected(role) as connection:
            rows = connection.execute(
                "SELECT name, current_setting(name) FROM pg_settings WHERE source = 'database user'"
            ).fetchall()
        return dict(rows)


@contextlib.contextmanager
def granted(url: str, prefix: str, schema: str = "public") -> Iterator[Granted]:
    """Roles of a migrated database with a login for each, as long as the block runs."""
    made = Granted(url, prefix, schema)
    with contextlib.closing(connect_postgres(url)) as admin:
        try:
            made.grant()
            for role in ROLES:
                admin.execute(f"CREATE ROLE {made.login(role)} LOGIN IN ROLE {made.name(role)}".encode())
            made.grant()  # a member inherits no settings, so they are set once it is there
            yield made
        finally:
            names = [*map(made.login, ROLES), *map(made.name, ROLES)]
            for (name,) in admin.execute("SELECT rolname FROM pg_roles WHERE rolname = ANY(%s)", (names,)).fetchall():
                _where_others_lock_too(admin, f"REASSIGN OWNED BY {name} TO CURRENT_USER")
                admin.execute(f"DROP OWNED BY {name} CASCADE".encode())
            for name in reversed(names):
                admin.execute(f"DROP ROLE IF EXISTS {name}".encode())


@tenacity.retry(
    retry=tenacity.retry_if_exception_type(psycopg.errors.DeadlockDetected), stop=tenacity.stop_after_attempt(9)
)
def _where_others_lock_too(admin: psycopg.Connection, statement: str) -> None:
    """It locks one table after the other, in no order that relays and receivers know."""
    admin.execute(statement.encode())
