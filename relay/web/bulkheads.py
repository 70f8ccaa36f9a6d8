"""Bulkheads between kinds of reads: kinds of pages that are slow leave the threads to the others.

A read has a quick slot or a slow one. One that lasts too long moves to a free slow slot, and its kind counts as slow until one
of its reads is quick again. Reads of a slow kind begin in a slow slot, or end at once where none is free. So slow kinds,
however many, take no quick slot once they are known. All tasks are of one event loop.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

from inbox.errors import QueryTooSlow

QUICK, SLOW = 4, 4
"""Slots of each sort. So many reads of this page are in the database at most."""
OF_A_KIND = 2
"""Reads of one kind at a time, such as those of one screen."""
SLOW_AFTER_SECONDS = 1.0
"""A read that lasts longer is slow."""
LONGEST_WAIT_SECONDS = 8.0
"""After so long a wait for its slot, a read ends as one that takes too long."""
SLOW_WAIT_SECONDS = 1.0
"""The same for a slow kind: its readers get the answer soon."""


class Bulkheads:
    """Gives each read a slot by its kind."""

    def __init__(self) -> None:
        self._quick = asyncio.Semaphore(QUICK)
        self._slow = 0
        self._of_kind: defaultdict[str, asyncio.Semaphore] = defaultdict(lambda: asyncio.Semaphore(OF_A_KIND))
        self._slow_kinds: set[str] = set()

    @asynccontextmanager
    async def slot(self, kind: str) -> AsyncIterator[None]:
        """Wait for a slot, and hold it until the block ends.

        Raises:
            QueryTooSlow: others of this kind, or other slow kinds, take all the time.
        """
        async with AsyncExitStack() as held:
            seconds = SLOW_WAIT_SECONDS if kind in self._slow_kinds else LONGEST_WAIT_SECONDS
            try:
                async with asyncio.timeout(seconds):
                    await held.enter_async_context(self._of_kind[kind])
                    slot = await self._begin(kind)
            except TimeoutError:
                raise _too_slow(f"this one waited {seconds:g} s") from None
            loop = asyncio.get_running_loop()
            began = loop.time()
            timer = loop.call_later(SLOW_AFTER_SECONDS, self._lasts_long, kind, slot)
            try:
                yield
            finally:
                timer.cancel()
                if loop.time() - began < SLOW_AFTER_SECONDS:
                    self._slow_kinds.discard(kind)
                if slot.is_slow:
                    self._slow -= 1
                else:
                    self._quick.release()

    async def _begin(self, kind: str) -> _Slot:
        if kind not in self._slow_kinds:
            await self._quick.acquire()
            if kind not in self._slow_kinds:
                return _Slot(is_slow=False)
            self._quick.release()  # it has become slow meanwhile
        if self._slow >= SLOW:
            raise _too_slow("none is begun before another ends")
        self._slow += 1
        return _Slot(is_slow=True)

    def _lasts_long(self, kind: str, slot: _Slot) -> None:
        """Give the quick slot of a read back, where a slow one is free."""
        self._slow_kinds.add(kind)
        if not slot.is_slow and self._slow < SLOW:
            slot.is_slow = True
            self._slow += 1
            self._quick.release()


class _Slot:
    """The slot of one read."""

    def __init__(self, *, is_slow: bool) -> None:
        self.is_slow = is_slow


def _too_slow(why: str) -> QueryTooSlow:
    return QueryTooSlow(f"others ask for the same, and it takes long: {why}; try again")
