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
from sqlalchemy import Engine, inspect, text

from inbox.db import engine as engines
from inbox.db import migrate
from inbox.db.migrate import MigrationResult
from inbox.errors import ConfigError
from tests.migrations.ddl import schema_of

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
