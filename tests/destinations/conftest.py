from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from tests.destinations.calling import World
from tests.helpers.scripted import serving


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    """Stack that is closed after the test."""
    with ExitStack() as made:
        yield made


@pytest.fixture
def world() -> Iterator[World]:
    with serving() as server:
        yield World(server)
