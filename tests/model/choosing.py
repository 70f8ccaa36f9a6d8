"""What is possible at a point of a run."""

from __future__ import annotations

from collections.abc import Callable

from inbox.db.schema import SUSPECT_CRASHES
from relay.lifecycle import State
from relay.outcome import Outcome
from relay.store.selection import Selection
from tests.model.actors import Held, Relay
from tests.model.history import Key
from tests.model.operations import Operation
from tests.model.stage import Stage, beginning_at, one_of, some_of
from tests.model.world import ROUTES

ALL = 500
"""More than there is."""


class Choosing(Stage):
    """What relays have in hand, and what they can do with it; the numbers say how much, or which."""

    def can(self, relay: Relay, kind: str) -> bool:
        """Whether the relay has anything in hand for this operation."""
        match kind:
            case "record":
                return bool(relay.finished())
            case "give_back":
                return bool(relay.untouched())
            case "renew":
                return bool(relay.held)
            case "replay":
                return bool(self.closed())
            case _:
                return True

    def with_(self, kind: str) -> list[Relay]:
        """Relays that can."""
        return [relay for relay in self.active() if self.can(relay, kind)]

    def operation(self, relay: Relay, kind: str, number: int = 0, *, answered: bool = True) -> Operation:
        """One that the relay can do."""
        make = self.make
        made: dict[str, Callable[[], Operation]] = {
            "sequence": lambda: make.sequence(relay, self.rows_of_events(1 + number % 3)),
            "sequence all": lambda: make.sequence(relay, ALL),
            "claim": lambda: make.claim(relay, beginning_at(ROUTES, number), 1 + number % 4, answered=answered),
            "reap": lambda: make.reap(relay),
            "record": lambda: make.record(relay, some_of(relay.finished(), number), answered=answered),
            "give_back": lambda: make.give_back(relay, some_of(relay.untouched(), number)),
            "renew": lambda: make.renew(relay, some_of(list(relay.held.values()), number), answered=answered),
            "replay": lambda: make.replay(Selection(seq=one_of(self.closed(), number))),
            "verify": make.verify,
            "rebuild": make.rebuild,
        }
        return made[kind]()

    def let(self, relay: Relay, kind: str, number: int = 0, *, answered: bool = True) -> None:
        """Have it done, if the relay can."""
        if self.can(relay, kind):
            self.perform(self.operation(relay, kind, number, answered=answered))

    def rows_of_events(self, most: int) -> int:
        """How many deliveries of the first events that arrived: a batch that cut one in two might cut it anywhere."""
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

    def answer(self, which: int, outcome: Outcome) -> None:
        relay, held = one_of(self.at_work(), which)
        if not held.begun:
            self.begin(relay, held)
        held.outcome = outcome

    def closed(self) -> list[int]:
        """Events that may be replayed on some route."""
        still_open = {key for key, row in self.open.items() if row.state is not State.DEAD}
        return sorted({seq for seq, _ in self.ledger.lanes.keys() - still_open})

    def at_rest(self) -> list[Key]:
        """Deliveries that have their place, and that nobody works on."""
        return [key for key, row in self.open.items() if row.state not in {State.RECEIVED, State.IN_FLIGHT}]

    def suspects(self) -> list[str]:
        return sorted({row.route for row in self.open.values() if row.crashes >= SUSPECT_CRASHES})

    def dead(self) -> list[str]:
        return sorted({row.route for row in self.open.values() if row.state in {State.DEAD, State.BLOCKED}})

    def next_due(self) -> float:
        """In how many seconds a retry falls due; 0: none will."""
        now = self.world.clock.now
        later = [row.due_at for row in self.open.values() if row.due_at is not None and row.due_at > now]
        return (min(later) - now).total_seconds() if later else 0
