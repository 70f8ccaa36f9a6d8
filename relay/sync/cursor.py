"""What an api says of an entity in a listing, and how a listing is gone through that moves meanwhile. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime

import msgspec

from inbox.errors import SweepFailed

EVERYTHING = datetime(1970, 1, 1, tzinfo=UTC)
"""What was changed since: all there is."""
UNTOLD = datetime.min.replace(tzinfo=UTC)


class Listed(msgspec.Struct, frozen=True):
    """An entity, and when it was changed last; UTC, and `UNTOLD` where a listing does not say."""

    id: str
    modified: datetime


MOST_SETBACKS = 10
"""So often going back may have come to the beginning, or to nothing new."""


class OffsetCursor:
    """Where a listing is that is asked for by offsets, page after page.

    A listing in the order of changes moves while it is read: what is changed leaves its place for the end, all behind it
    come one closer, and one of them would fall between two pages. So each page begins with the last entity of the one
    before. One that has none of those as they were has moved on, and is asked for from further back, twice as far each
    time: an entity that was changed since is no sign, as it has come here by way of the end.

    It remembers two pages, whatever the listing's length: the last one, and one before it, which is renewed at pages 1,
    2, 4, 8 and so on (Brent's way to find a cycle), so that pages which go round are noticed.
    """

    def __init__(self, first: int, count: int) -> None:
        """`count` is what a page has that is not the last."""
        self.start = first
        """Of the page to ask for."""
        self.is_at_end = False
        self._first = first
        self._count = count
        self._before: Sequence[Listed] = ()
        self._overlap = 0
        self._back = 1
        self._setbacks = 0
        self._number = 0
        self._remembered: Sequence[Listed] = ()

    def advance(self, page: Sequence[Listed]) -> list[Listed]:
        """Take in the page at `start`: what is new in it. Then `start` is the next one's, if it is not the end.

        Raises:
            SweepFailed: the same pages come again and again, or the listing moves too fast to be followed.
        """
        told = set(self._before)
        if self._overlap and not any(each in told for each in page) and self._can_go_back():
            return []
        fresh = [each for each in page if each not in told]
        if not fresh and self._ends_with(page):
            self.is_at_end = True
            return []
        if self._back == 1:
            self._notice_a_cycle(page)
        elif not fresh:
            self._set_back()
        self._back, self._before, self._overlap = 1, page, int(len(page) > 1)
        self.start += len(page) - self._overlap
        return fresh

    def _ends_with(self, page: Sequence[Listed]) -> bool:
        """Whether a page of nothing new is the last. SCIM takes a start of 0 for 1, and gives the only page twice."""
        is_only = self.start <= self._first + 1 and len(page) < self._count
        return not page or len(page) < len(self._before) or is_only

    def _can_go_back(self) -> bool:
        """Ask from further back. At the beginning there is nothing before, and nothing is passed over from there on."""
        if self.start == self._first:
            self._set_back()
            return False
        self.start = max(self.start - self._back, self._first)
        self._back *= 2
        return True

    def _set_back(self) -> None:
        self._setbacks += 1
        if self._setbacks > MOST_SETBACKS:
            raise SweepFailed("what is listed changes faster than it can be read: its pages don't connect")

    def _notice_a_cycle(self, page: Sequence[Listed]) -> None:
        if page == self._remembered:
            raise SweepFailed(f"the page at {self.start} came before: does the path take a start?")
        self._number += 1
        if self._number & (self._number - 1) == 0:
            self._remembered = page
