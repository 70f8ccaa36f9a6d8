"""Places that this process has reached in its looks, so that a look costs the same whatever lies before them.

Postgres keeps the index entry of a row that has ended as long as any snapshot is older, such as that of a long report:
who looks from the beginning of the index reads past all of them, each time. And what is due but paused stays due. So
frequent looks begin where the last one came to. Nothing rests on it: work is found by its state, and now and then a look
begins at the beginning, which finds what has got behind the place.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta
from typing import Generic, TypeVar

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


class Places:
    """The places of one relay process, for each route."""

    def __init__(self) -> None:
        self.due: defaultdict[str, Floor[datetime]] = defaultdict(Floor)
