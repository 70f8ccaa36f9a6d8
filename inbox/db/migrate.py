"""Brings a database to the present schema, and tells whether it is there. Alembic's files travel inside the package.

A migration is a transaction of its own. Its number says who may run beside it: 0002 only adds to 0001, so that programs of
both versions work with both. The next round thousand, 1000, takes away what programs that know only 0xxx use.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import msgspec
import tenacity
from alembic import command
from alembic.config import Config as AlembicConfig
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, Engine
from sqlalchemy.exc import DBAPIError

from inbox.db.dialect import POSTGRES, is_lock_wait
from inbox.db.engine import reading
from inbox.db.lock_waits import HARMLESS_SECONDS, Watch, alone, named, watched
from inbox.errors import ConfigError

TRIES = 20
"""With the pauses between them about four minutes."""
_PAUSE = tenacity.wait_exponential_jitter(initial=1, max=15, jitter=1)
"""Longer than a try, so that what has queued behind it gets through."""

_GENERATION = 1000
_PACKAGE = Path(__file__).parents[1]
_BELOW, _BESIDE = _PACKAGE / "migrations", _PACKAGE.parent / "migrations"
_SCRIPTS = str(_BELOW if _BELOW.is_dir() else _BESIDE)
"""A wheel has them below `inbox`, a checkout beside it."""

Tell = Callable[[str], None]


class Step(msgspec.Struct, frozen=True):
    """One migration."""

    revision: str
    says: str
    """The first line of its docstring."""

    @property
    def contracts(self) -> bool:
        """Whether it takes away what older programs use: then they must have ended before."""
        return int(self.revision) % _GENERATION == 0

    def __str__(self) -> str:
        return f"{self.revision}  {self.says}"


class Migrated(msgspec.Struct, frozen=True):
    """What `upgrade` has come to."""

    before: str | None
    """None: the database was empty."""
    after: str | None
    left: tuple[Step, ...]
    """Steps that wait until no older program runs, and those behind them."""


def upgrade(engine: Engine, tell: Tell = lambda _: None, *, contract: bool = False) -> Migrated:
    """Run every migration that the database does not have yet, one transaction each; of two callers one does it.

    Stops before the first migration that older programs can't work with, unless `contract` says that none runs, or the
    database was empty.

    Raises:
        ConfigError: a lock could not be had, or the database belongs to a newer version; the text says what to do.
    """
    with alone(engine, tell) if engine.dialect.name == POSTGRES else _anyhow():
        before = _revision_of(engine)
        lacking = pending(before)
        ready = lacking if contract or before is None else lacking[: _additive(lacking)]
        ran = [step for step in ready if _run(engine, step, tell)]
        after = _revision_of(engine)
        return Migrated(before if ran else after, after, tuple(lacking[len(ready) :]))


def plan(engine: Engine) -> list[Step]:
    """What `upgrade` would run on this database, with every step that is left for later.

    Raises:
        ConfigError: the database belongs to a newer version.
    """
    return pending(_revision_of(engine))


def pending(revision: str | None) -> list[Step]:
    """The steps that a database at this revision lacks; none where a newer version has only added something.

    Raises:
        ConfigError: a newer version has made it what this one can't work with.
    """
    known = steps()
    if revision is None:
        return known
    names = [step.revision for step in known]
    if revision in names:
        return known[names.index(revision) + 1 :]
    if revision.isdecimal() and _generation(revision) == _generation(head()) and revision > head():
        return []
    raise ConfigError(
        f"the database has revision {revision}, which this version (up to {head()}) can't work with: start the version"
        " that made it, or a newer one"
    )


def require_current(engine: Engine) -> None:
    """Make sure that the database has a schema that this version works with.

    That is this version's own, with or without what only takes something away, and any later one that has only added to it.

    Raises:
        ConfigError: it has not; the text says what to run.
    """
    revision = _revision_of(engine)
    lacking = pending(revision)
    if any(not step.contracts for step in lacking):
        has = f"revision {revision}" if revision else "no tables yet"
        raise ConfigError(f"the database has {has}, this version needs {lacking[-1].revision}: run `inbox migrate`")


def head() -> str:
    """The newest revision that this version knows."""
    return steps()[-1].revision


def steps() -> list[Step]:
    """Every migration of this version, in order."""
    found = ScriptDirectory.from_config(_alembic()).walk_revisions()
    known = [Step(script.revision, script.doc.splitlines()[0]) for script in found]
    if not known:
        raise ConfigError("the installed package has no migrations: install it again")
    return known[::-1]


def _additive(lacking: Sequence[Step]) -> int:
    """How many of them come before the first that contracts."""
    return next((n for n, step in enumerate(lacking) if step.contracts), len(lacking))


def _generation(revision: str) -> int:
    return int(revision) // _GENERATION


def _run(engine: Engine, step: Step, tell: Tell) -> bool:
    """Try until its locks can be had, a bounded number of times; each try begins anew. Returns whether it was still to be done."""
    began = time.monotonic()
    tell(str(step))
    watch: Watch | None = None

    def attempt() -> bool:
        nonlocal watch
        with engine.connect() as connection:
            if engine.dialect.name != POSTGRES:
                return _apply_under_the_write_lock(connection, step)
            with watched(engine, connection, lambda told: tell(f"{step.revision}  {told}")) as watch:
                _apply(connection, step)
            return True

    def holders() -> str:
        return f": {named(watch.holders)}" if watch else ""

    def waits(state: tenacity.RetryCallState) -> None:
        tell(f"{step.revision}  try {state.attempt_number} of {TRIES}: waits for a lock{holders()}")

    retrying = tenacity.Retrying(
        retry=tenacity.retry_if_exception(lambda error: isinstance(error, DBAPIError) and is_lock_wait(error)),
        wait=_PAUSE,
        stop=tenacity.stop_after_attempt(TRIES) | tenacity.stop_after_delay(HARMLESS_SECONDS),
        before_sleep=waits,
        reraise=True,
    )
    try:
        ran = retrying(attempt)
    except DBAPIError as error:
        if not is_lock_wait(error):
            raise
        pids = [holder.pid for holder in watch.holders if holder.pid] if watch else []
        end = f", or end it with SELECT pg_terminate_backend({pids[0]})" if pids else ""
        raise ConfigError(
            f"migration {step.revision} could not get a lock{holders()}. What it had begun is undone, or will be made again."
            f" Wait until that transaction has ended{end}; then run `inbox migrate` again"
        ) from None
    tell(f"{step.revision}  {'done' if ran else 'was done by another process'} in {time.monotonic() - began:.1f} s")
    return ran


def _apply(connection: Connection, step: Step) -> None:
    config = _alembic()
    config.attributes["connection"] = connection
    command.upgrade(config, step.revision)


def _apply_under_the_write_lock(connection: Connection, step: Step) -> bool:
    """SQLite has one lock, and nobody can tell who has it; under it, another migrator may be seen to have been faster."""
    with connection.begin():
        if step not in pending(MigrationContext.configure(connection).get_current_revision()):
            return False
        _apply(connection, step)
        return True


@contextmanager
def _anyhow() -> Iterator[None]:
    """On SQLite each migration looks again under the write lock: `_apply_under_the_write_lock`."""
    yield


def _revision_of(engine: Engine) -> str | None:
    with engine.connect() as connection:
        return MigrationContext.configure(reading(connection)).get_current_revision()


def _alembic() -> AlembicConfig:
    config = AlembicConfig()
    config.set_main_option("script_location", _SCRIPTS)
    return config
