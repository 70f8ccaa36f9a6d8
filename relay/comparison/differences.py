"""Differences between two configurations, found event by event and summed up by kind. Pure; its memory is bounded."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Literal

import msgspec

from relay.sync.expressions import encode

Kind = Literal[
    "rejected",  # the new configuration would answer an error
    "accepted",  # today's configuration would
    "event",  # a field of the event is read otherwise: name, before, after
    "duplicate",  # two events of today would be one
    "added",  # a route takes it that did not
    "removed",  # a route no longer takes it
    "lane",  # its lane on the route is another
    "split",  # lanes whose events lose their common order
    "merge",  # lanes whose events wait for each other
    "setting",  # a setting of its route differs: name, before, after
    "value",  # a part of the request differs: name, before, after
    "change",  # another change would be made to the counterpart
    "fails",  # the new configuration finds no value for a part
    "works",  # today's configuration finds none
]
_MOST_GROUPS = 200
"""Groups of one kind on one route; further ones are counted together."""
_LONGEST = 500
"""Characters of a value that is shown."""
OTHERS = "others"


class ConfigDifference(msgspec.Struct, frozen=True):
    """One difference in what becomes of one event."""

    kind: Kind
    seq: int
    source: str | None
    route: str | None = None
    name: str | None = None
    """The key of the configuration, or the field of the event, where it shows."""
    before: Any = None
    after: Any = None
    why: str | None = None


class Noted(msgspec.Struct):
    """A number of events, and the newest of them."""

    count: int = 0
    seq: int | None = None

    def add(self, seq: int) -> None:
        """Count an event."""
        self.count += 1
        self.seq = seq if self.seq is None else max(self.seq, seq)


def _none() -> Any:  # noqa: ANN401  # msgspec takes no other default that changes
    return msgspec.field(default_factory=Noted)


class Counts(msgspec.Struct):
    """Events of a comparison, besides the differences."""

    events: int = 0
    without_payload: Noted = _none()
    """Their payload was needed and is gone: compared by the columns of inbox alone."""
    stored_otherwise: Noted = _none()
    """Today's configuration reads or routes them otherwise than the one under which they arrived."""
    not_read_again: Noted = _none()
    """Neither configuration reads them from what is stored of the request: compared by the columns of inbox alone."""
    fails_in_both: Noted = _none()
    """A part has no value under either."""
    unreadable: Noted = _none()
    """Rows that can't be read, or with values that can't be compared."""
    entities: int = 0
    """With fetching: entities that were mapped under both."""
    not_mapped: Noted = _none()
    """With fetching: entities that could be fetched, found and mapped under neither."""
    hash_agrees: int = 0
    """With fetching: entities whose fields, mapped as today, have the hash of what was sent last."""
    hash_differs: Noted = _none()
    """With fetching: entities where they have another."""


class DifferenceGroup(msgspec.Struct):
    """Equal differences of many events, with the values of the newest."""

    kind: Kind
    source: str | None
    route: str | None
    name: str | None
    count: int
    """Events; of a split or merge, lanes."""
    first_seq: int
    last_seq: int
    before: Any
    after: Any
    why: str | None


class Groups:
    """Sums differences up. Events come the newest first."""

    def __init__(self) -> None:
        self._groups: dict[tuple[str | None, ...], DifferenceGroup] = {}
        self._sizes: dict[tuple[str | None, ...], int] = {}

    def add(self, found: ConfigDifference, count: int = 1) -> None:
        """Count a difference among those with the same kind, route, name and reason."""
        place = (found.source, found.route, found.kind)
        key = (*place, found.name, found.why)
        if key not in self._groups and self._sizes.get(place, 0) >= _MOST_GROUPS:
            found = msgspec.structs.replace(found, name=OTHERS, before=None, after=None, why=None)
            key = (*place, OTHERS, None)
        group = self._groups.get(key)
        if group is None:
            self._sizes[place] = self._sizes.get(place, 0) + 1
            self._groups[key] = DifferenceGroup(
                found.kind,
                found.source,
                found.route,
                found.name,
                count,
                found.seq,
                found.seq,
                short(found.before),
                short(found.after),
                short(found.why),
            )
            return
        group.count += count
        group.first_seq = min(group.first_seq, found.seq)
        group.last_seq = max(group.last_seq, found.seq)

    def __len__(self) -> int:
        return len(self._groups)

    def in_order(self) -> Iterable[DifferenceGroup]:
        """Return the groups by source, route, and the order of the kinds."""
        order: Mapping[str, int] = {kind: at for at, kind in enumerate(Kind.__args__)}  # type: ignore[attr-defined]
        return sorted(
            self._groups.values(),
            key=lambda group: (
                group.source or "",
                group.route or "",
                order[group.kind],
                group.name or "",
                -group.count,
            ),
        )


def short(value: Any) -> Any:  # noqa: ANN401  # any JSON
    """Return a value; a long one as the beginning of its text or JSON."""
    text = value if isinstance(value, str) else encode(value).decode("utf-8", "replace")
    return value if len(text) <= _LONGEST else f"{text[:_LONGEST]}…"
