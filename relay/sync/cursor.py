"""Listed entities, and a cursor through a listing that changes while it is read. Pure."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from datetime import UTC, datetime
from typing import Generic, TypeVar

import msgspec

from inbox.errors import UnusableAnswer

EVERYTHING = datetime(1970, 1, 1, tzinfo=UTC)
"""A listing since then contains everything."""
UNTOLD = datetime.min.replace(tzinfo=UTC)

Item = TypeVar("Item", bound=Hashable)
"""An item of a page; an item that changed in between is another one."""


class Listed(msgspec.Struct, frozen=True):
    """An entity, and the UTC time of its last change; `UNTOLD` where the listing has none."""

    id: str
    modified: datetime


class Repeats:
    """Notices pages that go in a circle (Brent's cycle detection). It remembers one page, that of number 1, 2, 4, 8 and so on."""

    def __init__(self) -> None:
        self._number = 0
        self._remembered: Sequence[Hashable] = ()

    def has(self, page: Sequence[Hashable]) -> bool:
        """Take the next page. Return True when it is the remembered one again."""
        if page and list(page) == list(self._remembered):
            return True
        self._number += 1
        if self._number & (self._number - 1) == 0:
            self._remembered = page
        return False


MOST_SETBACKS = 10
"""Limit of returns to the beginning, or without anything new."""


class OffsetCursor(Generic[Item]):
    """The position in a listing that is read by offsets, page after page.

    A listing in the order of changes moves while it is read. A changed entity goes to the end, and all behind it move up
    by one, so an entity could fall between two pages. So each page begins with the last entity of the one before. A page
    that has no entity of the last page unchanged has moved too far. The cursor then goes back, twice as far each time. An
    entity changed since proves nothing: it came here by way of the end.

    It remembers two pages, whatever the listing's length: the last one, and an earlier one, to notice pages that repeat.
    """

    def __init__(self, first: int, count: int) -> None:
        """Begin at `first`; `count` is the length of every page but the last."""
        self.start = first
        """Offset of the next page."""
        self.is_at_end = False
        self.connects = True
        """True when the last page connects with the one before."""
        self._first = first
        self._count = count
        self._before: Sequence[Item] = ()
        self._overlap = 0
        self._back = 1
        self._setbacks = 0
        self._repeats = Repeats()

    def advance(self, page: Sequence[Item]) -> list[Item]:
        """Return the new entities of the page at `start`, and move `start` to the next page, if there is one.

        Raises:
            UnusableAnswer: the same pages repeat, or the listing moves too fast to be followed.
        """
        known = set(self._before)
        if self._overlap and not any(each in known for each in page) and self._can_go_back():
            self.connects = False
            return []
        self.connects = True
        fresh = [each for each in page if each not in known]
        if not fresh and self._ends_with(page):
            self.is_at_end = True
            return []
        if self._back == 1:
            if self._repeats.has(page):
                raise UnusableAnswer(f"the page at {self.start} came before: does the call take {{start}}?")
        elif not fresh:
            self._set_back()
        self._back, self._before, self._overlap = 1, page, int(len(page) > 1)
        self.start += len(page) - self._overlap
        return fresh

    def _ends_with(self, page: Sequence[Item]) -> bool:
        """Return True when a page without new entities is the last. SCIM reads start 0 as 1, and gives the only page twice."""
        is_only = self.start <= self._first + 1 and len(page) < self._count
        return not page or len(page) < len(self._before) or is_only

    def _can_go_back(self) -> bool:
        """Go back. False at the beginning: nothing lies before it, so nothing is missed from there on."""
        if self.start == self._first:
            self._set_back()
            return False
        self.start = max(self.start - self._back, self._first)
        self._back *= 2
        return True

    def _set_back(self) -> None:
        self._setbacks += 1
        if self._setbacks > MOST_SETBACKS:
            raise UnusableAnswer(
                "the listing changes faster than it can be read, or starts at whole pages only: its pages don't connect; "
                'where pages have numbers, set by = "page"'
            )
