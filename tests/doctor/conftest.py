"""Secrets of the examined installations, and the end of their connections."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from sqlalchemy import Engine

from tests.doctor.examining import ENVIRONMENT, OPENED, changing


@pytest.fixture(autouse=True)
def _installations(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name, value in ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    yield
    while OPENED:
        OPENED.pop().dispose()


@pytest.fixture
def postgres_engine(postgres_database_url: str) -> Iterator[Engine]:
    """An engine of the programs, for what a test changes beside the examinations."""
    with changing(postgres_database_url) as engine:
        yield engine
