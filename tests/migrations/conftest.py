"""Databases without any tables, of either kind."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import Engine

from tests.helpers.databases import PostgresServer, is_postgres, open_engine


@pytest.fixture
def sqlite_empty_url(tmp_path: Path) -> str:
    """URL of a SQLite file that doesn't exist yet."""
    return f"sqlite:///{tmp_path / 'empty.db'}"


@pytest.fixture
def postgres_empty_url(postgres_server: PostgresServer) -> Iterator[str]:
    """URL of a Postgres database without tables."""
    with postgres_server.database() as url:
        yield url


@pytest.fixture
def empty_url(request: pytest.FixtureRequest, database_url: str) -> str:
    """URL of an empty database of the same kind as `database_url`."""
    kind = "postgres" if is_postgres(database_url) else "sqlite"
    url: str = request.getfixturevalue(f"{kind}_empty_url")
    return url


@pytest.fixture
def empty(empty_url: str) -> Iterator[Engine]:
    """Engine on `empty_url`."""
    with open_engine(empty_url) as made:
        yield made
