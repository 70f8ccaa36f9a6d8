"""Finds lanes that split or merge, and events that become duplicates, among millions: in a temporary file, not in memory."""

from __future__ import annotations

import hashlib
import sqlite3
from collections.abc import Iterator
from types import TracebackType
from typing import Literal, Self

import msgspec

_DIGEST_BYTES = 8
_SCHEMA = """
PRAGMA journal_mode = OFF;
PRAGMA cache_size = -16000;
CREATE TABLE pair (
    source TEXT, route TEXT, old INTEGER, new INTEGER, seq INTEGER, PRIMARY KEY (source, route, old, new)
) WITHOUT ROWID;
CREATE TABLE seen (what TEXT, key INTEGER, PRIMARY KEY (what, key)) WITHOUT ROWID;
BEGIN
"""


class LaneChange(msgspec.Struct, frozen=True):
    """Lanes of a route whose events would no longer be in the same lane, or not alone in it."""

    source: str
    route: str
    kind: Literal["split", "merge"]
    lanes: int
    """Lanes of today that split, or lanes of the new configuration that take the events of several."""
    seq: int
    """The last event in one of them that changes its lane."""


class SeenKeys:
    """Pairs of lanes, and keys that were seen. It holds 16 MB in memory, whatever their number."""

    def __init__(self) -> None:
        self._file = sqlite3.connect("", isolation_level=None)  # a private file, deleted when it is closed
        self._file.executescript(_SCHEMA)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._file.close()

    def first(self, what: str, *key: str | None) -> bool:
        """Remember a key; False when it was seen before."""
        found = self._file.execute("INSERT OR IGNORE INTO seen VALUES (?, ?)", (what, _number(*key)))
        return found.rowcount == 1

    def add_lanes(self, source: str, route: str, old: str, new: str, seq: int) -> None:
        """Remember that an event's lane on a route is `old` today, and `new` under the new configuration."""
        pair = (source, route, _number(old), _number(new), seq)
        self._file.execute("INSERT OR IGNORE INTO pair VALUES (?, ?, ?, ?, ?)", pair)

    def lane_changes(self) -> Iterator[LaneChange]:
        """Yield the changes of each route."""
        kinds: tuple[tuple[Literal["split", "merge"], str], ...] = (("split", "old"), ("merge", "new"))
        for kind, side in kinds:
            for source, route, lanes, seq in self._file.execute(_CHANGES.format(side=side)):
                yield LaneChange(source, route, kind, lanes, seq)


_CHANGES = """
SELECT source, route, count(*), max(seq)
FROM (
    SELECT source, route, max(CASE WHEN old <> new THEN seq END) AS seq
    FROM pair GROUP BY source, route, {side} HAVING count(*) > 1)
GROUP BY source, route ORDER BY source, route
"""


def _number(*key: str | None) -> int:
    """Return a number for a key of several parts: by chance, one pair among a million would share it in 40 million runs."""
    text = "\x00".join("" if part is None else part for part in key)
    digest = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=_DIGEST_BYTES).digest()
    return int.from_bytes(digest, "big", signed=True)
