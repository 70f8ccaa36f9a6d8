"""Secrets of the examined installations, and a fixture that closes their connections."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.doctor.examining import ENVIRONMENT, OPENED


@pytest.fixture(autouse=True)
def _installations(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name, value in ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    yield
    while OPENED:
        OPENED.pop().dispose()
