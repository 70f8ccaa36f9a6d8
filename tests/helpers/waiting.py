"""Waiting for a condition, never for a time."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import TypeVar

_Found = TypeVar("_Found")

POLL_SECONDS = 0.02
LONGEST_SECONDS = 60.0
"""Of a wait. It says how busy the machine may be, and not how long the product may take."""


def until(
    condition: Callable[[], _Found], what: str, *, within: float = LONGEST_SECONDS, poll: float = POLL_SECONDS
) -> _Found:
    """The first true value of `condition`.

    Raises:
        AssertionError: it had none within `within` seconds.
    """
    deadline = time.monotonic() + within
    while True:
        found = condition()
        if found:
            return found
        assert time.monotonic() < deadline, f"not within {within:g} s: {what}"
        time.sleep(poll)


async def until_async(condition: Callable[[], _Found], what: str, *, within: float = LONGEST_SECONDS) -> _Found:
    """As `until`, inside an event loop."""
    deadline = time.monotonic() + within
    while True:
        found = condition()
        if found:
            return found
        assert time.monotonic() < deadline, f"not within {within:g} s: {what}"
        await asyncio.sleep(POLL_SECONDS)
