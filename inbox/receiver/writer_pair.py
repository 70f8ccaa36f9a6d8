"""The writers of a process that has two, by the size of what they store."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from inbox.db.intake import Rejected
from inbox.events.event import Event, Receipt
from inbox.receiver.writer import LARGE_BODY, CommitTimes, GroupCommit


class WriterPair:
    """Two writers of one process: large events have a connection of their own, so that small ones don't wait for them.

    Postgres takes a second and more to compress and store 25 MiB. SQLite has one writer at a time, so it gains nothing.
    """

    def __init__(self, small: GroupCommit, large: GroupCommit) -> None:
        self._small = small
        self._large = large

    async def append(self, events: Sequence[Event], times: CommitTimes | None = None) -> list[Receipt]:
        """See GroupCommit."""
        return await self._for(sum(len(event.body) for event in events)).append(events, times)

    async def probe(self) -> None:
        """See GroupCommit."""
        await self._small.probe()

    def reject(self, row: Rejected) -> None:
        """See GroupCommit."""
        self._for(len(row.body or b"")).reject(row)

    async def close(self) -> None:
        """Close both."""
        await asyncio.gather(self._small.close(), self._large.close())

    def _for(self, size: int) -> GroupCommit:
        return self._large if size > LARGE_BODY else self._small
