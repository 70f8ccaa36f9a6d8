"""Base of every rule of the model: the run's state, the making of operations, and what must hold after each step."""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from hypothesis.strategies._internal.featureflags import FeatureFlags
from sqlalchemy import TextClause
from sqlalchemy.exc import SQLAlchemyError

from inbox.errors import InboxRelayError
from inbox.events.event import Event
from relay.delivery.lifecycle import State
from tests.helpers.stepping import Crashed, Stepped
from tests.helpers.waiting import until
from tests.proofs.model.actors import Call, Doing, Held, Ledger, Relay
from tests.proofs.model.history import History, Key
from tests.proofs.model.invariants import hold
from tests.proofs.model.noteworthy import noteworthy
from tests.proofs.model.operations import Operation, Operations
from tests.proofs.model.receiver import Uncommitted
from tests.proofs.model.snapshot import Snapshot, Violation
from tests.proofs.model.world import NOTHING, Row, World
from tests.proofs.planting import takes_the_order_lock

T = TypeVar("T")
Rule = Callable[..., None]

RULES: set[str] = set()
"""Names of all rules."""
TROUBLES: set[str] = set()
"""Names of those that are left out of some runs."""

LONGEST = 200
"""More statements than any operation has."""

WHICH = st.integers(0, 59)
"""One of however many there are."""
SOME = st.integers(0, 15)
"""Some of however many there are, by the bits; none stands for all."""


def one_of(items: Sequence[T], which: int) -> T:
    return items[which % len(items)]


def some_of(items: Sequence[T], bits: int) -> list[T]:
    return [item for index, item in enumerate(items) if bits >> (index % 4) & 1] or list(items)


def beginning_at(items: Sequence[T], number: int) -> list[T]:
    """All of them, another one first for each number."""
    start = number % len(items)
    return [*items[start:], *items[:start]]


class Evidence:
    """Record of what all runs did, so that a test can see that they did it."""

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
    """A rule that is counted, and possible `when` something is so."""

    def decorate(function: Rule) -> Rule:
        RULES.add(function.__name__)
        if trouble:
            TROUBLES.add(function.__name__)

        @functools.wraps(function)
        def counted(self: Stage, **drawn: object) -> None:
            self.evidence.rules[function.__name__] += 1
            with self.breaking():
                function(self, **drawn)

        made: Rule = _rule(**arguments)(counted)
        return made if when is None else precondition(when)(made)

    return decorate


class _Enabled:
    """Hypothesis leaves some of the rules out of each run, which makes the runs differ: here, of what goes wrong alone.

    With any link of the chain from arrival to result left out, nothing would come of a run.
    """

    def __init__(self, flags: FeatureFlags) -> None:
        self._flags = flags

    def is_enabled(self, name: str) -> bool:
        return name not in TROUBLES or self._flags.is_enabled(name)


class Stage(RuleBasedStateMachine):
    """One run: a world that is empty at first, three relays, and a ledger of what really happened."""

    def __init__(self, world: World, evidence: Evidence) -> None:
        super().__init__()
        strategy = self._rules_strategy
        strategy.enabled_rules_strategy = strategy.enabled_rules_strategy.map(_Enabled)  # type: ignore[arg-type]  # it is asked for is_enabled alone
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
        """Do it, and let the relay learn what came of it."""
        self.make.doing.operations += 1
        try:
            result = operation.send()
        except (SQLAlchemyError, InboxRelayError) as error:
            raise Violation("an operation failed", f"{operation.name}: {error!r}") from error
        operation.learn(result)
        return result

    def interleave(self, operations: Sequence[Operation], turns: Sequence[int], dies: str = "") -> None:
        """Do two at once, "a" and "b": in turn so many statements of each, after that one of each; one may die before that."""
        order = "".join(name * statements for name, statements in zip("ab" * len(turns), turns, strict=False))
        stepper = self.world.stepper
        running = {name: stepper.begin(name, operation.send) for name, operation in zip("ab", operations, strict=True)}
        waited = False

        def freed() -> bool:
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
                until(freed, "the database lets go the locks of one that has died", poll=0.002)
            if all(each.finished for each in running.values()):
                break
        stepper.run([])
        self.evidence.sometimes["waited for a lock"] += waited
        for operation, done in zip(operations, running.values(), strict=True):
            self._learn(operation, done)

    def interrupt(self, operation: Operation, *, after: TextClause, further: int, act: Callable[[], object]) -> None:
        """Do it, and act when it has sent this statement and would lock next, or so many statements later.

        On SQLite nobody else can write under the lock: then it acts when that transaction is over.
        """
        stepper = self.world.stepper
        stepper.taken.clear()
        running = stepper.begin("a", operation.send)
        sent = str(after.compile(self.world.database.engine))
        while not running.finished and not (_locks(running.before) and ("a", sent) in stepper.taken):
            running.step()
        self.evidence.sometimes["received between look and lock"] += not running.finished and not further
        while not running.finished and (further or stepper.waits.would_wait("a receiver", "BEGIN IMMEDIATE")):
            running.step()
            further = max(0, further - 1)
        act()
        stepper.run([])
        self._learn(operation, running)

    def _learn(self, operation: Operation, done: Stepped) -> None:
        self.make.doing.operations += 1
        if done.error is None:
            operation.learn(done.result)
        elif not isinstance(done.error, Crashed):
            raise Violation("an operation failed", f"{operation.name}: {done.error!r}") from done.error

    @contextmanager
    def breaking(self) -> Iterator[None]:
        """A run that went wrong is not finished: that would hide what was wrong."""
        try:
            yield
        except BaseException:
            self.broken = True
            raise

    def active(self) -> list[Relay]:
        return [relay for relay in self.relays if not relay.paused]

    def advance(self, seconds: float) -> None:
        """Time passes, and relays stop what they may not go on with. One that is paused does so when it comes back."""
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
        """Call the downstream service."""
        held.begun_at = self.world.clock.now
        call = Call(held.key, held.delivery.run, held.delivery.attempt, relay.node, self.ledger.step)
        self.ledger.call(call)
        self.make.doing.calls.append(call)


def _locks(statement: str | None) -> bool:
    return statement is not None and (statement == "BEGIN IMMEDIATE" or takes_the_order_lock(statement))
