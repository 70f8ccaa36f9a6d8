"""Sources that have rows in every table, made once and copied for each test, and empty targets of both kinds."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from itertools import count
from pathlib import Path

import pytest
from sqlalchemy import Engine, make_url

from tests.copying.installation import install
from tests.helpers.databases import PostgresServer, migrate_database, open_engine

_numbers = count(1)


class Databases:
    """Makes databases of the kinds `sqlite` and `postgres`, which `stack` drops at its end."""

    def __init__(self, server: PostgresServer, folder: Path, stack: contextlib.ExitStack) -> None:
        self._server, self._folder, self._stack = server, folder, stack

    def new(self, kind: str, template: str | None = None) -> str:
        """Make a database, without tables or like the template; gives its URL."""
        if kind == "sqlite":
            path = self._folder / f"copy{next(_numbers)}.db"
            if template is not None:
                shutil.copy(make_url(template).database or "", path)
            return f"sqlite:///{path}"
        like = None if template is None else make_url(template).database
        # Of the receiver that has filled it, one that gave up waiting on a busy machine may be left.
        self._server.run(f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{like}'")
        return self._stack.enter_context(self._server.database(like))

    def open(self, url: str) -> Engine:
        """Open a database until the end of the test."""
        return self._stack.enter_context(open_engine(url))


@pytest.fixture(scope="session")
def templates(
    postgres_server: PostgresServer,
    postgres_template: str,
    sqlite_template: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[dict[str, str]]:
    """URLs: of a source of each kind, made when a test first asks for it, and of an empty, migrated database of each."""

    class Made(dict[str, str]):
        def __missing__(self, kind: str) -> str:
            self[kind] = url = migrate_database(made.new(kind))
            with open_engine(url) as engine:
                install(engine, url)
            return url

    empty = {"empty sqlite": f"sqlite:///{sqlite_template}", "empty postgres": f"postgresql:///{postgres_template}"}
    with contextlib.ExitStack() as stack:
        made = Databases(postgres_server, tmp_path_factory.mktemp("templates"), stack)
        yield Made(empty)


@pytest.fixture
def databases(postgres_server: PostgresServer, tmp_path: Path) -> Iterator[Databases]:
    with contextlib.ExitStack() as stack:
        yield Databases(postgres_server, tmp_path, stack)


def url_of(engine: Engine) -> str:
    return engine.url.render_as_string(hide_password=False)
