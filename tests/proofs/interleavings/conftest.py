"""A stage on either database."""

from __future__ import annotations

import pytest
from sqlalchemy import Engine

from tests.helpers.undivided import let_batches_fail_whole
from tests.proofs.interleavings.stage import Receive, Stage
from tests.store.conftest import receive

__all__ = ["receive", "stage"]


@pytest.fixture
def stage(engine: Engine, receive: Receive) -> Stage:  # a fixture is asked for by its name
    return Stage(engine, receive)


@pytest.fixture(autouse=True)
def _batches_fail_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    let_batches_fail_whole(monkeypatch)
