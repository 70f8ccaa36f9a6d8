"""The relays and the downstream service as the model plays them: what each relay believes, and every call that was made."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import NamedTuple

from inbox.event import Event
from relay.audit import Difference
from relay.leases import TRUSTED_SECONDS, claim_of
from relay.outcome import Delivered, Delivery, Failed, Outcome, Skipped
from relay.store.claim import Claimed
from relay.store.record import Recorded
from tests.model.history import Key, LaneKey

TRUSTED = timedelta(seconds=TRUSTED_SECONDS)

SUCCEEDED = Delivered((), "forwarded")
FAILED = Failed((), "server_error", "answered 503")
HOPELESS = Failed((), "mapping", "email: no value")
TIMED_OUT = Failed((), "unknown", "no answer in time")
CUT = Failed((), "lease_lost", "the lease ended")
SKIPPED = Skipped((), "nothing to do")


class Call(NamedTuple):
    """One call that reached the downstream service."""

    key: Key
    run: int
    attempt: int
    node: str


@dataclass(eq=False)
class Held:
    """A claimed delivery in a relay's hands."""

    delivery: Delivery
    trusted_until: datetime
    begun: bool = False
    outcome: Outcome | None = None
    is_handed_in: bool = False
    """It may be recorded, whether or not the relay knows."""

    @property
    def key(self) -> Key:
        return (self.delivery.seq, self.delivery.route)

    @property
    def lane(self) -> LaneKey:
        return (self.delivery.route, self.delivery.lane)


class Relay:
    """One relay process after the other, under fresh ids; what the present one has in memory."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.starts = 0
        self.restart()

    def restart(self) -> None:
        """Die, and begin again knowing nothing."""
        self.starts += 1
        self.node = f"{self.name}.{self.starts}"
        self.paused = False
        self.held: dict[Claimed, Held] = {}
        self.recorded: list[Held] = []
        """What it handed in last and knows to be recorded, or refused."""

    def was_granted(self, delivery: Delivery, asked_at: datetime) -> None:
        self.held[claim_of(delivery)] = Held(delivery, asked_at + TRUSTED)

    def was_renewed(self, claimed: Claimed, asked_at: datetime) -> None:
        if claimed in self.held:
            self.held[claimed].trusted_until = asked_at + TRUSTED

    def forget(self, recorded: Iterable[Held]) -> None:
        for held in recorded:
            self.held.pop(claim_of(held.delivery), None)

    def untouched(self) -> list[Held]:
        """What nobody has begun; it may be begun while its lease is trusted."""
        return [held for held in self.held.values() if not held.begun]

    def running(self) -> list[Held]:
        """Calls whose answer is not there yet."""
        return [held for held in self.held.values() if held.begun and held.outcome is None]

    def finished(self) -> list[Held]:
        """What it has to record."""
        return [held for held in self.held.values() if held.outcome is not None]

    def cut(self, now: datetime) -> None:
        """What a relay does when time has passed: no call goes on under a lease that is not trusted any more."""
        for held in self.running():
            if now >= held.trusted_until:
                held.outcome = CUT


@dataclass
class Doing:
    """What happened in one step of the model."""

    claimed: list[Delivery] = field(default_factory=list)
    handed_in: list[tuple[str, Delivery, Outcome]] = field(default_factory=list)
    """Outcomes that were handed in to be recorded, by which node."""
    results: list[Recorded] = field(default_factory=list)
    calls: list[Call] = field(default_factory=list)
    replayed: set[Key] = field(default_factory=set)
    differences: list[Difference] = field(default_factory=list)
    """What `verify` or `rebuild` found."""
    operations: int = 0


class Ledger:
    """What really happened, which no relay knows all of."""

    def __init__(self) -> None:
        self.step = 0
        self.events: dict[int, Event] = {}
        """Those that were acknowledged."""
        self.lanes: dict[Key, LaneKey] = {}
        """Every delivery there has to be."""
        self.ordered: dict[Key, int] = {}
        """In which step each was first seen in its lane."""
        self.claimed: dict[Key, int] = {}
        """In which step each was first claimed, before any replay."""
        self.calls: dict[Key, list[Call]] = defaultdict(list)
        self.heartbeats: dict[str, datetime] = {}

    def acknowledge(self, seq: int, event: Event) -> None:
        self.events[seq] = event
        for enrolment in event.enrolments:
            self.lanes[seq, enrolment.route] = (enrolment.route, enrolment.lane)

    def order(self, key: Key) -> tuple[datetime, int]:
        """A lane is worked in the order of this."""
        return (self.events[key[0]].occurred_at, key[0])

    def call(self, call: Call) -> None:
        self.calls[call.key].append(call)
