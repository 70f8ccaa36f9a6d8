"""Sources that have rows in every table, made once and copied for each test, and empty targets of both kinds."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import ExitStack
from itertools import count
from pathlib import Path

import pytest
from sqlalchemy import Engine, make_url

from inbox.db import engine as engines
from inbox.db import migrate
from tests.conftest import _administer
from tests.copying.installation import install

_numbers = count(1)


class Databases:
    """Makes databases of the kinds `sqlite` and `postgres`, and drops them at the end."""

    def __init__(self, postgres_url: str, folder: Path) -> None:
        self._server = make_url(postgres_url).set(drivername="postgresql+psycopg")
        self._folder = folder
        self._ends = ExitStack()

    def new(self, kind: str, template: str | None = None) -> str:
        """Make a database, without tables or like the template; gives its URL."""
        name = f"inbox_relay_copy_{os.getpid()}_{next(_numbers)}"
        there = make_url(template).database if template is not None else None
        if kind == "sqlite":
            path = self._folder / f"{name}.db"
            if there is not None:
                shutil.copy(there, path)
            return f"sqlite:///{path}"
        server = self._server.render_as_string(hide_password=False)
        # Of the receiver that has filled the template, one that gave up waiting on a busy machine may be left.
        _administer(server, f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{there}'")
        _administer(server, f"CREATE DATABASE {name}" + (f" TEMPLATE {there}" if there else ""))
        self._ends.callback(_administer, server, f"DROP DATABASE {name} WITH (FORCE)")
        return self._server.set(database=name).render_as_string(hide_password=False)

    def open(self, url: str) -> Engine:
        """Open a database until the end of the test."""
        engine = engines.connect(url, application="tests")
        self._ends.callback(engine.dispose)
        return engine

    def close(self) -> None:
        """Close and drop everything."""
        self._ends.close()


@pytest.fixture(scope="session")
def templates(
    postgres_url: str, postgres_template: str, sqlite_template: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, str]]:
    """URLs: of a source of each kind, made when a test first asks for it, and of an empty, migrated database of each."""

    class Made(dict[str, str]):
        def __missing__(self, kind: str) -> str:
            url = made.new(kind)
            engine = engines.connect(url, application="tests")
            migrate.upgrade(engine)
            install(engine, url)
            engine.dispose()
            self[kind] = url
            return url

    made = Databases(postgres_url, tmp_path_factory.mktemp("templates"))
    empty = {"empty sqlite": f"sqlite:///{sqlite_template}", "empty postgres": f"postgresql:///{postgres_template}"}
    yield Made(empty)
    made.close()


@pytest.fixture
def databases(postgres_url: str, tmp_path: Path) -> Iterator[Databases]:
    made = Databases(postgres_url, tmp_path)
    yield made
    made.close()


def url_of(engine: Engine) -> str:
    return engine.url.render_as_string(hide_password=False)
