"""Databases without any tables, of either kind."""

from __future__ import annotations

import os
from collections.abc import Iterator
from itertools import count
from pathlib import Path

import pytest
from sqlalchemy import Engine

from inbox.db import engine as engines
from tests.conftest import _administer, _create_database

_numbers = count(1)


@pytest.fixture
def sqlite_empty_url(tmp_path: Path) -> str:
    """URL of a SQLite file that doesn't exist yet."""
    return f"sqlite:///{tmp_path / 'empty.db'}"


@pytest.fixture
def postgres_empty_url(postgres_url: str) -> Iterator[str]:
    """URL of a Postgres database without tables."""
    name = f"inbox_relay_empty_{os.getpid()}_{next(_numbers)}"
    yield _create_database(postgres_url, name)
    _administer(postgres_url, f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture
def empty_url(request: pytest.FixtureRequest, database_url: str) -> str:
    """URL of an empty database of the same kind as `database_url`."""
    kind = "sqlite" if database_url.startswith("sqlite") else "postgres"
    url: str = request.getfixturevalue(f"{kind}_empty_url")
    return url


@pytest.fixture
def empty(empty_url: str) -> Iterator[Engine]:
    """Engine on `empty_url`."""
    made = engines.connect(empty_url, application="tests")
    yield made
    made.dispose()
