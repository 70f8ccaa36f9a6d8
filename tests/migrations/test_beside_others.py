"""Migrations beside running programs: short lock waits, and versions that may coexist."""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import psycopg
import pytest
import tenacity
from sqlalchemy import Engine, event, make_url
from typer.testing import CliRunner

from inbox.db import migrate
from inbox.db.migrate import MigrationResult
from inbox.errors import ConfigError
from relay.cli.inbox import app
from tests.helpers.databases import ON_POSTGRES, connect_postgres, is_postgres
from tests.helpers.machine import ADDITIVE, CONTRACTING, INDEX, MadeUp, write_migrations
from tests.helpers.relaying import fill
from tests.helpers.tables import rows
from tests.helpers.waiting import until
from tests.migrations.ddl import differences, schema_of

Later = Callable[..., None]
READS = "SELECT count(*) FROM inbox WHERE entity_id = 'a-customer' AND seq > 7"


@pytest.fixture
def later(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Later:
    """Turn this process into one of a later version, with further migrations."""

    def make(*made_up: MadeUp) -> None:
        folder = tmp_path / "-".join(["later", *(each.revision for each in made_up)])
        monkeypatch.setattr(migrate, "_SCRIPTS", write_migrations(folder, made_up, after=FIRST[-1].revision))

    monkeypatch.setattr(migrate, "_PAUSE", tenacity.wait_none())
    return make


FIRST = migrate.steps()
"""Migrations of this version."""


@pytest.fixture
def older(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Turn this process back into one of the current version."""
    return partial(monkeypatch.setattr, migrate, "_SCRIPTS", migrate._SCRIPTS)


def has(told: list[str], part: str) -> bool:
    return any(part in line for line in told)


def revision(engine: Engine) -> object:
    return rows(engine, "SELECT version_num FROM alembic_version")[0]["version_num"]


@contextlib.contextmanager
def reader(url: str, isolation: psycopg.IsolationLevel | None = None) -> Iterator[psycopg.Connection]:
    """Open a DBA's transaction that stays open after reading the inbox."""
    with contextlib.closing(connect_postgres(url)) as dba:
        dba.execute("SET application_name = 'the-dbas-shell'")
        dba.isolation_level = isolation
        with dba.transaction(), contextlib.suppress(psycopg.OperationalError):
            dba.execute(READS)
            yield dba


@contextlib.contextmanager
def writer(url: str) -> Iterator[None]:
    """Open a transaction that holds SQLite's only lock."""
    with contextlib.closing(sqlite3.connect(make_url(url).database or "", isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        yield
        other.execute("ROLLBACK")


@contextlib.contextmanager
def in_the_way(url: str) -> Iterator[None]:
    """Hold what an ALTER of the inbox waits for."""
    with reader(url) if is_postgres(url) else writer(url):
        yield


def impatient(engine: Engine) -> None:
    """Shorten SQLite's wait for its lock from 5 s."""
    if engine.dialect.name == "sqlite":
        event.listen(engine, "checkout", lambda connection, *_: connection.execute("PRAGMA busy_timeout = 100"))


def test_a_lock_that_somebody_holds_is_tried_for_again(engine: Engine, database_url: str, later: Later) -> None:
    later(ADDITIVE)
    impatient(engine)
    told: list[str] = []
    background = ThreadPoolExecutor(1)
    with in_the_way(database_url):
        migrating = background.submit(migrate.upgrade, engine, told.append)
        until(lambda: has(told, f"try 2 of {migrate.TRIES}: waits for a lock") or migrating.done(), "it tries again")
        assert not migrating.done()
    background.shutdown()
    assert migrating.result() == MigrationResult("0001", "0002", ())
    assert told[0] == "0002  A region for each event."
    assert told[-1].startswith("0002  done in ")


def test_a_lock_that_is_never_there_ends_it_and_nothing_is_changed(
    engine: Engine, database_url: str, later: Later, monkeypatch: pytest.MonkeyPatch
) -> None:
    later(ADDITIVE)
    impatient(engine)
    monkeypatch.setattr(migrate, "TRIES", 1)
    before = schema_of(engine)
    with in_the_way(database_url), pytest.raises(ConfigError, match="0002 could not get a lock") as ended:
        migrate.upgrade(engine)
    assert differences(before, schema_of(engine)) == []
    assert revision(engine) == "0001"
    assert "run `inbox migrate` again" in str(ended.value)


@ON_POSTGRES
def test_finished_steps_stay(engine: Engine, database_url: str, later: Later, monkeypatch: pytest.MonkeyPatch) -> None:
    first = MadeUp("0002", "Another table.", postgres="ALTER TABLE relay_node ADD COLUMN python text")
    later(first, MadeUp("0003", ADDITIVE.says, postgres=ADDITIVE.postgres))
    monkeypatch.setattr(migrate, "TRIES", 1)
    with reader(database_url), pytest.raises(ConfigError, match="0003 could not get a lock"):
        migrate.upgrade(engine)
    assert revision(engine) == "0002"

    told: list[str] = []
    assert migrate.upgrade(engine, told.append) == MigrationResult("0002", "0003", ())
    assert not has(told, "0002")


@ON_POSTGRES
def test_an_index_that_was_broken_off_is_made_again(engine: Engine, database_url: str, later: Later) -> None:
    fill(database_url, [("u1", "2026-01-01T00:00:00Z"), ("u2", "2026-01-01T00:00:00Z")])
    later(ADDITIVE)
    migrate.upgrade(engine)
    with contextlib.closing(connect_postgres(database_url)) as dba, pytest.raises(psycopg.IntegrityError):
        dba.execute("CREATE UNIQUE INDEX CONCURRENTLY ix_inbox_region ON inbox (source)")
    state = "SELECT indexrelid, indisvalid FROM pg_index WHERE indexrelid = to_regclass('ix_inbox_region')"
    (broken,) = rows(engine, state)
    assert not broken["indisvalid"]

    later(ADDITIVE, INDEX)
    assert migrate.upgrade(engine) == MigrationResult("0002", "0003", ())
    (whole,) = rows(engine, state)
    assert whole["indisvalid"]
    assert "(region, seq)" in rows(engine, "SELECT pg_get_indexdef(to_regclass('ix_inbox_region')) AS made")[0]["made"]


def test_an_older_version_works_beside_additions(engine: Engine, later: Later, older: Callable[[], None]) -> None:
    later(ADDITIVE, INDEX)
    migrate.upgrade(engine)
    older()
    migrate.require_current(engine)
    told: list[str] = []
    assert migrate.upgrade(engine, told.append) == MigrationResult("0003", "0003", ())
    assert told == []


def test_a_version_that_takes_something_away_works_before_and_after_and_older_ones_only_before(
    engine: Engine, later: Later, older: Callable[[], None]
) -> None:
    later(ADDITIVE, CONTRACTING)
    with pytest.raises(ConfigError, match="run `inbox migrate`"):
        migrate.require_current(engine)

    assert [str(step) for step in migrate.upgrade(engine).remaining] == ["1000  Nobody reads relay_node.host any more."]
    assert revision(engine) == "0002"
    migrate.require_current(engine)
    older()
    migrate.require_current(engine)

    later(ADDITIVE, CONTRACTING, MadeUp("1001", "And more.", postgres="SELECT 1"))
    with pytest.raises(ConfigError, match="needs 1001"):
        migrate.require_current(engine)
    assert [step.revision for step in migrate.upgrade(engine).remaining] == ["1000", "1001"]

    assert migrate.upgrade(engine, contract=True) == MigrationResult("0002", "1001", ())
    migrate.require_current(engine)
    older()
    for refused in (migrate.require_current, migrate.upgrade, migrate.plan):
        with pytest.raises(ConfigError, match=r"revision 1001, which this version \(up to 0001\) can't work with"):
            refused(engine)


def test_the_command_migrates_to_what_older_programs_bear_and_contracts_when_it_is_told_to(
    database_url: str, engine: Engine, later: Later, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    config = tmp_path / "inbox.toml"
    config.touch()
    monkeypatch.setenv("INBOX_CONFIG", str(config))
    monkeypatch.setenv("INBOX_DATABASE_URL", database_url)
    later(ADDITIVE, INDEX, CONTRACTING)
    for option, after in (("--dry-run", "0001"), (None, "0003"), (None, "0003"), ("--contract", "1000")):
        done = CliRunner().invoke(app, ["migrate", *([option] if option else [])], catch_exceptions=False)
        assert done.exit_code == 0, done.output
        assert revision(engine) == after
        assert ("--contract" in done.output) == (after != "1000")
