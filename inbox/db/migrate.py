"""Migrates a database to the current schema, and checks its revision. Alembic's files are part of the package.

Only a migration loads Alembic: every command checks the revision, and Alembic takes as long to load as all that they need.

Each migration is one transaction. Its number says which programs may run beside it: 0002 only adds to 0001, so that
programs of both versions work with both. The next round thousand, 1000, removes what programs of 0xxx use.
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
from inbox.db.engine import DEFAULT_SCHEMA, reading, schema_of, search_path
from inbox.errors import ConfigError

if TYPE_CHECKING:
    from alembic.config import Config as AlembicConfig


LOCK_TIMEOUT = "1s"
"""Wait for a lock in a migration's transaction: every insert queues behind an ALTER that waits for the inbox."""
TRIES = 20
"""Tries of a migration; with the pauses between them about four minutes."""
_PAUSE = tenacity.wait_exponential_jitter(initial=1, max=15, jitter=1)
"""Pause, longer than a try, so that statements that queued behind it can run."""

_OTHERS_MINUTES = 10
"""The longest wait for another process that migrates."""
_ADVISORY_LOCK = 0x1B0C_0DE5

_GENERATION = 1000
_PACKAGE = Path(__file__).parents[1]
_BELOW, _BESIDE = _PACKAGE / "migrations", _PACKAGE.parent / "migrations"
_SCRIPTS = _BELOW if _BELOW.is_dir() else _BESIDE
"""Folder of the migrations: a wheel has it below `inbox`, a checkout beside it."""

Report = Callable[[str], None]


class MigrationStep(msgspec.Struct, frozen=True):
    """A migration."""

    revision: str
    summary: str
    """First line of its docstring."""

    @property
    def contracts(self) -> bool:
        """Return whether it removes something that older programs use. They must end before it."""
        return int(self.revision) % _GENERATION == 0

    def __str__(self) -> str:
        return f"{self.revision}  {self.summary}"


class MigrationResult(msgspec.Struct, frozen=True):
    """Result of `upgrade`."""

    before: str | None
    """Revision before; None for an empty database."""
    after: str | None
    remaining: tuple[MigrationStep, ...]
    """Migrations that wait until no older program runs, and those after them."""


def upgrade(engine: Engine, report: Report = lambda _: None, *, contract: bool = False) -> MigrationResult:
    """Run every migration that the database lacks, each in a transaction; of two callers one does it.

    It stops before the first migration that contracts, unless `contract` says that no older program runs, or the
    database was empty.

    Raises:
        ConfigError: a lock was not available, or the database belongs to a newer version; the message has a remedy.
    """
    # on SQLite each migration checks again under the write lock (`_apply_under_the_write_lock`)
    with _only_migrator(engine, report) if engine.dialect.name == POSTGRES else nullcontext():
        if engine.dialect.name == POSTGRES:
            _make_schema(engine)
        before = revision_of(engine)
        lacking = pending(before)
        adding = list(itertools.takewhile(lambda step: not step.contracts, lacking))
        ready = lacking if contract or before is None else adding
        ran = [step for step in ready if _run(engine, step, report)]
        after = revision_of(engine)
        return MigrationResult(before if ran else after, after, tuple(lacking[len(ready) :]))


def _make_schema(engine: Engine) -> None:
    """Make the schema of the configuration, if it is missing."""
    with engine.begin() as connection:
        schema = schema_of(connection)
        if connection.scalar(text("SELECT to_regnamespace(:schema)"), {"schema": schema}) is not None:
            return
        if not connection.scalar(text("SELECT has_database_privilege(current_database(), 'CREATE')")):
            role = connection.scalar(text("SELECT current_user"))
            raise ConfigError(
                f"there is no schema {schema}, and the role {role} may not make it. Run as an owner of the database:"
                f' CREATE SCHEMA {schema} AUTHORIZATION "{role}"'
            )
        connection.execute(text(f"CREATE SCHEMA {schema}"))


def plan(engine: Engine) -> list[MigrationStep]:
    """List the migrations that `upgrade` would run or leave for later.

    Raises:
        ConfigError: the database belongs to a newer version.
    """
    return pending(revision_of(engine))


def pending(revision: str | None) -> list[MigrationStep]:
    """List the migrations that a database at this revision lacks; none where a newer version has only added something.

    Raises:
        ConfigError: a newer version has contracted it, so that this one can't work with it.
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
    """Check that the database has a schema that this version works with.

    That is this version's schema, with or without its contracting migrations, and any later one that only added to it.

    Raises:
        ConfigError: it has not; the message names the command to run.
    """
    revision = revision_of(engine)
    lacking = pending(revision)
    if any(not step.contracts for step in lacking):
        has = f"revision {revision}" if revision else "no tables yet"
        raise ConfigError(f"the database has {has}, this version needs {lacking[-1].revision}: run `inbox migrate`")


def is_exactly_head(engine: Engine) -> bool:
    """Return whether the database has exactly this version's schema, without migrations before or after it."""
    return revision_of(engine) == head()


def head() -> str:
    """Return the newest revision that this version knows."""
    return steps()[-1].revision


def steps() -> list[MigrationStep]:
    """List the migrations of this version, in order."""
    files = sorted((_SCRIPTS / "versions").glob("[0-9]*.py"))
    if not files:
        raise ConfigError("the installed package has no migrations: install it again")
    return [MigrationStep(file.name.partition("_")[0], _summary_of(file)) for file in files]


def _summary_of(file: Path) -> str:
    docstring = ast.get_docstring(ast.parse(file.read_text(encoding="utf-8")))
    return (docstring or "").partition("\n")[0]


def _generation(revision: str) -> int:
    return int(revision) // _GENERATION


@contextmanager
def _only_migrator(engine: Engine, report: Report) -> Iterator[None]:
    """Be the only migrator of the database during the block.

    The lock belongs to a transaction that stays open beside those of the migrations: behind a pooler, a session's lock would
    pass to any client. It takes no snapshot meanwhile, so that no index made CONCURRENTLY waits for it: without parameters the
    driver uses the simple protocol, and the extended one would keep its snapshot.

    Raises:
        ConfigError: another migrator runs for longer than the limit.
    """
    for second in range(60 * _OTHERS_MINUTES):
        with engine.connect() as guard:
            guard.execution_options(isolation_level="READ COMMITTED")
            guard.exec_driver_sql("SET LOCAL idle_in_transaction_session_timeout = 0")
            if guard.exec_driver_sql(f"SELECT pg_try_advisory_xact_lock({_ADVISORY_LOCK})").scalar():
                yield
                return
        if second == 0:
            report("waits for another process that migrates")
        time.sleep(1)
    raise ConfigError(f"another process migrates this database, and has not ended within {_OTHERS_MINUTES} minutes")


def _run(engine: Engine, step: MigrationStep, report: Report) -> bool:
    """Run a migration, with a bounded number of tries while it can't get its locks. Returns whether it was still to be done."""
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
            f"migration {step.revision} could not get a lock: a transaction of another program holds it. What it had begun is"
            " undone, or will be made again. End that transaction (pg_stat_activity lists them), then run `inbox migrate` again"
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
    """Run a migration under SQLite's only lock. Returns False when another migrator was faster."""
    with connection.begin():
        if step not in pending(_read_revision(connection)):
            return False
        _apply(connection, step)
        return True


def revision_of(engine: Engine) -> str | None:
    """Return the revision of a database; None: it has no tables yet."""
    with engine.connect() as connection:
        return _read_revision(reading(connection))


def _read_revision(connection: Connection) -> str | None:
    if not inspect(connection).has_table("alembic_version"):
        return None
    revisions: list[str] = list(
        connection.scalars(text("SELECT version_num FROM alembic_version ORDER BY version_num"))
    )
    if len(revisions) > 1:  # rows of two databases, as after a restore of data alone
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
    """Run the SQL file of this database beside a migration, which a DBA can read. `;` and an empty line separate its statements.

    A migration that makes or drops an index CONCURRENTLY runs outside a transaction, so it contains nothing else, and begins
    with `DROP INDEX CONCURRENTLY IF EXISTS`: an earlier try may have left the index invalid.
    """
    from alembic import op  # noqa: PLC0415  # only a migration needs it

    connection = op.get_bind()
    written = Path(migration).with_suffix(f".{connection.dialect.name}.sql").read_text(encoding="utf-8")
    statements = [statement.rstrip().removesuffix(";") for statement in written.split(";\n\n")]
    is_apart = "CONCURRENTLY" in written
    if is_apart:  # it waits for old transactions, and delays nobody
        statements = ["SET lock_timeout = '10min'", *statements, "RESET lock_timeout"]
    with op.get_context().autocommit_block() if is_apart else nullcontext():
        for statement in statements:
            connection.exec_driver_sql(statement)


# --- The roles of a Postgres database: `roles.sql` gives each its rights and timeouts, and nothing more.

Role = Literal["receiver", "relay", "web", "operator", "reader", "reader_without_payloads"]
"""A group role: its name in the database has a prefix. Login roles become its members."""
ROLES: tuple[Role, ...] = get_args(Role)
DEFAULT_PREFIX = "inbox"
_LONGEST_PREFIX = 63 - max(len(f"_{role}") for role in ROLES)
_NAME = re.compile(rf"\binbox_({'|'.join(sorted(ROLES, reverse=True))})\b")
_PATH = "search_path = public, pg_temp"


def roles_script(schema: str = DEFAULT_SCHEMA, prefix: str | None = None) -> str:
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


def lacking_rights(engine: Engine) -> list[str]:
    """List the tables and views that the relay's role can't read, where there is one: after a migration, the new ones."""
    return _query_roles(engine, _LACKING)


def list_unlimited_owners(engine: Engine, prefix: str | None = None) -> list[str]:
    """List the owner of the tables if it may keep a transaction open for good, although roles of `prefix` were made."""
    return _query_roles(engine, _UNLIMITED, prefix)


def _query_roles(engine: Engine, statement: TextClause, prefix: str | None = None) -> list[str]:
    if engine.dialect.name != POSTGRES:
        return []
    with engine.connect() as connection, reading(connection).begin():
        relay = f"{prefix or _prefix_in(schema_of(connection))}_relay"
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
