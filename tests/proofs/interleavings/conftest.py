"""A stage on either database."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from sqlalchemy import Engine

from tests.helpers.undivided import let_batches_fail_whole
from tests.proofs.interleavings.stage import Stage
from tests.proofs.model.receiver import in_haste
from tests.proofs.model.world import World


@pytest.fixture
def stage(engine: Engine, database_url: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Stage]:
    """Nothing in it has to survive a power cut, so nobody waits for a disk."""
    let_batches_fail_whole(monkeypatch)
    in_haste(engine)
    world = World(engine, database_url)
    yield Stage(world)
    world.close()
