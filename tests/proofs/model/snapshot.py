"""One step of the model as the checks see it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property

from relay.delivery import facts
from relay.delivery.ordering import LastDelivered
from tests.proofs.model.actors import Doing, Ledger, Relay
from tests.proofs.model.history import Entry, History, Key, LaneKey
from tests.proofs.model.world import Row, Stored


class Violation(AssertionError):
    """A promise was broken; `kind` says which."""

    def __init__(self, kind: str, evidence: object) -> None:
        super().__init__(f"{kind}: {evidence}")
        self.kind = kind


@dataclass(frozen=True)
class Snapshot:
    """Stored state after a step and before it, and what was done in the step."""

    now: datetime
    earlier: Stored
    stored: Stored
    history: History
    ledger: Ledger
    relays: Sequence[Relay]
    doing: Doing

    @property
    def before(self) -> Mapping[Key, Row]:
        return self.earlier.open

    @property
    def after(self) -> Mapping[Key, Row]:
        return self.stored.open

    @property
    def new(self) -> Sequence[Entry]:
        return self.stored.new

    @cached_property
    def lasts(self) -> Mapping[LaneKey, LastDelivered]:
        """The last success of every lane that has one, as the facts have it."""
        return self._lasts(self.history.successes)

    def last_before(self, entry: Entry) -> LastDelivered | None:
        """The last success of its lane when this was written."""
        earlier = [success for success in self.history.successes if success.number < entry.number]
        return self._lasts(earlier).get(self.ledger.lanes[entry.key])

    def _lasts(self, successes: Sequence[Entry]) -> dict[LaneKey, LastDelivered]:
        """The place of the newest event that was delivered; and what was fetched last, if anything was since that one."""
        lasts: dict[LaneKey, LastDelivered] = {}
        for entry in successes:
            lane, order, fact = self.ledger.lanes[entry.key], self.ledger.order(entry.key), entry.fact
            assert isinstance(fact, facts.DeliveredFact)
            newest = max(order, lasts[lane].key) if lane in lasts else order
            if newest == order or fact.fetch_began_at is not None:
                lasts[lane] = LastDelivered(*newest, fact.fetch_began_at, fact.last_modified)
        return lasts


Check = Callable[[Snapshot], Sequence[object]]
"""Returns the evidence against what must hold: nothing is good."""
