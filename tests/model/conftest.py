"""The model's database."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from sqlalchemy import Engine

from tests.model.receiver import in_haste
from tests.model.world import World


@pytest.fixture
def world(engine: Engine, database_url: str) -> Iterator[World]:
    in_haste(engine)
    made = World(engine, database_url)
    yield made
    made.close()
