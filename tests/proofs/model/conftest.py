"""The model's world, with small folds so that transactions leave work to the next."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis.internal.conjecture.providers import CONSTANTS_CACHE, HypothesisProvider
from hypothesis.internal.constants_ast import Constants

from relay.store import sequence
from tests.proofs.model.world import FEW, World


@pytest.fixture
def world(world: World, monkeypatch: pytest.MonkeyPatch) -> World:
    monkeypatch.setattr(sequence, "MOST_FOLDED", FEW)
    return world


@pytest.fixture(autouse=True)
def _the_same_runs_whatever_is_loaded(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Keep runs reproducible: Hypothesis draws constants from loaded modules, which depend on earlier tests."""
    monkeypatch.setattr(HypothesisProvider, "_local_constants", Constants())
    CONSTANTS_CACHE.cache.clear()
    yield
    CONSTANTS_CACHE.cache.clear()
