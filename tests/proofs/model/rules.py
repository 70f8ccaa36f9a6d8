"""The rules of senders and receivers, of calls and responses, and of operators."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta

import msgspec
from hypothesis import strategies as st
from hypothesis.stateful import initialize

from inbox.events.event import Event, swept_key
from inbox.events.timestamps import to_nanoseconds
from relay.delivery.gates import Gate, GateKey, parse_entity_key
from relay.delivery.lifecycle import State
from relay.operations.asks import Selection
from tests.helpers.storing import an_event
from tests.proofs.model.actors import FAILED, FAILURES, HOPELESS, REFUSED, SKIPPED, SUCCESSES, Violation, is_swept
from tests.proofs.model.stage import WHICH, Stage, one_of, step
from tests.proofs.model.world import KEPT_REPEATS, LONG_AGO, OPEN_GATE, ROUTES, SCHEDULE

Arrival = tuple[str, int, tuple[str, ...]]
"""Entity, second and routes, few of each so that lanes fill and times collide."""

ROUTE_SETS = st.sampled_from(
    [("strict",), ("latest",), ("blocking",), ("strict", "latest"), ("strict", "blocking", "latest")]
)
ENTITIES = "ab"
SECOND = st.integers(0, 5)
ARRIVALS = st.lists(st.tuples(st.sampled_from(ENTITIES), SECOND, ROUTE_SETS), min_size=1, max_size=3)

AGES = [timedelta(seconds=seconds) for seconds in (-20, -5, -3, -2.5, 0, 1)]
"""Ages of events by second: a fetch that begins now covers the first two and, by its fraction, the fourth."""

BY_SWEEPS, LATE = {1}, {4, 5}
"""Positions among six consecutive events."""

ENOUGH, MOST = 12, 20
"""Events of a run; more would make it longer, not harder."""


class Receiving(Stage):
    """Rules of the receiver."""

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
            return  # it would wait for that commit
        self.make.doing.arrivals += 1
        seqs = self.world.receiver.append(event)
        known = [seq for seq, there in self.ledger.events.items() if there is event]
        if not known:
            self.acknowledge([event], seqs)  # it was lost with its receiver
        elif seqs != [None] or [self.world.receiver.repeat(event)] != known:
            raise Violation("a duplicate request is another event", (event, seqs))
        else:
            self.ledger.note_duplicate(known[0])
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
        return [self.new_event(*arrival) for arrival in arrivals]

    def new_event(self, entity: str, second: int, routes: Sequence[str]) -> Event:
        """Make an event with a unique key, ordered by its second.

        Some are from sweeps, and some are late webhooks of the last change found by a sweep.
        """
        number = len(self.sent)
        occurred_at = max(self.world.clock.now + AGES[second], LONG_AGO)
        key = f"{second}|{entity}|{number}"
        swept = swept_key("USER", entity, to_nanoseconds(occurred_at))
        of_sweeps = [event for event in self.sent if is_swept(event)]
        if number % 6 in BY_SWEEPS and not any(event.dedup_key == swept for event in of_sweeps):
            key = swept
        elif number % 6 in LATE and of_sweeps:
            entity, occurred_at = of_sweeps[-1].entity_id or "", of_sweeps[-1].occurred_at
            routes = [enrolment.route for enrolment in of_sweeps[-1].enrolments]
        event = msgspec.structs.replace(
            an_event(number, entity, routes=routes),
            dedup_key=key,
            occurred_at=occurred_at,
            received_at=self.world.clock.now,
        )
        self.sent.append(event)
        return event

    def acknowledge(self, events: Sequence[Event], seqs: Sequence[int | None]) -> None:
        for event, seq in zip(events, seqs, strict=True):
            if seq is None:
                raise Violation("a new event was refused", event)
            self.ledger.acknowledge(seq, event)


class Calling(Receiving):
    """Rules of calls."""

    @step(lambda self: self.list_untouched(), which=WHICH)
    def call(self, which: int) -> None:
        self.begin(*one_of(self.list_untouched(), which))

    @step(lambda self: self.list_calls(), which=WHICH, outcome=st.sampled_from(SUCCESSES))
    def succeeds(self, which: int, outcome: str) -> None:
        self.answer(which, outcome)

    @step(lambda self: self.list_calls(), which=WHICH, outcome=st.sampled_from(FAILURES))
    def fail(self, which: int, outcome: str) -> None:
        self.answer(which, outcome)

    @step(lambda self: self.list_calls(), which=WHICH, outcome=st.sampled_from(FAILURES))
    def fail_again_and_again(self, which: int, outcome: str) -> None:
        """Repeat a failure until the delivery dies or another event intervenes."""
        relay, held = one_of(self.list_calls(), which)
        key = held.key
        for _ in range(len(SCHEDULE) + 1):
            self.end(relay, held, outcome)
            self.let(relay, "record")
            self.everything_holds()
            if key not in self.open or self.open[key].state is not State.READY:
                break
            self.advance(self.next_due())
            self.perform(self.make.claim(relay, [key[1]], 2))
            self.everything_holds()
            again = [each for each in relay.list_untouched() if each.key == key]
            if not again:
                break
            held = again[-1]

    @step(lambda self: self.list_calls(), which=WHICH)
    def fail_hopelessly(self, which: int) -> None:
        self.answer(which, HOPELESS)

    @step(lambda self: self.list_calls() and not self.list_stopped_gates(), which=WHICH)
    def refuse_credentials(self, which: int) -> None:
        """Record refused credentials at once, so that all relays stop."""
        self.answer(which, REFUSED)
        for relay in self.with_("record"):
            self.let(relay, "record")

    @step(
        lambda self: self.active() and self.list_stopped_gates(),
        which=WHICH,
        number=WHICH,
        outcome=st.sampled_from([*SUCCESSES, FAILED, REFUSED]),
    )
    def try_a_breaker(self, which: int, number: int, outcome: str) -> None:
        """Probe a breaker, mostly when it is due."""
        relay = one_of(self.active(), which)
        if number % 4:
            self.advance(self.next_due())
        self.let(relay, "probe", number)
        self.everything_holds()
        if number % 2:
            for held in self.beginnable(relay):
                self.end(relay, held, outcome)
            self.let(relay, "record")

    @step(lambda self: self.list_calls(), trouble=True, which=WHICH)
    def skip(self, which: int) -> None:
        self.answer(which, SKIPPED)

    @step(
        lambda self: self.active() and self.lanes_in_latest() and len(self.sent) < MOST,
        which=WHICH,
        number=WHICH,
        outcome=st.sampled_from(SUCCESSES),
        second=SECOND,
    )
    def follow_up(self, which: int, number: int, outcome: str, second: int) -> None:
        """Receive another event, new or late, of a lane with a success or a death, and deliver it if needed."""
        relay = one_of(self.active(), which)
        self.arrive([(one_of(self.lanes_in_latest(), number), second, ("latest",))])
        self.let(relay, "sequence all")
        self.everything_holds()
        self.let(relay, "claim", ROUTES.index("latest"))
        for held in self.beginnable(relay):
            self.end(relay, held, outcome)
        self.let(relay, "record")


GATES = (
    Gate(route="strict"),
    Gate(route="latest"),
    Gate(destination="audit"),
    Gate(source="trivore"),
    Gate(source="trivore", entity_type="USER", entity_id="a"),
    Gate(source="trivore", entity_type="USER", entity_id="b"),
)


class Commanding(Stage):
    """Rules of operators."""

    @step(lambda self: self.dead(), trouble=True, which=WHICH, force=st.booleans())
    def replay_the_dead(self, which: int, force: bool) -> None:
        """Replay all dead deliveries of a route."""
        self.perform(self.make.command("replay", Selection(route=one_of(self.dead(), which)[1], force=force)))

    @step(lambda self: self.list_closed(), trouble=True, which=WHICH, force=st.booleans())
    def replay_an_event(self, which: int, force: bool) -> None:
        """Replay an event on all routes where it has ended or is dead."""
        self.perform(self.make.command("replay", Selection(seq=one_of(self.list_closed(), which), force=force)))

    @step(
        lambda self: self.cancellable(),
        trouble=True,
        which=WHICH,
        cause=st.sampled_from(["", "", "mapping", "exhausted", "rejected"]),
    )
    def cancel(self, which: int, cause: str) -> None:
        """Cancel an event on one or all routes, or all dead deliveries of a route by cause."""
        seq, route = one_of((self.dead() if cause else None) or self.cancellable(), which)
        if cause:
            self.perform(self.make.command("cancel", Selection(route=route, cause=cause)))
        else:
            self.perform(self.make.command("cancel", Selection(seq=seq, route=route if which % 2 else None)))

    @step(lambda self: self.any_open(State.BLOCKED), which=WHICH)
    def unblock(self, which: int) -> None:
        seq, route = one_of([key for key, row in self.open.items() if row.state is State.BLOCKED], which)
        self.perform(self.make.command("unblock", Selection(seq=seq, route=route)))

    @step(lambda self: self.due_later(), which=WHICH, by=st.sampled_from(["seq", "route", "destination"]))
    def retry(self, which: int, by: str) -> None:
        """Make one delivery, a route or a destination due at once."""
        seq, route = one_of(self.due_later(), which)
        chosen = {
            "seq": Selection(seq=seq, route=route),
            "route": Selection(route=route),
            "destination": Selection(destination="audit"),
        }
        self.perform(self.make.command("retry", chosen[by]))

    @step(
        lambda self: self.any_open(State.READY) and not self.list_paused_gates(),
        trouble=True,
        gate=st.sampled_from(GATES),
    )
    def hold_back(self, gate: Gate) -> None:
        self.perform(self.make.turn("pause", gate))
        self.everything_holds()
        if not self.stored.gates.get(gate.key, OPEN_GATE).is_paused:
            raise Violation("a pause does not hold", gate)

    @step(lambda self: self.list_paused_gates() or self.list_stopped_gates(), which=WHICH)
    def let_through(self, which: int) -> None:
        """Resume a paused gate, or else close a breaker."""
        self.perform(
            self.make.turn("resume", gate_of(one_of(self.list_paused_gates() or self.list_stopped_gates(), which)))
        )

    @step(trouble=True, repairs=st.booleans())
    def verify(self, repairs: bool) -> None:
        self.perform(self.make.rebuild() if repairs else self.make.verify())


def gate_of(key: GateKey) -> Gate:
    """Return the gate of a row, as operators name it."""
    kind, name = key
    if kind == "entity" and (entity := parse_entity_key(name)):
        source, entity_type, entity_id = entity
        return Gate(source=source, entity_type=entity_type, entity_id=entity_id)
    return Gate(**{kind: name})
