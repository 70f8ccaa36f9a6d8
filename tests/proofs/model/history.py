"""The log as the model reads it: fact by fact, and what the facts of each delivery say together."""

from __future__ import annotations

from collections import defaultdict
from datetime import datetime
from typing import NamedTuple

from inbox.errors import IllegalTransition
from relay.delivery.facts import AnyFact, DeliveredFact, Superseded
from relay.delivery.lifecycle import Standing
from tests.helpers.agreement import NOTHING_YET, Folded, fold

Key = tuple[int, str]
"""seq and route of a delivery."""
LaneKey = tuple[str, str]
"""Route and lane."""


class Entry(NamedTuple):
    """A row of `delivery_log`."""

    number: int
    at: datetime
    key: Key
    run: int
    """The delivery's run before this fact."""
    standing: Standing
    """State and counts of the delivery after it."""
    relay_node: str | None
    fact: AnyFact

    @property
    def attempt(self) -> int:
        """Attempts used."""
        return self.standing.attempt


class History:
    """Every fact so far."""

    def __init__(self) -> None:
        self.last_id = 0
        self.entries: dict[Key, list[Entry]] = defaultdict(list)
        self.successes: list[Entry] = []
        """Entries among them that say `delivered`."""
        self.told: dict[Key, list[Entry]] = defaultdict(list)
        """By deliveries of sweeps' events: those of them that say that an event was superseded by it."""
        self.standing: dict[Key, Folded] = {}
        self.impossible: dict[Key, str] = {}
        """Deliveries whose facts can't have happened in this order."""

    def take_in(
        self, number: int, key: Key, fact: AnyFact, *, at: datetime, standing: Standing, relay_node: str | None
    ) -> Entry:
        """The next fact."""
        entry = Entry(number, at, key, self.standing.get(key, NOTHING_YET).run, standing, relay_node, fact)
        self.last_id = number
        self.entries[key].append(entry)
        match fact:
            case DeliveredFact():
                self.successes.append(entry)
            case Superseded(because="swept"):
                self.told[fact.by, key[1]].append(entry)
        try:
            self.standing[key] = fold((entry.fact, entry.standing) for entry in self.entries[key])
        except IllegalTransition as error:
            self.impossible[key] = str(error)
        return entry
