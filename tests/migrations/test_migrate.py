"""`inbox migrate`: once, twice, two at once, from a wheel, and the message when it was forgotten."""

from __future__ import annotations

import shutil
import subprocess
import sys
import threading
import zipfile
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import pytest
from alembic import command
from sqlalchemy import Engine, inspect, text

from inbox.db import engine as engines
from inbox.db import migrate
from inbox.db.migrate import MigrationResult
from inbox.db.schema import metadata
from inbox.db.views import VIEWS
from inbox.errors import ConfigError
from tests.helpers.databases import ON_POSTGRES, ON_SQLITE
from tests.helpers.tables import rows
from tests.migrations.ddl import differences, schema_of

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


# --- An installed package can migrate: the wheel has the migrations and their statements


ROOT = Path(__file__).parents[2]
PACKED = ("inbox", "relay", "migrations", "pyproject.toml", "README.md", "LICENSE")


def test_the_wheel_holds_every_file_of_both_sides_and_the_migrations_below_inbox(tmp_path: Path) -> None:
    """Build the wheel from a copy, in a second or two: a `build` folder in the checkout could hide a missing file."""
    copy, out = tmp_path / "copy", tmp_path / "out"
    copy.mkdir()
    for path in (ROOT / name for name in PACKED):
        copied = (
            partial(shutil.copytree, ignore=shutil.ignore_patterns("__pycache__")) if path.is_dir() else shutil.copy
        )
        copied(path, copy / path.name)
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--no-index", "--wheel-dir"]
    built = subprocess.run([*command, str(out), str(copy)], check=False, capture_output=True, text=True, timeout=120)
    assert built.returncode == 0, built.stderr
    (wheel,) = out.glob("*.whl")
    packed = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    here = {
        ("inbox/" if folder == "migrations" else "") + str(path.relative_to(ROOT))
        for folder in ("inbox", "relay", "migrations")
        for path in (ROOT / folder).rglob("*")
        if path.is_file() and path.suffix in {".py", ".sql", ".mako", ".typed", ".html", ".css", ".js", ".svg", ".toml"}
    }
    assert packed == here
    assert any(name.endswith(".sql") for name in here)


# --- Migrations from an empty database build what `inbox.db` declares, by alembic and by text, with every comment


# --- Migrations from an empty database build `inbox.db.schema` and `inbox.db.views`, compared by alembic and by text


def test_alembic_check_passes(engine: Engine) -> None:
    config = migrate._alembic()
    with engine.begin() as connection:
        config.attributes["connection"] = connection
        command.check(config)


def test_the_migrations_build_the_text_and_the_rows_of_the_metadata(engine: Engine, empty: Engine) -> None:
    metadata.create_all(empty)
    assert differences(schema_of(engine), schema_of(empty)) == []
    for made in (engine, empty):
        for table in ("order_lock", "write_probe"):
            assert rows(made, f"SELECT id FROM {table}") == [{"id": 1}]


# --- Every table, column and view has a comment that a DBA finds, on SQLite in the text of the table


def test_the_metadata_has_a_comment_for_every_table_and_column_and_none_holds_what_would_end_it_on_sqlite() -> None:
    for table in metadata.sorted_tables:
        for item in (table, *table.c):
            assert item.comment, item
            assert "\n" not in item.comment, item


@ON_POSTGRES
def test_on_postgres_every_table_column_and_view_carries_its_comment(engine: Engine) -> None:
    with engine.connect() as connection:
        without = connection.scalars(
            text("""
SELECT relname FROM pg_class
WHERE relnamespace = 'public'::regnamespace AND relkind IN ('r', 'v')
  AND NOT relispartition AND obj_description(oid, 'pg_class') IS NULL
UNION ALL
SELECT c.relname || '.' || a.attname FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid
WHERE c.relnamespace = 'public'::regnamespace AND c.relkind IN ('r', 'v')
  AND NOT c.relispartition AND a.attnum > 0 AND NOT a.attisdropped
  AND col_description(c.oid, a.attnum) IS NULL
""")
        ).all()
    assert [name for name in without if not name.startswith("alembic_version")] == []


@ON_SQLITE
def test_on_sqlite_the_text_of_a_table_explains_it_and_each_column(engine: Engine) -> None:
    for table in metadata.sorted_tables:
        (found,) = rows(engine, "SELECT sql FROM sqlite_master WHERE name = :name", name=table.name)
        lines = [line.strip() for line in found["sql"].splitlines()]
        assert lines[0] == f"CREATE TABLE {table.name} ( -- {table.comment}"
        for column in table.c:
            (at,) = (n for n, line in enumerate(lines) if line.startswith(f"{column.name} "))
            assert lines[at - 1] == f"-- {column.comment}", column


def test_every_column_of_every_view_is_explained_in_the_order_of_the_view(engine: Engine) -> None:
    made = set(inspect(engine).get_view_names())
    assert made == {view.name for view in VIEWS}
    for view in VIEWS:
        assert [column["name"] for column in inspect(engine).get_columns(view.name)] == list(view.columns)
        assert all(view.columns.values())
