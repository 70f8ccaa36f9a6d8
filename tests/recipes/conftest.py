"""Services that recipes deliver to."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.helpers.scripted import ScriptedServer, answer, serving


@pytest.fixture
def service() -> Iterator[ScriptedServer]:
    """Answers everything with `ok`, as Slack does."""
    with serving(answer(200, b"ok")) as server:
        yield server
