"""The model's database."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis.internal.conjecture.providers import CONSTANTS_CACHE, HypothesisProvider
from hypothesis.internal.constants_ast import Constants
from sqlalchemy import Engine

from relay.store import coverage, lanes
from tests.helpers.undivided import let_batches_fail_whole
from tests.proofs.model.receiver import in_haste
from tests.proofs.model.world import FEW, World


@pytest.fixture
def world(engine: Engine, database_url: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    in_haste(engine)
    monkeypatch.setattr(lanes, "MOST_FOLDED", FEW)
    monkeypatch.setattr(coverage, "MOST_HEALED", 1)
    made = World(engine, database_url)
    yield made
    made.close()


@pytest.fixture(autouse=True)
def _the_same_runs_whatever_is_loaded(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Hypothesis draws numbers that stand in the modules loaded so far, so the tests before would choose the runs."""
    monkeypatch.setattr(HypothesisProvider, "_local_constants", Constants())
    CONSTANTS_CACHE.cache.clear()
    yield
    CONSTANTS_CACHE.cache.clear()


@pytest.fixture(autouse=True)
def _batches_fail_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    let_batches_fail_whole(monkeypatch)
