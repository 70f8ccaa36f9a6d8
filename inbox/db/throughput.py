"""Figures of both programs: what was received from each source, and what became of deliveries, minute by minute.

Each process adds up in memory, and writes its sums into `throughput_minute` every few seconds, in a transaction of their
own. They are figures, not facts: a process that is killed takes its last ones with it, and a commit whose answer was lost
is counted twice. The minute is the database's: a process knows how long ago it counted, by a clock that is never set.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import cache

import msgspec
from sqlalchemy import TextClause, text
from sqlalchemy.exc import DBAPIError

from inbox.db.dialect import Sql, is_data_error, rows_param
from inbox.events.states import THROUGHPUT_KINDS

FLUSH_EVERY_SECONDS = 10.0
MOST_SLOTS = 60
"""Slots of `FLUSH_EVERY_SECONDS` that are kept apart while nothing can be written. The newest then takes what follows."""

SOURCE, ROUTE, DESTINATION = THROUGHPUT_KINDS
STORED, DUPLICATE, SWEPT, REJECTED, UNAVAILABLE = "stored", "duplicate", "swept", "rejected", "unavailable"
"""Outcomes of requests of a source. Those of routes and destinations are the kinds of facts."""


class Figure(msgspec.Struct, frozen=True):
    """A sum to be added to a row of `throughput_minute`."""

    kind: str
    name: str
    outcome: str
    age: float
    """Seconds since it was counted."""
    count: int
    bytes: int


_Subject = tuple[str, str, str]
"""Kind, name and outcome."""
_Slots = dict[float, dict[_Subject, tuple[int, int]]]
"""Counts and bytes, by the monotonic second in which the first of a slot was counted."""


class Tally:
    """Adds up until the sums are written. Its memory is bounded; it is safe to share between threads."""

    def __init__(self, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._monotonic = monotonic
        self._lock = threading.Lock()
        self._slots: _Slots = {}

    def add(self, kind: str, name: str, outcome: str, *, count: int = 1, size: int = 0) -> None:
        """Count something; `size` is in bytes."""
        now = self._monotonic()
        with self._lock:
            newest = max(self._slots, default=-FLUSH_EVERY_SECONDS)
            slot = newest if now - newest < FLUSH_EVERY_SECONDS else now
            self._put(slot, (kind, name, outcome), count, size)

    @contextmanager
    def taken(self) -> Iterator[list[Figure]]:
        """Hand all sums over to be written in the block. If that raises, they are kept for the next time.

        Only sums that the database rejects are dropped: it would reject them again, and with them all later ones.
        """
        with self._lock:
            slots, self._slots = self._slots, {}
        now = self._monotonic()
        try:
            yield [
                Figure(*subject, now - slot, *sums)
                for slot, subjects in slots.items()
                for subject, sums in subjects.items()
            ]
        except BaseException as error:
            if not (isinstance(error, DBAPIError) and is_data_error(error)):
                self._give_back(slots)
            raise

    def _give_back(self, slots: _Slots) -> None:
        with self._lock:
            for slot, subjects in slots.items():
                for subject, sums in subjects.items():
                    self._put(slot, subject, *sums)

    def _put(self, slot: float, subject: _Subject, count: int, size: int) -> None:
        if slot not in self._slots and len(self._slots) >= MOST_SLOTS:
            slot = max(self._slots)
        sums = self._slots.setdefault(slot, {})
        before = sums.get(subject, (0, 0))
        sums[subject] = (before[0] + count, before[1] + size)


def figures_param(figures: Iterable[Figure]) -> str:
    """Encode figures as the parameter `figures` of `add_up`."""
    return rows_param(msgspec.structs.asdict(figure) for figure in figures)


@cache
def add_up(sql: Sql) -> TextClause:
    """Add figures to their minutes. Rows are locked in the order of the primary key, so that no two writers deadlock."""
    rows = sql.rows(
        "figures", kind="text", name="text", outcome="text", age="float8", count="bigint", bytes="bigint"
    )  # fmt: skip
    return text(f"""
INSERT INTO throughput_minute (kind, name, outcome, minute, count, bytes)
SELECT placed.kind, placed.name, placed.outcome, placed.minute, sum(placed.count), sum(placed.bytes)
FROM (
    SELECT kind, name, outcome, {sql.minute(f"(SELECT {sql.now})", "age")} AS minute, count, bytes
    FROM {rows}) placed
GROUP BY placed.kind, placed.name, placed.outcome, placed.minute
ORDER BY placed.kind, placed.name, placed.outcome, placed.minute
ON CONFLICT (kind, name, outcome, minute) DO UPDATE
SET count = throughput_minute.count + excluded.count, bytes = throughput_minute.bytes + excluded.bytes
""")
