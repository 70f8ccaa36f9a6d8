"""Runs of the rig, whose seed is drawn anew each time but in `.ci/run`, or given in FAULTS_SEED to have one again."""

from __future__ import annotations

import os
import random

import pytest

from tests.conftest import DRAWS_ANEW

SEED_IN_CI = 263617
"""The machine decides all the same when each fault comes."""


@pytest.fixture
def seed() -> int:
    """Return the seed from which this run draws what it does."""
    given = os.environ.get("FAULTS_SEED")
    if given is None:
        return random.randrange(1_000_000) if DRAWS_ANEW else SEED_IN_CI
    return int(given)
