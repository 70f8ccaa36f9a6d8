"""Databases with two counters, for tests of the stepper and its search."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from sqlalchemy import Engine

from inbox.db import engine as engines
from tests.helpers.counting import with_counters


@pytest.fixture
def counters(engine: Engine) -> Engine:
    return with_counters(engine)


@pytest.fixture
def postgres_counters(postgres_database_url: str) -> Iterator[Engine]:
    """As `counters`, where rows are locked one by one."""
    engine = engines.connect(postgres_database_url, application="tests")
    yield with_counters(engine)
    engine.dispose()
