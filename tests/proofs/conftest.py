"""Fixtures of the proofs that search histories and orders on a real database."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from sqlalchemy import Engine

from relay.store import claim, work
from tests.proofs.interleavings.stage import Stage
from tests.proofs.model.world import World


@pytest.fixture
def world(engine: Engine, database_url: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    """Make every failure end its step; otherwise a missing safeguard that the database notices would only quarantine items."""
    for module in (claim, work):
        for name in ("blames_items", "is_wait_timeout", "takes_too_long"):
            monkeypatch.setattr(module, name, lambda _error: False)
    made = World(engine, database_url)
    yield made
    made.close()


@pytest.fixture
def stage(world: World) -> Stage:
    return Stage(world)
