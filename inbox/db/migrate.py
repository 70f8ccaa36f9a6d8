"""Migrate a database to the current schema, and check its revision. Alembic's files are part of the package.

Every command checks the revision, but only migrations load Alembic, which would double a command's start-up time.

Each migration is one transaction. Its number tells which programs may run with it: 0002 only adds to 0001, so that
programs of either version work with either schema. The next round thousand, 1000, removes objects that programs of 0xxx
use.
"""

from __future__ import annotations

import ast
import itertools
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Literal, get_args

import msgspec
import tenacity
from sqlalchemy import Connection, Engine, TextClause, event, inspect, text
from sqlalchemy.exc import DBAPIError

from inbox.config.values import SchemaName
from inbox.db.dialect import POSTGRES, is_lock_wait
from inbox.db.engine import DEFAULT_SCHEMA, read_schema, reading, search_path
from inbox.errors import ConfigError

if TYPE_CHECKING:
    from alembic.config import Config as AlembicConfig


LOCK_TIMEOUT = "1s"
"""Lock timeout of a migration: while its ALTER waits for `inbox`, every insert queues behind it."""
TRIES = 20
"""Maximum tries of a migration, which take about four minutes with the pauses between them."""
_PAUSE = tenacity.wait_exponential_jitter(initial=1, max=15, jitter=1)
"""Pause between tries, so that queued statements can run."""

_OTHERS_MINUTES = 10
"""Minutes to wait for another migrating process."""
_ADVISORY_LOCK = 0x1B0C_0DE5

_GENERATION = 1000
_PACKAGE = Path(__file__).parents[1]
_BELOW, _BESIDE = _PACKAGE / "migrations", _PACKAGE.parent / "migrations"
_SCRIPTS = _BELOW if _BELOW.is_dir() else _BESIDE
"""Folder of the migrations: below `inbox` in a wheel, beside it in a checkout."""

Report = Callable[[str], None]


class MigrationStep(msgspec.Struct, frozen=True):
    """A migration."""

    revision: str
    summary: str
    """First line of the migration's docstring."""

    @property
    def contracts(self) -> bool:
        """Return whether it removes objects that older programs use, which must be stopped first."""
        return int(self.revision) % _GENERATION == 0

    def __str__(self) -> str:
        return f"{self.revision}  {self.summary}"


class MigrationResult(msgspec.Struct, frozen=True):
    """Result of `upgrade`."""

    before: str | None
    """Previous revision; None for an empty database."""
    after: str | None
    remaining: tuple[MigrationStep, ...]
    """Postponed migrations: the first one that needs older programs stopped, and all later ones."""


def upgrade(engine: Engine, report: Report = lambda _: None, *, contract: bool = False) -> MigrationResult:
    """Run all pending migrations, each in a transaction; of concurrent callers only one runs them.

    It stops before the first contracting migration, unless `contract` confirms that no older program runs, or the
    database was empty.

    Raises:
        ConfigError: a lock was not available, or the database has a newer version; the message has a remedy.
    """
    # on SQLite each migration checks again under the write lock (`_apply_under_the_write_lock`)
    with _only_migrator(engine, report) if engine.dialect.name == POSTGRES else nullcontext():
        if engine.dialect.name == POSTGRES:
            _make_schema(engine)
        before = read_revision(engine)
        lacking = pending(before)
        adding = list(itertools.takewhile(lambda step: not step.contracts, lacking))
        ready = lacking if contract or before is None else adding
        ran = [step for step in ready if _run(engine, step, report)]
        after = read_revision(engine)
        return MigrationResult(before if ran else after, after, tuple(lacking[len(ready) :]))


def _make_schema(engine: Engine) -> None:
    """Create the configured schema if it is missing."""
    with engine.begin() as connection:
        schema = read_schema(connection)
        if connection.scalar(text("SELECT to_regnamespace(:schema)"), {"schema": schema}) is not None:
            return
        if not connection.scalar(text("SELECT has_database_privilege(current_database(), 'CREATE')")):
            role = connection.scalar(text("SELECT current_user"))
            raise ConfigError(
                f"there is no schema {schema}, and the role {role} may not create it. Run as an owner of the database:"
                f' CREATE SCHEMA {schema} AUTHORIZATION "{role}"'
            )
        connection.execute(text(f"CREATE SCHEMA {schema}"))


def plan(engine: Engine) -> list[MigrationStep]:
    """List the migrations that `upgrade` would run or postpone.

    Raises:
        ConfigError: the database has a newer version.
    """
    return pending(read_revision(engine))


def pending(revision: str | None) -> list[MigrationStep]:
    """List the pending migrations of a database at this revision; empty if a newer version has only added to it.

    Raises:
        ConfigError: a newer version has contracted it, so that this version can't use it.
    """
    known = steps()
    if revision is None:
        return known
    names = [step.revision for step in known]
    if revision in names:
        return known[names.index(revision) + 1 :]
    if revision.isdecimal() and _generation(revision) == _generation(head()) and revision > head():
        return []
    if not revision.isdecimal():
        raise ConfigError(
            f"the table alembic_version has revision {revision}, so it is another application's: give Inbox Relay a schema"
            " of its own with [database] schema"
        )
    raise ConfigError(
        f"the database has revision {revision}, which this version (up to {head()}) can't work with: start the version"
        " that made it, or a newer one"
    )


def require_current(engine: Engine) -> None:
    """Check that this version works with the database's schema.

    It works with its own schema, with or without its contracting migrations, and with any later one that only added to it.

    Raises:
        ConfigError: it doesn't; the message names the command to run.
    """
    revision = read_revision(engine)
    lacking = pending(revision)
    if any(not step.contracts for step in lacking):
        has = f"revision {revision}" if revision else "no tables yet"
        raise ConfigError(f"the database has {has}, this version needs {lacking[-1].revision}: run `inbox migrate`")


def is_exactly_head(engine: Engine) -> bool:
    """Return whether the database has exactly this version's schema."""
    return read_revision(engine) == head()


def head() -> str:
    """Return the newest revision of this version."""
    return steps()[-1].revision


def steps() -> list[MigrationStep]:
    """List the migrations of this version, in order."""
    files = sorted((_SCRIPTS / "versions").glob("[0-9]*.py"))
    if not files:
        raise ConfigError("the installed package has no migrations: install it again")
    return [MigrationStep(file.name.partition("_")[0], _read_summary(file)) for file in files]


def _read_summary(file: Path) -> str:
    docstring = ast.get_docstring(ast.parse(file.read_text(encoding="utf-8")))
    return (docstring or "").partition("\n")[0]


def _generation(revision: str) -> int:
    return int(revision) // _GENERATION


@contextmanager
def _only_migrator(engine: Engine, report: Report) -> Iterator[None]:
    """Ensure that no other process migrates the database during the block.

    The lock belongs to a separate open transaction, as behind a pooler a session lock could pass to another client.
    That transaction must not hold a snapshot, or CREATE INDEX CONCURRENTLY would wait for it. Its statements therefore
    have no parameters: the driver sends them by the simple protocol, as the extended one would keep a snapshot.

    Raises:
        ConfigError: another process migrates for longer than the limit.
    """
    for second in range(60 * _OTHERS_MINUTES):
        with engine.connect() as guard:
            guard.execution_options(isolation_level="READ COMMITTED")
            guard.exec_driver_sql("SET LOCAL idle_in_transaction_session_timeout = 0")
            if guard.exec_driver_sql(f"SELECT pg_try_advisory_xact_lock({_ADVISORY_LOCK})").scalar():
                yield
                return
        if second == 0:
            report("waiting for another process to finish its migration")
        time.sleep(1)
    raise ConfigError(f"another process migrates this database, and has not ended within {_OTHERS_MINUTES} minutes")


def _run(engine: Engine, step: MigrationStep, report: Report) -> bool:
    """Run a migration, retrying a limited number of times after lock timeouts. Returns whether it was still pending."""
    began = time.monotonic()
    report(str(step))

    def attempt() -> bool:
        with engine.connect() as connection:
            if engine.dialect.name != POSTGRES:
                return _apply_under_the_write_lock(connection, step)
            event.listen(connection, "begin", _wait_shortly)
            _apply(connection, step)
            return True

    retrying = tenacity.Retrying(
        retry=tenacity.retry_if_exception(lambda error: isinstance(error, DBAPIError) and is_lock_wait(error)),
        wait=_PAUSE,
        stop=tenacity.stop_after_attempt(TRIES),
        before_sleep=lambda state: report(f"{step.revision}  try {state.attempt_number} of {TRIES}: waits for a lock"),
        reraise=True,
    )
    try:
        ran = retrying(attempt)
    except DBAPIError as error:
        if not is_lock_wait(error):
            raise
        raise ConfigError(
            f"migration {step.revision} could not get a lock: a transaction of another program holds it. Its changes"
            " are undone, or will be repeated. End that transaction (pg_stat_activity lists them), then run `inbox migrate` again"
        ) from None
    report(f"{step.revision}  {'done' if ran else 'was done by another process'} in {time.monotonic() - began:.1f} s")
    return ran


def _wait_shortly(connection: Connection) -> None:
    connection.exec_driver_sql(f"SET LOCAL lock_timeout = '{LOCK_TIMEOUT}'")


def _apply(connection: Connection, step: MigrationStep) -> None:
    from alembic import command  # noqa: PLC0415  # only a migration needs it

    config = _alembic()
    config.attributes["connection"] = connection
    command.upgrade(config, step.revision)


def _apply_under_the_write_lock(connection: Connection, step: MigrationStep) -> bool:
    """Run a migration under SQLite's write lock. Returns False if another process was faster."""
    with connection.begin():
        if step not in pending(_read_revision(connection)):
            return False
        _apply(connection, step)
        return True


def read_revision(engine: Engine) -> str | None:
    """Return a database's revision; None if it has no tables yet."""
    with engine.connect() as connection:
        return _read_revision(reading(connection))


def _read_revision(connection: Connection) -> str | None:
    if not inspect(connection).has_table("alembic_version"):
        return None
    revisions: list[str] = list(
        connection.scalars(text("SELECT version_num FROM alembic_version ORDER BY version_num"))
    )
    if len(revisions) > 1:  # rows of two databases, as after a data-only restore
        raise ConfigError(
            f"the table alembic_version has {len(revisions)} rows ({', '.join(revisions)}): delete the wrong ones"
        )
    return revisions[0] if revisions else None


def _alembic() -> AlembicConfig:
    from alembic.config import Config as AlembicConfig  # noqa: PLC0415  # only a migration needs it

    config = AlembicConfig()
    config.set_main_option("script_location", str(_SCRIPTS))
    return config


def run_script(migration: str) -> None:
    """Run a migration's SQL file for this database. Statements are separated by `;` and an empty line.

    A migration that creates or drops an index CONCURRENTLY runs outside a transaction. It must contain nothing else,
    and begin with `DROP INDEX CONCURRENTLY IF EXISTS`, as an earlier try may have left the index invalid.
    """
    from alembic import op  # noqa: PLC0415  # only a migration needs it

    connection = op.get_bind()
    written = Path(migration).with_suffix(f".{connection.dialect.name}.sql").read_text(encoding="utf-8")
    statements = [statement.rstrip().removesuffix(";") for statement in written.split(";\n\n")]
    is_apart = "CONCURRENTLY" in written
    if is_apart:  # it waits for old transactions without blocking others
        statements = ["SET lock_timeout = '10min'", *statements, "RESET lock_timeout"]
    with op.get_context().autocommit_block() if is_apart else nullcontext():
        for statement in statements:
            connection.exec_driver_sql(statement)


# --- Roles of a Postgres database: `roles.sql` grants each the required rights and timeouts.

Role = Literal["receiver", "relay", "web", "operator", "reader", "reader_without_payloads"]
"""A group role, whose name in the database has a prefix. Login roles become its members."""
ROLES: tuple[Role, ...] = get_args(Role)
DEFAULT_PREFIX = "inbox"
_LONGEST_PREFIX = 63 - max(len(f"_{role}") for role in ROLES)
_NAME = re.compile(rf"\binbox_({'|'.join(sorted(ROLES, reverse=True))})\b")
_PATH = "search_path = public, pg_temp"


def roles_script(schema: str = DEFAULT_SCHEMA, prefix: str | None = None) -> str:
    """Return the statements for psql. The names' prefix defaults to the schema's name, and in `public` to `inbox`.

    Raises:
        ConfigError: the prefix gives names that need quotes in Postgres.
    """
    before = prefix or _prefix_in(schema)
    try:
        for role in ROLES:
            SchemaName.parse(f"{before}_{role}")  # the same rule
    except ValueError:
        raise ConfigError(
            f"the prefix {before!r} doesn't make valid role names: use small letters, digits and _, at most {_LONGEST_PREFIX}, with"
            " --prefix"
        ) from None
    written = files("inbox.db").joinpath("roles.sql").read_text(encoding="utf-8")
    return _NAME.sub(rf"{before}_\1", written).replace(_PATH, f"search_path = {search_path(schema)}", 1)


def lacking_rights(engine: Engine) -> list[str]:
    """List the tables and views that the relay's role can't read, such as new ones after a migration."""
    return _query_roles(engine, _LACKING)


def list_unlimited_owners(engine: Engine, prefix: str | None = None) -> list[str]:
    """List the tables' owner if roles of `prefix` exist and the owner has no timeout for idle transactions."""
    return _query_roles(engine, _UNLIMITED, prefix)


def _query_roles(engine: Engine, statement: TextClause, prefix: str | None = None) -> list[str]:
    if engine.dialect.name != POSTGRES:
        return []
    with engine.connect() as connection, reading(connection).begin():
        relay = f"{prefix or _prefix_in(read_schema(connection))}_relay"
        return [str(row.name) for row in connection.execute(statement, {"relay": relay})]


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
_UNLIMITED = text("""
SELECT o.rolname AS name
FROM pg_class c JOIN pg_roles o ON o.oid = c.relowner JOIN pg_roles r ON r.rolname = :relay
WHERE c.oid = CAST('inbox' AS regclass) AND has_table_privilege(r.oid, c.oid, 'SELECT')
  AND NOT EXISTS (
      SELECT FROM pg_db_role_setting s JOIN pg_database d ON d.datname = current_database(), unnest(s.setconfig) AS one
      WHERE s.setrole IN (0, o.oid) AND s.setdatabase IN (0, d.oid) AND one ~ '^idle_in_transaction_session_timeout=.*[1-9]')
""")
