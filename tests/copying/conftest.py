"""Sources that have rows in every table, made once and copied for each test, and empty targets of both kinds."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from itertools import count
from pathlib import Path

import psycopg
import pytest
from sqlalchemy import Engine, make_url

from inbox.db import engine as engines
from inbox.db import migrate
from tests.copying.installation import install

_numbers = count(1)


class Databases:
    """Makes databases of the kinds `sqlite` and `postgres`, and drops them at the end."""

    def __init__(self, postgres_url: str, folder: Path) -> None:
        self._server = make_url(postgres_url).set(drivername="postgresql")
        self._folder = folder
        self._names: list[str] = []
        self._engines: list[Engine] = []

    def new(self, kind: str, template: str | None = None) -> str:
        """Make a database, without tables or like the template; gives its URL."""
        number = next(_numbers)
        if kind == "sqlite":
            path = self._folder / f"copy{number}.db"
            if template is not None:
                shutil.copy(make_url(template).database or "", path)
            return f"sqlite:///{path}"
        name = f"inbox_relay_copy_{os.getpid()}_{number}"
        like = ""
        if template is not None:
            like = f" TEMPLATE {make_url(template).database}"
            # Of the receiver that has filled it, one that gave up waiting on a busy machine may be left.
            self._administer(
                f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{make_url(template).database}'"
            )
        self._administer(f"CREATE DATABASE {name}{like}")
        self._names.append(name)
        url = self._server.set(database=name, drivername="postgresql+psycopg")
        return url.render_as_string(hide_password=False)

    def open(self, url: str) -> Engine:
        """Open a database until the end of the test."""
        self._engines.append(engines.connect(url, application="tests"))
        return self._engines[-1]

    def close(self) -> None:
        """Close and drop everything."""
        for engine in self._engines:
            engine.dispose()
        for name in self._names:
            self._administer(f"DROP DATABASE {name} WITH (FORCE)")

    def _administer(self, statement: str) -> None:
        with psycopg.connect(self._server.render_as_string(hide_password=False), autocommit=True) as connection:
            connection.execute(statement.encode())


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
