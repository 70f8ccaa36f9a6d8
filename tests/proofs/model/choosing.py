"""Choices that are possible at a point of a run."""

from __future__ import annotations

from collections.abc import Callable

from inbox.events.states import SUSPECT_CRASHES
from relay.delivery.gates import BreakerState, GateKey
from relay.delivery.lifecycle import State
from relay.delivery.outcome import Failed
from relay.operations.asks import Selection
from tests.proofs.model.actors import Held, Relay
from tests.proofs.model.history import Key
from tests.proofs.model.operations import Operation
from tests.proofs.model.stage import Stage, beginning_at, one_of, some_of
from tests.proofs.model.world import ROUTES

ALL = 500
"""More than there is."""


class Choosing(Stage):
    """Choices from what relays have in hand, and what they can do with it; the numbers say how much, or which."""

    def can(self, relay: Relay, kind: str) -> bool:
        """Return whether the relay has anything in hand for this operation."""
        conditions: dict[str, Callable[[], object]] = {
            "record": relay.finished,
            "give_back": relay.untouched,
            "renew": lambda: relay.held,
            "replay": self.closed,
            "cancel": self.cancellable,
            "unblock": lambda: self.any_open(State.BLOCKED),
            "retry": self.due_later,
            "probe": self.stopped_gates,
            "judge": self.any_to_judge,
        }
        return kind not in conditions or bool(conditions[kind]())

    def with_(self, kind: str) -> list[Relay]:
        """Relays that can."""
        return [relay for relay in self.active() if self.can(relay, kind)]

    def operation(self, relay: Relay, kind: str, number: int = 0, *, answered: bool = True) -> Operation:
        """One that the relay can do."""
        make = self.make
        made: dict[str, Callable[[], Operation]] = {
            "sequence": lambda: make.sequence(relay, self.rows_of_events(1 + number % 3)),
            "sequence all": lambda: make.sequence(relay, ALL),
            "sequence by the old": lambda: make.sequence_by_the_old(relay),
            "claim": lambda: make.claim(relay, beginning_at(ROUTES, number), 1 + number % 4, answered=answered),
            "reap": lambda: make.reap(relay),
            "record": lambda: make.record(relay, some_of(relay.finished(), number), answered=answered),
            "give_back": lambda: make.give_back(relay, some_of(relay.untouched(), number)),
            "renew": lambda: make.renew(relay, some_of(list(relay.held.values()), number), answered=answered),
            "probe": lambda: make.probe(relay, beginning_at(ROUTES, number)),
            "judge": lambda: make.judge(relay),
            "replay": lambda: make.command("replay", Selection(seq=one_of(self.closed(), number))),
            "cancel": lambda: make.command("cancel", Selection(seq=one_of(self.cancellable(), number)[0])),
            "unblock": lambda: make.command("unblock", Selection(route="blocking")),
            "retry": lambda: make.command("retry", Selection(everything=True)),
            "verify": make.verify,
            "rebuild": make.rebuild,
        }
        return made[kind]()

    def let(self, relay: Relay, kind: str, number: int = 0, *, answered: bool = True) -> None:
        """Have it done, if the relay can."""
        if self.can(relay, kind):
            self.perform(self.operation(relay, kind, number, answered=answered))
        if kind == "record" and any(isinstance(held.outcome, Failed) for held in relay.recorded):
            self.perform(self.make.look_at_gates(relay))

    def rows_of_events(self, most: int) -> int:
        """Count the deliveries of the first events that arrived: a batch that cut one in two might cut it anywhere."""
        received = [row.seq for row in self.open.values() if row.state is State.RECEIVED]
        return sum(seq in sorted(set(received))[:most] for seq in received) or 1

    def any_open(self, state: State) -> bool:
        return any(row.state is state for row in self.open.values())

    def beginnable(self, relay: Relay) -> list[Held]:
        return [held for held in relay.untouched() if self.world.clock.now < held.trusted_until]

    def untouched(self) -> list[tuple[Relay, Held]]:
        return [(relay, held) for relay in self.active() for held in self.beginnable(relay)]

    def at_work(self) -> list[tuple[Relay, Held]]:
        """Calls that run, and those that may be begun."""
        return [(relay, held) for relay in self.active() for held in relay.running()] + self.untouched()

    def answer(self, which: int, outcome: str) -> None:
        self.end(*one_of(self.at_work(), which), outcome)

    def end(self, relay: Relay, held: Held, outcome: str) -> None:
        """A call that runs, or is begun now, is answered."""
        if held.begun_at is None:
            self.begin(relay, held)
        held.answered(outcome)

    def closed(self) -> list[int]:
        """Events that may be replayed on some route."""
        still_open = {key for key, row in self.open.items() if row.state is not State.DEAD}
        return sorted({seq for seq, _ in self.ledger.lanes.keys() - still_open})

    def cancellable(self) -> list[Key]:
        return [key for key, row in self.open.items() if row.state is not State.IN_FLIGHT]

    def due_later(self) -> list[Key]:
        """Deliveries whose next attempt waits."""
        now = self.world.clock.now
        return [key for key, row in self.open.items() if row.due_at is not None and row.due_at > now]

    def paused_gates(self) -> list[GateKey]:
        return sorted(key for key, row in self.stored.gates.items() if row.is_paused)

    def stopped_gates(self) -> list[GateKey]:
        """List the gates whose breaker is not closed."""
        return sorted(key for key, row in self.stored.gates.items() if row.breaker is not BreakerState.CLOSED)

    def any_late(self) -> bool:
        """Return whether anything has arrived on the route in `latest` that is no newer than the last delivered."""
        return any(
            row.occurred_at <= self.stored.lanes[row.route, row.lane].occurred_at
            for row in self.open.values()
            if (row.route, row.state) == ("latest", State.RECEIVED) and (row.route, row.lane) in self.stored.lanes
        )

    def lanes_in_latest(self) -> list[str]:
        """The entities of which an event has succeeded or died on the route in `latest`."""
        known = {lane for route, lane in self.stored.lanes if route == "latest"}
        known |= {row.lane for row in self.open.values() if row.route == "latest" and row.state is State.DEAD}
        return sorted(lane.removeprefix("USER|") for lane in known)

    def any_to_judge(self) -> bool:
        return any(not repeat.is_handled for repeat in self.stored.repeats.values())

    def at_rest(self) -> list[Key]:
        """Deliveries that have their place, and that nobody works on."""
        return [key for key, row in self.open.items() if row.state not in {State.RECEIVED, State.IN_FLIGHT}]

    def suspects(self) -> list[str]:
        return sorted({row.route for row in self.open.values() if row.crashes >= SUSPECT_CRASHES})

    def dead(self) -> list[Key]:
        return [key for key, row in self.open.items() if row.state in {State.DEAD, State.BLOCKED}]

    def next_due(self) -> float:
        """In how many seconds a retry falls due, or a breaker may be tried; 0: none will."""
        now = self.world.clock.now
        later = [row.due_at for row in self.open.values() if row.due_at is not None and row.due_at > now]
        later += [gate.until for gate in self.stored.gates.values() if gate.until is not None and gate.until > now]
        return (min(later) - now).total_seconds() if later else 0
