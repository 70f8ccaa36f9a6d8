"""Databases for tests that start processes: SQLite, and Postgres among the long tests.

`tests/store` and `tests/flow` test the SQL on both. Tests with `module_database_url` or `postgres_database_url` use Postgres.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.helpers.databases import url_of_kind
from tests.helpers.processes import Site, site
from tests.helpers.webhooks import config_text


@pytest.fixture(params=["sqlite", pytest.param("postgres", marks=pytest.mark.long)])
def database_url(request: pytest.FixtureRequest) -> str:
    return url_of_kind(request)


@pytest.fixture
def place(database_url: str, tmp_path: Path) -> Iterator[Site]:
    """A site with the usual configuration, whose destination does not answer."""
    with site(tmp_path, config_text(database_url)) as made:
        yield made


@pytest.fixture
def sqlite_place(sqlite_database_url: str, tmp_path: Path) -> Iterator[Site]:
    """The same site, always on SQLite."""
    with site(tmp_path, config_text(sqlite_database_url)) as made:
        yield made


@pytest.fixture
def postgres_place(postgres_database_url: str, tmp_path: Path) -> Iterator[Site]:
    """The same site, always on Postgres."""
    with site(tmp_path, config_text(postgres_database_url)) as made:
        yield made
