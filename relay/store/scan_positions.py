"""Places that this process has reached in its looks, so that a look costs the same whatever lies before them.

Postgres keeps the index entry of a row that has ended as long as any snapshot is older, such as that of a long report:
who looks from the beginning of the index reads past all of them, each time. And what is due but paused stays due. So
frequent looks begin where the last one came to. Nothing rests on it: work is found by its state, and now and then a look
begins at the beginning, which finds what has got behind the place.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import Generic, NamedTuple, TypeVar

from relay.delivery.gates import Entity

WHOLE_EVERY_SECONDS = 1.0
"""The least pause between two looks for work from the beginning."""
_PART_OF_THE_TIME = 1 / 30
"""The largest share of time for looks from the beginning, however much lies there."""

LATE = timedelta(seconds=5)
"""The longest time between becoming due and its commit: a relay's transaction may not stand for longer than 3 s."""

_Value = TypeVar("_Value")


class Floor(Generic[_Value]):
    """The place where the next look begins."""

    def __init__(
        self, whole_every: float = WHOLE_EVERY_SECONDS, monotonic: Callable[[], float] = time.monotonic
    ) -> None:
        self.at: _Value | None = None
        """None: at the beginning."""
        self._whole_every = whole_every
        self._monotonic = monotonic
        self._whole_at = float("-inf")

    @contextmanager
    def look(self, *, whole: bool = False) -> Iterator[_Value | None]:
        """Begin a look. Yields its place: None, the beginning, when that is due again, or `whole` is asked for."""
        began = self._monotonic()
        if self.at is not None and began < self._whole_at and not whole:
            yield self.at
            return
        yield None
        ended = self._monotonic()
        self._whole_at = ended + max(self._whole_every, (ended - began) / _PART_OF_THE_TIME)


class Arrivals:
    """Knowledge of deliveries that have arrived and are not sequenced, from one look for them to the next."""

    def __init__(self, floor: Floor[int] | None = None) -> None:
        self.floor: Floor[int] = floor or Floor()
        """The seq at which the next look begins."""
        self.left: set[str] = set()
        """Routes of deliveries that the last look has left as they are."""
        self.rows: set[tuple[int, str]] = set()
        """Deliveries that were themselves locked, or at fault and not to be set aside: seq and route."""
        self.placed = frozenset[tuple[int, str]]()
        """Of `rows`, those that have their place in a lane already: whatever arrives in that lane waits for them."""
        self.locked_since: dict[str, float] = {}
        """Routes whose lock somebody had, and since when (monotonic seconds). It may be free before the next try."""
        self.rests_until = 0.0
        """Until then (monotonic seconds) it looks at none of these routes, as the last such look took long."""
        self.is_behind = False
        """True when the last look was full, so that there are more."""


Key = tuple[datetime, int]
"""Due time and seq: heads of a route are claimed in this order."""

START: Key = (datetime(1, 1, 1, tzinfo=UTC), 0)
PAGE = 500
"""Heads in one look at a route where some are paused."""
_PAGES_AT_FIRST = 10


class Seen(NamedTuple):
    """One head that a look has read."""

    key: Key
    paused: bool


class Cursor:
    """A place among the due heads of a route: all before it are paused, as far as is known, or were claimed."""

    def __init__(self) -> None:
        self.at = START
        self.seen: list[Seen] = []
        """The heads of the present look."""
        self.at_end = False
        """The present look has met all that is due from here on."""

    def saw(self, seen: Sequence[Seen]) -> None:
        """The next page of the look."""
        self.seen += seen
        self.at_end = len(seen) < PAGE

    @property
    def begin(self) -> Key:
        """The place where the next page of the look begins."""
        return self.seen[-1].key if self.seen else self.at

    def move(self, claimed: Collection[int]) -> bool:
        """End the look: move past paused and claimed heads, but not past one that could have been claimed.

        Returns:
            Whether nothing due is left from there on.
        """
        seen, self.seen = self.seen, []
        for head in seen:
            if not head.paused and head.key[1] not in claimed:
                return False
            self.at = head.key
        return self.at_end


class Passing:
    """Two places of one route: one goes through everything that is due and begins again, one stays at what has just become due.

    Behind a hundred thousand heads that are paused, one look from the beginning takes 0.3 s; so it is made a page at a
    time, and the heads that become due meanwhile are claimed beside it.
    """

    def __init__(self, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._monotonic = monotonic
        self._paused: tuple[Entity, ...] = ()
        self._all, self._recent = Cursor(), Cursor()
        self._pages = _PAGES_AT_FIRST
        self._again_at = float("-inf")

    def begin(self, paused: tuple[Entity, ...], now: datetime) -> list[tuple[Cursor, int]]:
        """The places to look from, and how many pages at most. When others are paused than before, from the beginning."""
        if paused != self._paused:
            self._paused, self._pages, self._again_at = paused, _PAGES_AT_FIRST, float("-inf")
            self._all.at = START
        if self._recent.at == START:
            self._recent.at = (now - LATE, 0)
        through_all = [(self._all, self._pages)] if self._monotonic() >= self._again_at else []
        return [*through_all, (self._recent, 1)]

    def end(self, looked: Sequence[Cursor], claimed: Collection[int], now: datetime) -> None:
        """End the look from these places, after these seqs were claimed."""
        for cursor in looked:
            if cursor.move(claimed):
                cursor.at = START if cursor is self._all else (now - LATE, 0)
                if cursor is self._all:
                    self._pages, self._again_at = 1, self._monotonic() + WHOLE_EVERY_SECONDS


class Places:
    """The places of one relay process, for each route."""

    def __init__(self) -> None:
        self.due: defaultdict[str, Floor[datetime]] = defaultdict(Floor)
        self.passing: defaultdict[str, Passing] = defaultdict(Passing)
