"""Runs a comparison over the stored events: reads them page by page, compares each, and sums the differences up."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing

import msgspec

from inbox.config.model import Config
from relay.comparison.compare import Comparison, RoutedEvent
from relay.comparison.differences import ConfigDifference, Counts, Groups
from relay.comparison.fetching import EntityComparison, differences
from relay.comparison.lanes import SeenKeys
from relay.comparison.reading import Arrived, Payload
from relay.comparison.settings import other_settings
from relay.store import arrived
from relay.store.arrived import ArrivalFilter
from relay.store.database import Database

_ENTITIES = 50
"""Entities that are mapped together."""


class Result(msgspec.Struct, frozen=True):
    """The differences between two configurations over some events."""

    counts: Counts
    groups: Groups
    other_settings: tuple[str, ...]
    """Keys that differ and change neither routes, nor lanes, nor requests."""


class PlanOptions(msgspec.Struct, frozen=True, kw_only=True):
    """The events to compare, and how."""

    events: ArrivalFilter = ArrivalFilter()
    route: str | None = None
    limit: int | None = None
    """The newest so many events."""
    fetches: bool = False
    """Entities are fetched, found and mapped under both configurations."""


class ConfigComparison:
    """Compares two configurations over the events of a database."""

    def __init__(self, database: Database, configs: tuple[Config, Config], options: PlanOptions) -> None:
        """Compile both configurations: today's, and the new one.

        Raises:
            ConfigError: something in one of them can't be used. The text has a line for each mistake.
        """
        self._database = database
        self._options = options
        self._others = tuple(other_settings(*configs))
        self._comparison = Comparison(*configs, fetches=options.fetches, only_route=options.route)
        fetched = {pair.name for pair in self._comparison.route_pairs if pair.fetches}
        self._entities = EntityComparison(*configs, fetched) if fetched else None
        self._groups = Groups()

    def run(self, progress: Callable[[int], object]) -> Result:
        """Compare the events, the newest first. `progress` hears of the number down to which they are compared."""
        with SeenKeys() as seen:
            if self._entities is None:
                self._compare(seen, progress)
            else:
                with closing(self._entities):
                    self._compare(seen, progress)
            for change in seen.lane_changes():
                self._groups.add(ConfigDifference(change.kind, change.seq, change.source, change.route), change.lanes)
        return Result(self._comparison.counts, self._groups, self._others)

    def _compare(self, seen: SeenKeys, progress: Callable[[int], object]) -> None:
        first, last = arrived.bounds(self._database, self._options.events.since)
        left = self._options.limit
        for page in arrived.newest_first(self._database, self._options.events, first, last):
            for seq in page.unreadable:
                self._comparison.counts.unreadable.add(seq)
            events = [Arrived(**row) for row in page.rows[:left]]
            self._compare_page(events, seen)
            progress(page.down_to)
            if left is not None:
                left -= len(events)
                if left <= 0:
                    return

    def _compare_page(self, events: Sequence[Arrived], seen: SeenKeys) -> None:
        waiting: list[RoutedEvent] = []
        for some in self._with_payloads(events):
            for event, payload in some:
                for found in self._compare_one(event, payload, seen):
                    if isinstance(found, ConfigDifference):
                        self._groups.add(found)
                    elif _is_newest(found, seen):
                        waiting.append(found)
                if len(waiting) >= _ENTITIES:
                    self._map(waiting)
                    waiting.clear()
            self._map(waiting)  # before further bodies are read
            waiting.clear()

    def _compare_one(
        self, event: Arrived, payload: Payload | None, seen: SeenKeys
    ) -> Sequence[ConfigDifference | RoutedEvent]:
        try:
            return [*self._comparison.compare(event, payload, seen)]
        except sqlite3.Error:  # of `seen`
            raise
        except Exception:  # noqa: BLE001  # one value that nothing expects must not hide all other events
            self._comparison.counts.unreadable.add(event.seq)
            return ()

    def _with_payloads(self, events: Sequence[Arrived]) -> Iterator[Iterator[tuple[Arrived, Payload | None]]]:
        """Yield the events in parts and in their order, each with its payload where it needs one and there is one."""
        needing = [event for event in events if self._comparison.needs_payload(event)]
        at = done = 0
        for number, found in arrived.payloads(self._database, [(event.seq, event.body_bytes) for event in needing]):
            at += number
            end = events.index(needing[at - 1], done) + 1
            yield _paired(events[done:end], found)
            done = end
        yield _paired(events[done:], {})

    def _map(self, events: Sequence[RoutedEvent]) -> None:
        if not events or self._entities is None:
            return
        with self._database.read() as transaction:
            hashes = arrived.applied_hashes(
                transaction, [(each.old.route, each.old.lane) for each in events if each.old]
            )
        for found in self._entities.map(events):
            lane = None if found.event.old is None else (found.event.old.route, found.event.old.lane)
            applied = None if lane is None else hashes.get(lane)
            for difference in differences(found, applied, self._comparison.counts):
                self._groups.add(difference)


def _is_newest(found: RoutedEvent, seen: SeenKeys) -> bool:
    """Return True for the first event that is seen of its entity on a route: the newest, as events come in this order."""
    event = found.new
    return event.entity_id is not None and seen.first(
        "entity", event.route, event.source, event.entity_type, event.entity_id
    )


def _paired(events: Sequence[Arrived], found: arrived.Payloads) -> Iterator[tuple[Arrived, Payload | None]]:
    return ((event, Payload(*found[event.seq]) if event.seq in found else None) for event in events)
