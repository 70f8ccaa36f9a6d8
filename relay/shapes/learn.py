"""Learns the usual shape of an event type from observations, and finds what differs from it. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from datetime import datetime, timedelta
from typing import Literal

import msgspec

from relay.shapes.observe import JSON_TYPES, MOST_KEYS, JsonType, Observation
from relay.shapes.paths import ANY_KEY, ITEM, ROOT, Path, fold

ANY = "any"
"""Type of the row that counts events which have the path at all."""

USUAL_EVENTS = 50
"""Events from which on a shape, or a path in it, is known: what differs later is a change."""
GRACE = timedelta(days=1)
"""A shape is learned for at least so long, as a burst of one kind is no usual traffic."""
MISSING_EVENTS = 20
"""Events in a row without a field, after which it counts as missing."""
NEARLY_ALL = 0.98
"""Part of the events that have a field before its absence is a change."""
MOST_PATHS = 500
"""Paths of one event type; what comes later is not learned."""
MOST_CHANGES = 50
"""Changes of an event type that are reported at once."""

ChangeKind = Literal["added", "type", "missing"]


class SeenType(msgspec.Struct, frozen=True):
    """A count of a type at a path, with the first and the last event that had it."""

    events: int
    first_seq: int
    first_at: datetime
    last_seq: int
    last_at: datetime
    absent: int = 0
    """Events since the first one that lacked the path, though its parent was there; only of `ANY`, as all below."""
    missed: int = 0
    """Of these, the last ones in a row."""
    missed_seq: int | None = None
    """First of these in a row."""
    missed_at: datetime | None = None
    is_map: bool = False
    """The keys of this object are data."""
    id: int | None = None
    """Its row; None: it has none yet."""

    @property
    def is_usual(self) -> bool:
        """Return whether it has been seen often enough to be known."""
        return self.events >= USUAL_EVENTS


Key = tuple[Path, str]
"""A path, and a type or `ANY`."""


class ObservedEvent(msgspec.Struct, frozen=True):
    """An event, and the structure of its body."""

    seq: int
    at: datetime
    observation: Observation


class Change(msgspec.Struct, frozen=True):
    """A difference from the usual shape."""

    change: ChangeKind
    path: Path
    seq: int
    """First event that shows it."""
    at: datetime
    """Time of its arrival."""
    type: JsonType | None = None
    """The new type at the path."""
    usual: str = ""
    """Types that were usual before, or how many events had the field."""


class Learned(msgspec.Struct, frozen=True):
    """A shape after some events."""

    rows: Mapping[Key, SeenType]
    changed: frozenset[Key]
    """Rows that differ from those before."""
    folded: tuple[int, ...]
    """Ids of rows of keys that are data, as it turned out."""
    changes: tuple[Change, ...]
    returned: frozenset[Path]
    """Missing fields that are there again."""


def learn(known: Mapping[Key, SeenType], events: Iterable[ObservedEvent]) -> Learned:
    """Add events to a shape, in the order of their seqs.

    Args:
        known: the rows of the shape so far.
        events: its new events. None of them was added before.
    """
    shape = _Shape(known)
    for event in sorted(events, key=lambda each: each.seq):
        shape.add(event)
    return Learned(
        shape.rows,
        frozenset(key for key, row in shape.rows.items() if known.get(key) is not row),
        tuple(
            sorted({row.id for row in known.values() if row.id is not None} - {row.id for row in shape.rows.values()})
        ),
        tuple(shape.changes[:MOST_CHANGES]),
        frozenset(shape.returned),
    )


class _Shape:
    """A shape while it learns."""

    def __init__(self, known: Mapping[Key, SeenType]) -> None:
        self.rows: dict[Key, SeenType] = dict(known)
        self.changes: list[Change] = []
        self.returned: set[Path] = set()
        self._maps: set[Path] = set()
        self._keys: Counter[Path] = Counter()
        """Keys of each object."""
        self._count()

    def add(self, event: ObservedEvent) -> None:
        """Add one event."""
        new_maps = {fold(path, self._maps) for path in event.observation.maps} - self._maps
        if new_maps:
            self._fold(new_maps)
        root = self.rows.get((ROOT, ANY))
        is_settled = root is not None and root.is_usual and event.at - root.first_at >= GRACE
        types: dict[Path, frozenset[JsonType]] = {}
        for path, of in event.observation.types.items():
            folded = fold(path, self._maps) if self._maps else path
            types[folded] = types.get(folded, frozenset()) | of
        for path, of in sorted(types.items(), key=lambda each: len(each[0])):
            self._see(path, of, event, is_settled=is_settled)
        if event.observation.is_whole:
            self._miss(types, event, is_settled=is_settled)
        if full := {path for path, keys in self._keys.items() if keys > MOST_KEYS} - self._maps:
            self._fold(full)

    def _see(self, path: Path, of: frozenset[JsonType], event: ObservedEvent, *, is_settled: bool) -> None:
        row = self.rows.get((path, ANY))
        if row is None:
            if path and ((path[:-1], ANY) not in self.rows or self._paths >= MOST_PATHS):
                return
            parent = self.rows.get((path[:-1], "object"))
            if is_settled and path and path[-1] not in {ITEM, ANY_KEY} and parent is not None and parent.is_usual:
                self.changes.append(Change("added", path, event.seq, event.at, min(of)))
            self._paths += 1
            self._keys[path[:-1]] += bool(path and path[-1] != ITEM)
        elif is_settled and row.is_usual:
            self._compare(path, of, event)
        if row is not None and row.missed >= MISSING_EVENTS:
            self.returned.add(path)
        for each in (*sorted(of), ANY):
            self.rows[path, each] = _seen_again(self.rows.get((path, each)), event)

    def _compare(self, path: Path, of: frozenset[JsonType], event: ObservedEvent) -> None:
        before = [each for each in JSON_TYPES if (path, each) in self.rows]
        if before == ["null"]:  # now it is known of which type it is
            return
        for each in sorted(of.difference(before)):
            self.changes.append(Change("type", path, event.seq, event.at, each, ", ".join(before)))

    def _miss(self, types: Mapping[Path, frozenset[JsonType]], event: ObservedEvent, *, is_settled: bool) -> None:
        for (path, of), row in list(self.rows.items()):
            if of != ANY or not path or path in types or path[-1] in {ITEM, ANY_KEY}:
                continue
            if "object" not in types.get(path[:-1], ()):
                continue
            missed = row.missed + 1
            first_seq, first_at = (row.missed_seq, row.missed_at) if row.missed else (event.seq, event.at)
            self.rows[path, ANY] = msgspec.structs.replace(
                row, absent=row.absent + 1, missed=missed, missed_seq=first_seq, missed_at=first_at
            )
            had_it_not = row.absent - row.missed
            is_expected = is_settled and row.is_usual and row.events >= NEARLY_ALL * (row.events + had_it_not)
            if missed == MISSING_EVENTS and is_expected and first_seq is not None and first_at is not None:
                usual = f"in {row.events} of {row.events + had_it_not} events"
                self.returned.discard(path)
                self.changes.append(Change("missing", path, first_seq, first_at, usual=usual))

    def _fold(self, maps: set[Path]) -> None:
        """Forget the keys of these objects: from now on they are learned as one."""
        self._maps |= maps
        self.rows = {key: row for key, row in self.rows.items() if fold(key[0], self._maps) == key[0]}
        for path in maps:
            if (path, ANY) in self.rows:
                self.rows[path, ANY] = msgspec.structs.replace(self.rows[path, ANY], is_map=True)
        self._count()

    def _count(self) -> None:
        paths = [path for path, of in self.rows if of == ANY]
        self._paths = len(paths)
        self._maps |= {path for path in paths if self.rows[path, ANY].is_map}
        self._keys = Counter(path[:-1] for path in paths if path and path[-1] != ITEM)


def _seen_again(row: SeenType | None, event: ObservedEvent) -> SeenType:
    if row is None:
        return SeenType(1, event.seq, event.at, event.seq, event.at)
    return msgspec.structs.replace(
        row, events=row.events + 1, last_seq=event.seq, last_at=event.at, missed=0, missed_seq=None, missed_at=None
    )
