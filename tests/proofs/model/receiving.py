"""Actions of senders and receivers in the model."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from datetime import timedelta

from hypothesis import strategies as st
from hypothesis.stateful import initialize

from inbox.events.event import Enrolment, Event, swept_key
from inbox.events.timestamps import to_nanoseconds
from tests.proofs.model.actors import is_swept
from tests.proofs.model.receiver import KEPT_REPEATS
from tests.proofs.model.snapshot import Violation
from tests.proofs.model.stage import WHICH, Stage, one_of, step
from tests.proofs.model.world import LONG_AGO

Arrival = tuple[str, int, tuple[str, ...]]
"""Entity, second and routes: few of each, so that lanes fill and instants collide."""

ROUTE_SETS = st.sampled_from(
    [("strict",), ("latest",), ("blocking",), ("strict", "latest"), ("strict", "blocking", "latest")]
)
ENTITIES = "ab"
SECOND = st.integers(0, 5)
ARRIVALS = st.lists(st.tuples(st.sampled_from(ENTITIES), SECOND, ROUTE_SETS), min_size=1, max_size=3)

AGES = [timedelta(seconds=seconds) for seconds in (-20, -5, -3, -2.5, 0, 1)]
"""Age of an event of each second: a fetch that begins now covers the first two and, by its fraction, the fourth."""

BY_SWEEPS, LATE = {1}, {4, 5}
"""Of six events one after the other."""

ENOUGH, MOST = 12, 20
"""Events of a run: more would make it longer, not harder."""


class Receiving(Stage):
    """The rules of the receiver's side."""

    @initialize(arrivals=ARRIVALS)
    def begin_with_some(self, arrivals: list[Arrival]) -> None:
        for relay in self.relays:
            self.perform(self.make.start(relay))
        self.receive(arrivals=arrivals)

    @step(lambda self: len(self.sent) < ENOUGH, arrivals=ARRIVALS)
    def receive(self, arrivals: list[Arrival]) -> None:
        self.arrive(arrivals)

    def arrive(self, arrivals: Sequence[Arrival]) -> None:
        events = self.events_of(arrivals)
        self.make.doing.arrivals += 1
        self.acknowledge(events, self.world.receiver.append(*events))

    @step(lambda self: self.sent, trouble=True, which=WHICH)
    def repeat(self, which: int) -> None:
        event = one_of(self.sent, which)
        if any(event in held.events for held in self.uncommitted):
            return  # the database would let it wait for that commit
        self.make.doing.arrivals += 1
        seqs = self.world.receiver.append(event)
        known = [seq for seq, there in self.ledger.events.items() if there is event]
        if not known:
            self.acknowledge([event], seqs)  # it had died with its receiver
        elif seqs != [None] or [self.world.receiver.repeat(event)] != known:
            raise Violation("a duplicate request is another event", (event, seqs))
        else:
            self.ledger.repeated(known[0])
            self.evidence.sometimes["repeat refused"] += 1
            self.evidence.sometimes["repeat only counted"] += self.ledger.repeats[known[0]] > KEPT_REPEATS

    @step(lambda self: self.world.commits_out_of_order and len(self.sent) < ENOUGH, arrivals=ARRIVALS)
    def receive_and_commit_later(self, arrivals: list[Arrival]) -> None:
        self.make.doing.arrivals += 1
        self.uncommitted.append(self.world.receiver.hold(*self.events_of(arrivals)))

    @step(lambda self: self.uncommitted, which=WHICH)
    def commit(self, which: int) -> None:
        self.commit_one(which % len(self.uncommitted))

    def commit_one(self, index: int) -> None:
        held = self.uncommitted.pop(index)
        self.make.doing.arrivals += 1
        self.world.receiver.commit(held)
        seqs = [seq for seq in held.seqs if seq is not None]
        self.evidence.sometimes["committed out of order"] += min(seqs) < max(self.ledger.events, default=0)
        self.acknowledge(held.events, held.seqs)

    @step(lambda self: self.uncommitted, trouble=True, which=WHICH)
    def die_before_the_commit(self, which: int) -> None:
        self.make.doing.arrivals += 1
        self.world.receiver.roll_back(self.uncommitted.pop(which % len(self.uncommitted)))

    def events_of(self, arrivals: Sequence[Arrival]) -> list[Event]:
        return [self.an_event(*arrival) for arrival in arrivals]

    def an_event(self, entity: str, second: int, routes: Sequence[str]) -> Event:
        """A new one: its number makes its key its own, its second its place in its lanes.

        Some are of sweeps, and some the late webhook of the change that a sweep has found last.
        """
        number = len(self.sent)
        body = b"%d" % number
        occurred_at = max(self.world.clock.now + AGES[second], LONG_AGO)
        key = f"{second}|{entity}|{number}"
        swept = swept_key("USER", entity, to_nanoseconds(occurred_at))
        of_sweeps = [event for event in self.sent if is_swept(event)]
        if number % 6 in BY_SWEEPS and not any(event.dedup_key == swept for event in of_sweeps):
            key = swept
        elif number % 6 in LATE and of_sweeps:
            entity, occurred_at = of_sweeps[-1].entity_id or "", of_sweeps[-1].occurred_at
            routes = [enrolment.route for enrolment in of_sweeps[-1].enrolments]
        event = Event(
            source="trivore",
            dedup_key=key,
            entity_type="USER",
            entity_id=entity,
            event_type="UPDATE",
            action="update",
            event_id=None,
            occurred_at=occurred_at,
            received_at=self.world.clock.now,
            enrolments=tuple(Enrolment(route, f"USER|{entity}") for route in routes),
            headers={},
            content_type="application/json",
            body=body,
            body_sha256=hashlib.sha256(body).digest(),
        )
        self.sent.append(event)
        return event

    def acknowledge(self, events: Sequence[Event], seqs: Sequence[int | None]) -> None:
        for event, seq in zip(events, seqs, strict=True):
            if seq is None:
                raise Violation("a new event was refused", event)
            self.ledger.acknowledge(seq, event)
