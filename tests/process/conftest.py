"""Both kinds of database for what starts processes: on Postgres the same is proven only when there is time.

Whatever SQL they send has tests on both kinds in `tests/store` and `tests/flow`. Tests that ask for `module_database_url`
or `postgres_database_url` run their processes on Postgres each time.
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
    """A site with the usual configuration, and nobody at the other end."""
    with site(tmp_path, config_text(database_url)) as made:
        yield made


@pytest.fixture
def sqlite_place(sqlite_database_url: str, tmp_path: Path) -> Iterator[Site]:
    """The same, on SQLite each time."""
    with site(tmp_path, config_text(sqlite_database_url)) as made:
        yield made


@pytest.fixture
def postgres_place(postgres_database_url: str, tmp_path: Path) -> Iterator[Site]:
    """The same, on Postgres each time."""
    with site(tmp_path, config_text(postgres_database_url)) as made:
        yield made
