"""A stage on either database."""

from __future__ import annotations

import pytest
from sqlalchemy import Engine

from tests.helpers.undivided import let_batches_fail_whole
from tests.proofs.interleavings.stage import Stage


@pytest.fixture
def stage(engine: Engine) -> Stage:
    return Stage(engine)


@pytest.fixture(autouse=True)
def _batches_fail_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    let_batches_fail_whole(monkeypatch)
