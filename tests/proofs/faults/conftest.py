"""Runs of the rig, whose seed is drawn anew each time, or given in FAULTS_SEED to have one again."""

from __future__ import annotations

import os
import random

import pytest


@pytest.fixture
def seed() -> int:
    """Return the seed from which this run draws what it does."""
    given = os.environ.get("FAULTS_SEED")
    return random.randrange(1_000_000) if given is None else int(given)
