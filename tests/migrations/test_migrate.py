"""`inbox migrate`: once, twice, two at once, from a wheel, and the message when it was forgotten."""

from __future__ import annotations

import multiprocessing
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from sqlalchemy import Engine, inspect, text

from inbox.db import engine as engines
from inbox.db import migrate
from inbox.errors import ConfigError
from tests.migrations.ddl import schema
from tests.migrations.migrating import Result, migrate_together

# --- `inbox migrate`: once, twice, two at once, and the message when it was forgotten


PROCESSES = 2


def test_an_empty_database_is_brought_to_the_newest_revision(empty: Engine) -> None:
    assert migrate.upgrade(empty) == migrate.MigrationResult(None, migrate.head(), ())
    migrate.require_current(empty)


def test_migrating_again_changes_nothing(engine: Engine) -> None:
    with engine.connect() as connection:
        before = schema(connection)

    assert migrate.upgrade(engine) == migrate.MigrationResult(migrate.head(), migrate.head(), ())
    with engine.connect() as connection:
        assert schema(connection) == before


def test_processes_that_migrate_at_once_all_succeed_and_one_does_it(empty_url: str) -> None:
    spawn = multiprocessing.get_context("spawn")
    barrier, results = spawn.Barrier(PROCESSES), spawn.SimpleQueue()
    processes = [
        spawn.Process(target=migrate_together, args=(empty_url, barrier, results), daemon=True)
        for _ in range(PROCESSES)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    came_to: list[Result] = [results.get() for _ in processes]

    head = migrate.head()
    assert sorted(came_to, key=str) == [*[(head, head)] * (PROCESSES - 1), (None, head)]


def test_a_migration_that_fails_leaves_nothing_behind(empty: Engine) -> None:
    with empty.begin() as connection:
        connection.execute(text("CREATE TABLE write_probe (id integer)"))  # in the way of the last table
    with pytest.raises(Exception, match="write_probe"):
        migrate.upgrade(empty)

    assert inspect(empty).get_table_names() == ["write_probe"]
    with empty.begin() as connection:
        connection.execute(text("DROP TABLE write_probe"))
    assert migrate.upgrade(empty) == migrate.MigrationResult(None, migrate.head(), ())


def test_an_empty_database_is_refused_with_the_command_that_helps(empty: Engine) -> None:
    with pytest.raises(ConfigError, match=re.escape("no tables yet")) as refused:
        migrate.require_current(empty)
    assert "`inbox migrate`" in str(refused.value)


def test_a_database_of_another_version_is_refused_with_both_revisions_and_the_command(engine: Engine) -> None:
    with engine.begin() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    with pytest.raises(ConfigError, match="9999") as refused:
        migrate.require_current(engine)
    assert migrate.head() in str(refused.value)
    assert "start the version that made it" in str(refused.value)


def test_a_database_with_two_revisions_is_refused_by_name(engine: Engine) -> None:
    with engine.begin() as connection:
        connection.execute(text("INSERT INTO alembic_version (version_num) VALUES ('0999')"))
    for ask in (migrate.require_current, migrate.upgrade):
        with pytest.raises(ConfigError, match=f"2 rows .{migrate.head()}, 0999.: delete the wrong ones"):
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
    for name in PACKED:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / name, copy)
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--no-index"]
    built = subprocess.run(
        [*command, "--wheel-dir", str(out), str(copy)], check=False, capture_output=True, text=True, timeout=120
    )
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
