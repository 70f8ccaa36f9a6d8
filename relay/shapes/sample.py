"""Chooses the events to learn from, so that no source and no event type takes the turn of another. Pure."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from datetime import datetime

import msgspec

MOST_TYPES = 100
"""Event types of a source that have a shape of their own."""
LONGEST_TYPE = 200
OTHER_TYPES = "*"
"""Stands for all other event types of a source."""


class Candidate(msgspec.Struct, frozen=True):
    """An event that may be learned."""

    seq: int
    source: str
    event_type: str
    at: datetime
    entity_id: str | None
    content_type: str


def choose(candidates: Iterable[Candidate], most: int) -> list[Candidate]:
    """Choose at most so many: one of each source in turn, and of each source one of each event type in turn."""
    sources: defaultdict[str, defaultdict[str, list[Candidate]]] = defaultdict(lambda: defaultdict(list))
    for each in candidates:
        sources[each.source][each.event_type].append(each)
    queues = [list(_in_turn(list(types.values()))) for types in sources.values()]
    return sorted(list(_in_turn(queues))[:most], key=lambda each: each.seq)


def _in_turn(queues: list[list[Candidate]]) -> Iterable[Candidate]:
    longest = max(map(len, queues), default=0)
    for at in range(longest):
        queues = [queue for queue in queues if len(queue) > at]
        yield from (queue[at] for queue in queues)


def bound_types(chosen: Iterable[Candidate], known: Mapping[str, set[str]]) -> list[Candidate]:
    """Replace the event types that a source has too many of, and very long ones, by `OTHER_TYPES`.

    Args:
        chosen: the events to learn from.
        known: the event types of each source that have a shape already.
    """
    types = defaultdict(set, {source: set(of) for source, of in known.items()})
    bounded = []
    for each in chosen:
        mine = types[each.source]
        if each.event_type not in mine:
            if len(mine) >= MOST_TYPES or len(each.event_type) > LONGEST_TYPE:
                bounded.append(msgspec.structs.replace(each, event_type=OTHER_TYPES))
                continue
            mine.add(each.event_type)
        bounded.append(each)
    return bounded
