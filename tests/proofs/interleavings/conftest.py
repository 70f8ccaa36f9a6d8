"""A stage on either database."""

from __future__ import annotations

import pytest

from tests.proofs.interleavings.stage import Stage
from tests.proofs.model.world import World


@pytest.fixture
def stage(world: World) -> Stage:
    return Stage(world)
