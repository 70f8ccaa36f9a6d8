"""The events of one request while they wait to be stored."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import msgspec

from inbox.errors import RequestError
from inbox.event import Event, Receipt


class Pending(msgspec.Struct, eq=False):
    """Events that are stored together, or none of them is."""

    events: Sequence[Event]
    receipts: asyncio.Future[list[Receipt]]
    taken: bool = False
    """They are part of a batch."""

    def answer(self, answer: list[Receipt] | RequestError) -> None:
        """Tell who waits, if anybody still does."""
        if self.receipts.done():
            return
        if isinstance(answer, RequestError):
            self.receipts.set_exception(answer)
        else:
            self.receipts.set_result(answer)

    def let_go(self) -> None:
        """Nobody waits any more: while a database hangs, what it has not been handed yet must not fill the memory."""
        if not self.taken:
            self.events = ()
