"""Figures of both programs per minute: requests of each source, and outcomes of deliveries.

Each process sums up in memory, and writes its sums to `throughput_minute` every few seconds, in a separate transaction.
They are figures, not facts: a killed process loses its last ones, and a commit whose confirmation was lost counts
twice. They count in the minute of their writing, by the database's clock.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

from sqlalchemy import TextClause, text
from sqlalchemy.exc import DBAPIError

from inbox.db.dialect import Sql, is_data_error
from inbox.events.states import THROUGHPUT_KINDS

FLUSH_EVERY_SECONDS = 10.0

SOURCE, ROUTE, DESTINATION = THROUGHPUT_KINDS
STORED, DUPLICATE, SWEPT, REJECTED, UNAVAILABLE = "stored", "duplicate", "swept", "rejected", "unavailable"
"""Outcomes of a source's requests. Those of routes and destinations are kinds of facts."""


_COLUMNS = {"kind": "text", "name": "text", "outcome": "text", "count": "bigint", "bytes": "bigint"}
Figure = dict[str, Any]
"""A sum to add to a row of `throughput_minute`: kind, name, outcome, count and bytes."""


class Tally:
    """Thread-safe sums by kind, name and outcome, until they are written."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._sums: dict[tuple[str, str, str], tuple[int, int]] = {}

    def add(self, kind: str, name: str, outcome: str, *, count: int = 1, size: int = 0) -> None:
        """Add to a sum; `size` is in bytes."""
        subject = (kind, name, outcome)
        with self._lock:
            counted, counted_size = self._sums.get(subject, (0, 0))
            self._sums[subject] = (counted + count, counted_size + size)

    @contextmanager
    def take(self) -> Iterator[list[Figure]]:
        """Take all sums, to be written in the block. If the block raises, the sums are kept for the next time.

        Sums that the database rejects are dropped: if kept, they would make it reject all later ones too.
        """
        with self._lock:
            sums, self._sums = self._sums, {}
        try:
            yield [dict(zip(_COLUMNS, (*subject, *both), strict=True)) for subject, both in sums.items()]
        except BaseException as error:
            if not (isinstance(error, DBAPIError) and is_data_error(error)):
                for subject, (count, size) in sums.items():
                    self.add(*subject, count=count, size=size)
            raise


@cache
def add_up(sql: Sql) -> TextClause:
    """Add the rows `figures` to their minutes, in the order of the primary key, so that writers don't deadlock."""
    rows = sql.rows("figures", **_COLUMNS)
    return text(f"""
INSERT INTO throughput_minute (kind, name, outcome, minute, count, bytes)
SELECT kind, name, outcome, {sql.minute(f"(SELECT {sql.now})")}, sum(count), sum(bytes)
FROM {rows}
GROUP BY kind, name, outcome
ORDER BY kind, name, outcome
ON CONFLICT (kind, name, outcome, minute) DO UPDATE
SET count = throughput_minute.count + excluded.count, bytes = throughput_minute.bytes + excluded.bytes
""")
