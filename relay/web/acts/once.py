"""Double submits: the same form sent twice is one command. The keys are in memory, as one process serves the page."""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable

import msgspec

from inbox.errors import PlanChanged

KEPT_SECONDS = 600.0
"""Longest time between two submits of one form."""
MOST_KEPT = 10_000


class _Sent(msgspec.Struct, frozen=True):
    content: bytes
    made: asyncio.Task[int]
    at: float


class OnceOnly:
    """Makes one command for each key. Use it in one event loop. Its memory is bounded: the oldest keys are forgotten."""

    def __init__(self, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._monotonic = monotonic
        self._sent: OrderedDict[str, _Sent] = OrderedDict()

    async def run(self, key: str, content: bytes, make: Callable[[], Awaitable[int]]) -> int:
        """Return the number that `make` returned for this key, now or before. After an error the key is free again.

        Raises:
            PlanChanged: the key was sent before with other content.
        """
        now = self._monotonic()
        self._forget(now)
        known = self._sent.get(key)
        if known is None:
            # A task of its own goes on when the client hangs up: a second submit must find what it has made.
            known = self._sent[key] = _Sent(content, asyncio.ensure_future(_made(make)), now)
            known.made.add_done_callback(lambda task: self._release(key, task))
        elif known.content != content:
            number = await asyncio.shield(known.made)
            raise PlanChanged(f"this form was sent before with other values, and is command {number}; look at it first")
        return await asyncio.shield(known.made)

    def _release(self, key: str, task: asyncio.Task[int]) -> None:
        known = self._sent.get(key)
        if known is not None and known.made is task and (task.cancelled() or task.exception() is not None):
            del self._sent[key]

    def _forget(self, now: float) -> None:
        while self._sent:
            oldest = next(iter(self._sent.values()))
            is_old = now - oldest.at > KEPT_SECONDS or len(self._sent) >= MOST_KEPT
            if not is_old or not oldest.made.done():
                return
            self._sent.popitem(last=False)


async def _made(make: Callable[[], Awaitable[int]]) -> int:
    return await make()
