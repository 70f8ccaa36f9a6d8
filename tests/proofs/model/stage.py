"""The base of the model's rules: the state of a run, its possible operations, and the invariants."""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from hypothesis.strategies._internal.featureflags import FeatureFlags
from sqlalchemy.exc import SQLAlchemyError

from inbox.errors import InboxRelayError
from inbox.events.event import Event
from inbox.events.states import SUSPECT_CRASHES
from relay.delivery.gates import BreakerState, GateKey
from relay.delivery.lifecycle import State
from relay.delivery.outcome import Failed
from relay.operations.asks import Selection
from tests.helpers.stepping import Crashed, Stepped
from tests.helpers.waiting import until
from tests.proofs.model.actors import Call, Doing, Held, Ledger, Operation, Operations, Relay, Snapshot, Violation
from tests.proofs.model.invariants import hold, noteworthy
from tests.proofs.model.world import NOTHING, ROUTES, History, Key, Row, Uncommitted, World

T = TypeVar("T")
Rule = Callable[..., None]

RULES: set[str] = set()
"""Names of all rules."""
TROUBLES: set[str] = set()
"""Names of the rules omitted from some runs."""

LONGEST = 200
"""More statements than any operation has."""

WHICH = st.integers(0, 59)
"""Index of one item, modulo their number."""
SOME = st.integers(0, 15)
"""Bits that select some items; 0 selects all."""


def one_of(items: Sequence[T], which: int) -> T:
    return items[which % len(items)]


def some_of(items: Sequence[T], bits: int) -> list[T]:
    return [item for index, item in enumerate(items) if bits >> (index % 4) & 1] or list(items)


def beginning_at(items: Sequence[T], number: int) -> list[T]:
    """Return the items rotated by `number`."""
    start = number % len(items)
    return [*items[start:], *items[:start]]


class Evidence:
    """Counts of all runs, to check their coverage."""

    def __init__(self) -> None:
        self.runs = 0
        self.rules: Counter[str] = Counter()
        self.sometimes: Counter[str] = Counter()

    @property
    def steps(self) -> int:
        return self.rules.total()


_rule: Any = rule  # its types know no arguments by the dictionary


def step(
    when: Callable[[Any], Any] | None = None,
    *,
    trouble: bool = False,
    **arguments: Any,  # noqa: ANN401  # strategies, by name
) -> Callable[[Rule], Rule]:
    """Declare a counted rule with a precondition."""

    def decorate(function: Rule) -> Rule:
        RULES.add(function.__name__)
        if trouble:
            TROUBLES.add(function.__name__)

        @functools.wraps(function)
        def count_and_run(self: Stage, **drawn: object) -> None:
            self.evidence.rules[function.__name__] += 1
            with self.breaking():
                function(self, **drawn)

        made: Rule = _rule(**arguments)(count_and_run)
        return made if when is None else precondition(when)(made)

    return decorate


class _Enabled:
    """Limits Hypothesis' omission of rules to troubles.

    Without any link from arrival to result, a run would be pointless.
    """

    def __init__(self, flags: FeatureFlags) -> None:
        self._flags = flags

    def is_enabled(self, name: str) -> bool:
        return name not in TROUBLES or self._flags.is_enabled(name)


class Stage(RuleBasedStateMachine):
    """One run: an empty world, three relays, and a ledger of the true history."""

    def __init__(self, world: World, evidence: Evidence) -> None:
        super().__init__()
        strategy = self._rules_strategy
        strategy.enabled_rules_strategy = strategy.enabled_rules_strategy.map(_Enabled)  # type: ignore[arg-type]  # only is_enabled is used
        self.world = world
        self.evidence = evidence
        self.ledger = Ledger()
        self.history = History()
        self.relays = [Relay(name) for name in ("r1", "r2", "r3")]
        self.make = Operations(world, self.ledger)
        self.stored = NOTHING
        self.sent: list[Event] = []
        self.uncommitted: list[Uncommitted] = []
        self.broken = False
        evidence.runs += 1
        world.empty()

    @property
    def open(self) -> dict[Key, Row]:
        return self.stored.open

    def perform(self, operation: Operation) -> Any:  # noqa: ANN401  # whatever the store function returns
        """Perform an operation and let the relay learn the result."""
        self.make.doing.operations += 1
        try:
            result = operation.send()
        except (SQLAlchemyError, InboxRelayError) as error:
            raise Violation("an operation failed", f"{operation.name}: {error!r}") from error
        operation.learn(result)
        return result

    def interleave(self, operations: Sequence[Operation], turns: Sequence[int], dies: str = "") -> None:
        """Run operations "a" and "b" in turns of so many statements, then one by one; one may die in between."""
        order = "".join(name * statements for name, statements in zip("ab" * len(turns), turns, strict=False))
        stepper = self.world.stepper
        running = {name: stepper.begin(name, operation.send) for name, operation in zip("ab", operations, strict=True)}
        waited = False

        def are_freed() -> bool:
            stepper.settle()
            return not any(each.blocked for each in running.values())

        for name in (*order, "", *"ab" * LONGEST):
            if not name and dies and not running[dies].finished:
                running[dies].crash()
                self.evidence.sometimes["died half-way"] += 1
            elif name and running[name].can_move:
                running[name].step()
            waited |= any(not each.can_move and not each.finished for each in running.values())
            if any(each.finished for each in running.values()):
                until(are_freed, "the database releases the locks of a dead operation", poll=0.002)
            if all(each.finished for each in running.values()):
                break
        stepper.run([])
        self.evidence.sometimes["waited for a lock"] += waited
        for operation, done in zip(operations, running.values(), strict=True):
            self._learn(operation, done)

    def _learn(self, operation: Operation, done: Stepped) -> None:
        self.make.doing.operations += 1
        if done.error is None:
            operation.learn(done.result)
        elif not isinstance(done.error, Crashed):
            raise Violation("an operation failed", f"{operation.name}: {done.error!r}") from done.error

    @contextmanager
    def breaking(self) -> Iterator[None]:
        """Mark a failing run as broken, so that it is not finished, which would hide the failure."""
        try:
            yield
        except BaseException:
            self.broken = True
            raise

    def active(self) -> list[Relay]:
        return [relay for relay in self.relays if not relay.paused]

    def advance(self, seconds: float) -> None:
        """Advance the clock and cut calls without a trusted lease, except at paused relays."""
        self.world.clock.advance(seconds)
        for relay in self.active():
            relay.cut(self.world.clock.now)

    @invariant()
    def everything_holds(self) -> None:
        doing, earlier = self.make.doing, self.stored
        self.make.doing = Doing()
        untouched = not doing.operations and not doing.arrivals
        self.stored = earlier._replace(new=[]) if untouched else self.world.look(self.history)
        for key, row in self.open.items():
            if row.state is not State.RECEIVED:
                self.ledger.ordered.setdefault(key, self.ledger.step)
        now = self.world.clock.now
        snapshot = Snapshot(now, earlier, self.stored, self.history, self.ledger, self.relays, doing)
        with self.breaking():
            hold(snapshot)
        self.ledger.step += 1
        self.evidence.sometimes.update(noteworthy(snapshot))

    def begin(self, relay: Relay, held: Held) -> None:
        """Begin a call to the downstream service."""
        held.begun_at = self.world.clock.now
        call = Call(held.key, held.delivery.run, held.delivery.attempt, relay.node, self.ledger.step)
        self.ledger.call(call)
        self.make.doing.calls.append(call)

    # Possible operations of relays; the numbers select items.

    def can(self, relay: Relay, kind: str) -> bool:
        """Return whether the operation is possible."""
        conditions: dict[str, Callable[[], object]] = {
            "record": relay.list_finished,
            "give_back": relay.list_untouched,
            "renew": lambda: relay.held,
            "replay": self.list_closed,
            "cancel": self.cancellable,
            "unblock": lambda: self.any_open(State.BLOCKED),
            "retry": self.due_later,
            "probe": self.list_stopped_gates,
            "judge": self.any_to_judge,
        }
        return kind not in conditions or bool(conditions[kind]())

    def with_(self, kind: str) -> list[Relay]:
        """Return the relays for which the operation is possible."""
        return [relay for relay in self.active() if self.can(relay, kind)]

    def operation(self, relay: Relay, kind: str, number: int = 0, *, answered: bool = True) -> Operation:
        """Make an operation of this kind."""
        make = self.make
        made: dict[str, Callable[[], Operation]] = {
            "sequence": lambda: make.sequence(relay, self.rows_of_events(1 + number % 3)),
            "sequence all": lambda: make.sequence(relay),
            "sequence by the old": lambda: make.sequence_by_the_old(relay),
            "claim": lambda: make.claim(relay, beginning_at(ROUTES, number), 1 + number % 4, answered=answered),
            "rescue": lambda: make.rescue(relay),
            "record": lambda: make.record(relay, some_of(relay.list_finished(), number), answered=answered),
            "give_back": lambda: make.give_back(relay, some_of(relay.list_untouched(), number)),
            "renew": lambda: make.renew(relay, some_of(list(relay.held.values()), number), answered=answered),
            "probe": lambda: make.probe(relay, beginning_at(ROUTES, number)),
            "judge": lambda: make.judge(relay),
            "replay": lambda: make.command("replay", Selection(seq=one_of(self.list_closed(), number))),
            "cancel": lambda: make.command("cancel", Selection(seq=one_of(self.cancellable(), number)[0])),
            "unblock": lambda: make.command("unblock", Selection(route="blocking")),
            "retry": lambda: make.command("retry", Selection(everything=True)),
            "verify": make.verify,
            "rebuild": make.rebuild,
        }
        return made[kind]()

    def let(self, relay: Relay, kind: str, number: int = 0, *, answered: bool = True) -> None:
        """Perform the operation if it is possible."""
        if self.can(relay, kind):
            self.perform(self.operation(relay, kind, number, answered=answered))
        if kind == "record" and any(isinstance(held.outcome, Failed) for held in relay.recorded):
            self.perform(self.make.look_at_gates(relay))

    def rows_of_events(self, most: int) -> int:
        """Count the deliveries of the first arrived events, so that a batch does not split an event."""
        received = [row.seq for row in self.open.values() if row.state is State.RECEIVED]
        return sum(seq in sorted(set(received))[:most] for seq in received) or 1

    def any_open(self, state: State) -> bool:
        return any(row.state is state for row in self.open.values())

    def beginnable(self, relay: Relay) -> list[Held]:
        return [held for held in relay.list_untouched() if self.world.clock.now < held.trusted_until]

    def list_untouched(self) -> list[tuple[Relay, Held]]:
        return [(relay, held) for relay in self.active() for held in self.beginnable(relay)]

    def list_calls(self) -> list[tuple[Relay, Held]]:
        """Return running calls and those that may begin."""
        return [(relay, held) for relay in self.active() for held in relay.running()] + self.list_untouched()

    def answer(self, which: int, outcome: str) -> None:
        self.end(*one_of(self.list_calls(), which), outcome)

    def end(self, relay: Relay, held: Held, outcome: str) -> None:
        """End a call, which begins now if it is not running."""
        if held.begun_at is None:
            self.begin(relay, held)
        held.end_call(outcome)

    def list_closed(self) -> list[int]:
        """Return the events that may be replayed on some route."""
        still_open = {key for key, row in self.open.items() if row.state is not State.DEAD}
        return sorted({seq for seq, _ in self.ledger.lanes.keys() - still_open})

    def cancellable(self) -> list[Key]:
        return [key for key, row in self.open.items() if row.state is not State.IN_FLIGHT]

    def due_later(self) -> list[Key]:
        """Return the deliveries that are due later."""
        now = self.world.clock.now
        return [key for key, row in self.open.items() if row.due_at is not None and row.due_at > now]

    def list_paused_gates(self) -> list[GateKey]:
        return sorted(key for key, row in self.stored.gates.items() if row.is_paused)

    def list_stopped_gates(self) -> list[GateKey]:
        """Return the gates whose breaker is not closed."""
        return sorted(key for key, row in self.stored.gates.items() if row.breaker is not BreakerState.CLOSED)

    def any_late(self) -> bool:
        """Return whether an arrival in `latest` is not newer than the last delivered event."""
        return any(
            row.occurred_at <= self.stored.lanes[row.route, row.lane].occurred_at
            for row in self.open.values()
            if (row.route, row.state) == ("latest", State.RECEIVED) and (row.route, row.lane) in self.stored.lanes
        )

    def lanes_in_latest(self) -> list[str]:
        """Return the entities with a success or a death on the route in `latest`."""
        known = {lane for route, lane in self.stored.lanes if route == "latest"}
        known |= {row.lane for row in self.open.values() if row.route == "latest" and row.state is State.DEAD}
        return sorted(lane.removeprefix("USER|") for lane in known)

    def any_to_judge(self) -> bool:
        return any(not repeat.is_handled for repeat in self.stored.repeats.values())

    def suspects(self) -> list[str]:
        return sorted({row.route for row in self.open.values() if row.crashes >= SUSPECT_CRASHES})

    def dead(self) -> list[Key]:
        return [key for key, row in self.open.items() if row.state in {State.DEAD, State.BLOCKED}]

    def next_due(self) -> float:
        """Return the seconds until the next retry or probe, or 0 without one."""
        now = self.world.clock.now
        later = [row.due_at for row in self.open.values() if row.due_at is not None and row.due_at > now]
        later += [gate.until for gate in self.stored.gates.values() if gate.until is not None and gate.until > now]
        return (min(later) - now).total_seconds() if later else 0
