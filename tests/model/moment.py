"""One step of the model as the checks see it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from tests.model.actors import Doing, Ledger, Relay
from tests.model.history import Entry, History, Key
from tests.model.world import Row, Stored


class Violation(AssertionError):
    """A promise was broken; `kind` says which."""

    def __init__(self, kind: str, evidence: object) -> None:
        super().__init__(f"{kind}: {evidence}")
        self.kind = kind


@dataclass(frozen=True)
class Moment:
    """What is stored after a step, what was before, and what was done in it."""

    now: datetime
    before: Mapping[Key, Row]
    stored: Stored
    history: History
    ledger: Ledger
    relays: Sequence[Relay]
    doing: Doing

    @property
    def after(self) -> Mapping[Key, Row]:
        return self.stored.open

    @property
    def new(self) -> Sequence[Entry]:
        return self.stored.new


Check = Callable[[Moment], Sequence[object]]
"""Returns the evidence against what must hold: nothing is good."""
