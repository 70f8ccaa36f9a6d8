"""A prepared state, restored before every order, the relays' operations in it, and the checks after each order."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any

import msgspec

from inbox.db import intake
from inbox.db.engine import one_transaction
from inbox.events.event import Event
from relay.delivery.gates import Gates
from relay.delivery.lifecycle import State
from relay.store.leases import LEASE_SECONDS
from tests.helpers.stepping import COMMIT, Stepped, Stepper, all_orders
from tests.helpers.storing import START, an_event
from tests.proofs.model.actors import HOPELESS, REJECTED, SUCCEEDED, Ledger, Operation, Operations, Relay, Snapshot
from tests.proofs.model.invariants import broken
from tests.proofs.model.world import NOTHING, History, Key, World
from tests.proofs.planting import takes_the_order_lock

_PUT_BACK = ("inbox", "inbox_payload", "open_delivery", "delivery_log", "lane")
"""Tables written in an order."""
_ALL = 500
_VACUUM_AFTER = 200
"""Orders between two vacuums."""
ALL = os.environ.get("ORDERS") == "all"
"""True to run equivalent orders too, and all orders of three."""
_DOES_MORE = re.compile(r"\b(?:FOR|UPDATE|INSERT|DELETE|nextval|setval|\w*lock\w*|pg_\w+)\b", re.IGNORECASE)
_OUTCOMES = {"": SUCCEEDED, "its success": SUCCEEDED, "its failure": REJECTED, "its death": HOPELESS}
"""Outcomes that concern no breaker."""


@dataclass
class Known:
    """Knowledge beside the tables: the relays' memory, acknowledged events, and the facts read."""

    relays: dict[str, Relay] = field(default_factory=lambda: {f"r{n}": Relay(f"r{n}") for n in range(1, 6)})
    ledger: Ledger = field(default_factory=Ledger)
    history: History = field(default_factory=History)


class Order(msgspec.Struct, frozen=True):
    """Results of one order."""

    operations: Mapping[str, Operation]
    results: Mapping[str, Any]
    errors: Mapping[str, BaseException]
    steps: Sequence[str]
    """Operations by name, in the order of their steps."""
    snapshot: Snapshot


class Stage:
    """The database of a test and its relays."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.engine = world.database.engine
        self.routes: Sequence[str] = ()
        self._put_back_times = 0
        self.later: Sequence[Event] = ()
        """Events to receive during the operations."""
        world.clock.now = START
        self._know(Known())
        self._kept, self._before = self._known, NOTHING
        for relay in self._known.relays.values():
            self._do(self._make.start(relay))

    # Preparation of a state.

    def arrive(self, *events: Event) -> None:
        """Receive events without sequencing them."""
        self._acknowledge(events, self.world.receiver.append(*events))

    def do(self, *names: str) -> None:
        """Run these operations one after another."""
        for name in names:
            self._do(self.operation(name))

    def lapse(self) -> None:
        """Advance the clock beyond a lease."""
        self.world.clock.advance(LEASE_SECONDS + 1)

    def put(self, statement: str) -> None:
        """Change a table by hand."""
        with self.engine.begin() as connection:
            connection.exec_driver_sql(statement)

    def keep(self) -> None:
        """Save the current state as the beginning of every order."""
        for table in _PUT_BACK:
            self.put(f"CREATE TABLE kept_{table} AS SELECT * FROM {table}")
        for statement in _MAY_BE_EMPTIED[self.engine.dialect.name]:
            self.put(statement)
        self._before = self.world.look(self._known.history)
        self._known.ledger.step += 1
        self._kept = self._known

    # Operations.

    def operation(self, name: str) -> Operation:
        """Make an operation from its name: relay, verb and details."""
        if name == "ann rebuilds":
            return Operation("rebuild", self._make.rebuild().send)  # unlike in the model, it finds something
        if name == "a receiver takes in":
            return Operation("receive", self._receive, lambda seqs: self._acknowledge(self.later, seqs))
        who, does, *how = name.removesuffix(" again").split()
        return self._make_relay_operation(self._known.relays[who], does, " ".join(how))

    def _make_relay_operation(self, relay: Relay, does: str, how: str) -> Operation:
        make = self._make
        held = list(reversed(relay.held.values()))  # not in the order of their claims
        if does == "records":
            for each in held:
                each.begun_at = self.world.clock.now
                each.end_call(_OUTCOMES[how])
        made: dict[str, Callable[[], Operation]] = {
            "sequences": lambda: make.sequence(relay, 1 if how == "one" else _ALL),
            "claims": lambda: make.claim(relay, self.routes, 2 if how == "two" else 1, seen=Gates()),
            "claims suspects": lambda: make.claim_suspect(relay, self.routes, seen=Gates()),
            "renews": lambda: make.renew(relay, held[-1:] if how == "the first" else held),
            "gives back": lambda: make.give_back(relay, held),
            "records": lambda: make.record(relay, held),
            "rescues": lambda: make.rescue(relay),
        }
        return (made.get(f"{does} {how}") or made[does])()

    def all_orders(
        self, names: Sequence[str], check: Callable[[Order], None], *, coarse: bool = False, swaps: bool = not ALL
    ) -> int:
        """Run these operations in every order, each from the saved state, and return the number of orders.

        With `swaps`, one of several orders is run that differ only in the time of a read with the same result.

        `coarse`, for more than two operations, joins reads without locks to the previous statement, and requests the
        order lock only when it is free, as its holders read everything under it. It always applies on SQLite, where a
        transaction sees one state and one writes at a time.
        """
        coarse = coarse or not self.world.commits_out_of_order
        operations: dict[str, Operation] = {}

        def start() -> Mapping[str, Callable[[], Any]]:
            self._put_back()
            operations.update({name: self.operation(name) for name in names})
            return {name: operation.send for name, operation in operations.items()}

        return all_orders(
            self.engine,
            start,
            lambda stepper: check(self._order(operations, stepper)),
            passing=_neither_locks_nor_writes if coarse else _is_nothing_to_others,
            pointless=_would_wait_for_the_order_lock if coarse else _never,
            swaps=_come_to_the_same if swaps and self.world.commits_out_of_order else _never,
        )

    def _order(self, operations: Mapping[str, Operation], stepper: Stepper) -> Order:
        ended = stepper.operations.items()
        results = {name: stepped.result for name, stepped in ended if stepped.error is None}
        for name, result in results.items():
            operations[name].learn(result)
        doing, known = self._make.doing, self._known
        doing.operations = len(operations)
        after, relays = self.world.look(known.history), list(known.relays.values())
        return Order(
            operations=operations,
            results=results,
            errors={name: stepped.error for name, stepped in ended if stepped.error is not None},
            steps=[name for name, _ in stepper.taken],
            snapshot=Snapshot(self.world.clock.now, self._before, after, known.history, known.ledger, relays, doing),
        )

    def _know(self, known: Known) -> None:
        self._known = known
        self._make = Operations(self.world, known.ledger)

    def _do(self, operation: Operation) -> None:
        operation.learn(operation.send())

    def _acknowledge(self, events: Sequence[Event], seqs: Sequence[int | None]) -> None:
        for event, seq in zip(events, seqs, strict=True):
            assert seq is not None
            self._known.ledger.acknowledge(seq, event)

    def _receive(self) -> list[int | None]:
        """Store `later` by the receiver's statements, on the stepped engine."""
        with self.engine.connect() as connection:
            if self.world.commits_out_of_order:
                connection.execution_options(isolation_level="AUTOCOMMIT")
            with one_transaction(connection):
                return intake.append(connection, self.later)

    def _put_back(self) -> None:
        self._know(deepcopy(self._kept))
        statements = [
            statement
            for table in _PUT_BACK
            for statement in (f"DELETE FROM {table}", f"INSERT INTO {table} SELECT * FROM kept_{table}")
        ]
        with self.engine.begin() as connection:
            for statement in ["; ".join(statements)] if self.world.commits_out_of_order else statements:
                connection.exec_driver_sql(statement)
        self._put_back_times += 1
        if self._put_back_times % _VACUUM_AFTER == 0:
            self.world.vacuum(*_PUT_BACK)


def _is_nothing_to_others(statement: str) -> bool:
    """Return whether a statement cannot affect others: reading the clock, or facts, which only holders of their rows read."""
    return statement.startswith(("SELECT coalesce(", "\nINSERT INTO delivery_log", "\nSELECT seq, route, min(at)"))


def _neither_locks_nor_writes(statement: str) -> bool:
    """Return whether a statement neither locks nor writes, except in `lane`, which only marks late deliveries."""
    return "FOR UPDATE" not in statement and not statement.startswith(("\nUPDATE", "\nDELETE"))


def _would_wait_for_the_order_lock(stepper: Stepper, stepped: Stepped) -> bool:
    return (
        stepped.before is not None
        and takes_the_order_lock(stepped.before)
        and any(_holds_the_order_lock(stepper, other) for other in stepper.operations.values() if not other.finished)
    )


def _come_to_the_same(one: str, other: str) -> bool:
    """Return whether two statements commute on Postgres: a plain read sees only committed data and takes no locks."""
    return COMMIT not in (one, other) and (_only_reads(one) or _only_reads(other))


def _only_reads(statement: str) -> bool:
    return statement.lstrip().startswith(("SELECT", "WITH")) and not _DOES_MORE.search(statement)


def _never(_one: object, _other: object) -> bool:
    return False


def _holds_the_order_lock(stepper: Stepper, stepped: Stepped) -> bool:
    taken = [statement for name, statement in stepper.taken if name == stepped.name]
    locked = next((number for number, statement in enumerate(taken) if takes_the_order_lock(statement)), len(taken))
    return COMMIT not in taken[locked:] and locked < len(taken)


_MAY_BE_EMPTIED = {
    "postgresql": [f"ALTER TABLE {table} DISABLE TRIGGER USER" for table in ("inbox", "inbox_payload", "delivery_log")],
    "sqlite": [f"DROP TRIGGER {table}_refuses_delete" for table in ("inbox", "inbox_payload", "delivery_log")],
}


def kept(order: Order) -> None:
    """Check every promise after an order.

    Raises:
        AssertionError: has a line for each broken promise.
    """
    found = {
        "an operation failed": list(order.errors.items()),
        "more than one waits": needless_waits(order),
        "a later one was claimed first": list(overtaken(order)),
        **broken(order.snapshot),
    }
    lines = [f"{kind}: {evidence}" for kind, evidence in found.items() if evidence]
    assert not lines, "\n".join(lines)


def needless_waits(order: Order) -> list[object]:
    """Return lanes in `latest` where more than the newest waits."""
    rows = order.snapshot.after.values()
    waiting = Counter(row.lane for row in rows if (row.route, row.state) == ("latest", State.WAITING))
    return [lane for lane, number in waiting.items() if number > 1]


def overtaken(order: Order) -> Iterator[object]:
    """Yield events that were in the lane before a later one was claimed for its first attempt."""
    for name, operation in order.operations.items():
        if not operation.name.startswith("claim") or name in order.errors:
            continue
        unplaced = _without_a_place(order, order.steps.index(name))
        for delivery in order.results[name][1]:
            for key, row in order.snapshot.after.items():
                if (
                    delivery.attempt == 1
                    and (row.route, row.lane) == (delivery.route, delivery.lane)
                    and row.order < (delivery.occurred_at, delivery.seq)
                    and row.state is not State.DEAD
                    and key not in unplaced
                ):
                    yield name, delivery.seq, row


def _without_a_place(order: Order, step: int) -> set[Key]:
    """Return the deliveries not sequenced before this step; sequencing follows the order of arrival."""
    last = {name: number for number, name in enumerate(order.steps)}
    placed = sum(
        result
        for name, result in order.results.items()
        if order.operations[name].name == "sequence" and last[name] < step
    )
    received = sorted(key for key, row in order.snapshot.before.items() if row.state is State.RECEIVED)
    return set(received[placed:])


# --- Scenes: states in which relays meet, and their concurrent operations


Prepare = Callable[[Stage], None]


class Scene(msgspec.Struct, frozen=True):
    """A state and the operations in it."""

    prepare: Prepare
    operations: tuple[str, ...]
    triples: tuple[tuple[str, str, str], ...]
    """Relevant combinations of three operations."""


SCENES: list[Scene] = []
_SUCCESS, _FAILURE = "r1 records its success", "r1 records its failure"


def _scene(
    operations: tuple[str, ...], *, triples: tuple[tuple[str, str, str], ...] = ()
) -> Callable[[Prepare], Prepare]:
    def keep(prepare: Prepare) -> Prepare:
        SCENES.append(Scene(prepare, operations, triples))
        return prepare

    return keep


@_scene(
    ("r1 sequences", "r1 sequences one", "r1 claims", "r2 claims two"),
    triples=(("r1 sequences", "r1 sequences one", "r2 claims two"),),
)
def arrivals(stage: Stage) -> None:
    """Prepare two lanes of unsequenced events."""
    stage.routes = ("strict",)
    stage.arrive(an_event(2), an_event(1), an_event(3, "u2"))


@_scene(
    (_SUCCESS, _FAILURE, "r1 renews", "r1 gives back", "r2 sequences", "r2 claims", "r2 rescues"),
    triples=(
        (_SUCCESS, "r2 sequences", "r2 claims"),
        (_SUCCESS, "r1 renews", "r2 rescues"),
        ("r1 gives back", "r2 sequences", "r2 claims"),
    ),
)
def a_head_in_flight(stage: Stage) -> None:
    """Prepare one in flight, one waiting, and an arrival between them."""
    _claim_first(stage, "strict", 1, 3)
    stage.arrive(an_event(2))


@_scene(
    ("r1 gives back", "r2 sequences", "r2 claims"),
    triples=(("r1 gives back", "r2 sequences", "r2 claims"),),
)
def earlier_ones_behind_a_head_in_flight(stage: Stage) -> None:
    """Prepare a head in flight that is not begun, an earlier one behind it, and the earliest as an arrival."""
    _claim_first(stage, "strict", 3)
    _place(stage, 2)
    stage.arrive(an_event(1))


@_scene(
    ("r1 sequences", "r1 claims", "r2 claims two"),
    triples=(("r1 sequences", "r1 claims", "r2 claims two"),),
)
def an_earlier_one(stage: Stage) -> None:
    """Prepare a due head and an earlier arrival."""
    stage.routes = ("strict",)
    _place(stage, 2)
    stage.arrive(an_event(1))


@_scene(
    (_SUCCESS, _FAILURE, "r1 gives back", "r2 sequences", "r2 claims"),
    triples=((_SUCCESS, "r2 sequences", "r2 claims"), ("r1 gives back", "r2 sequences", "r2 claims")),
)
def a_newer_one(stage: Stage) -> None:
    """Prepare in `latest` one in flight, one waiting, and a newer arrival that supersedes it."""
    _claim_first(stage, "latest", 1)
    _place(stage, 2)
    stage.arrive(an_event(3, routes=["latest"]))


@_scene(
    ("r1 sequences", "r2 sequences one", "r1 claims"),
    triples=(("r1 sequences", "r2 sequences one", "r1 claims"),),
)
def a_newer_one_takes_over(stage: Stage) -> None:
    """Prepare in `latest` a due retry and newer arrivals that take it over."""
    _claim_first(stage, "latest", 1)
    stage.do("r1 records its failure")
    stage.world.clock.advance(5)
    stage.arrive(an_event(2, routes=["latest"]), an_event(3, routes=["latest"]))


@_scene(
    (_SUCCESS, "r1 renews", "r1 gives back", "r2 rescues", "r2 claims", "r3 sequences"),
    triples=(
        (_SUCCESS, "r2 rescues", "r2 claims"),
        (_SUCCESS, "r2 rescues", "r3 sequences"),
        ("r1 renews", "r2 rescues", "r3 sequences"),
    ),
)
def a_lease_that_ran_out(stage: Stage) -> None:
    """Prepare an expired lease whose relay resumes while others take over."""
    a_head_in_flight(stage)
    stage.lapse()


@_scene(
    (_SUCCESS, "r1 renews", "r1 gives back", "r2 records its failure", "r2 renews", "r3 sequences"),
    triples=((_SUCCESS, "r2 records its failure", "r2 renews"), ("r1 gives back", "r2 renews", "r3 sequences")),
)
def a_lease_taken_over(stage: Stage) -> None:
    """Prepare an expired lease whose delivery another relay has claimed."""
    a_lease_that_ran_out(stage)
    stage.do("r2 rescues", "r2 claims")


@_scene(
    ("r1 records its death", "r1 renews", "r2 sequences", "r2 claims"),
    triples=(("r1 records its death", "r2 sequences", "r2 claims"),),
)
def a_head_that_blocks(stage: Stage) -> None:
    """Prepare a lane that its head will block."""
    _claim_first(stage, "blocking", 1, 2)
    stage.arrive(an_event(3, routes=["blocking"]))


@_scene(
    ("r1 records", "r1 renews", "r1 renews the first", "r1 gives back", "r2 sequences", "r2 claims two"),
    triples=(("r1 renews the first", "r1 gives back", "r2 sequences"), ("r1 records", "r2 sequences", "r2 claims two")),
)
def two_lanes_at_once(stage: Stage) -> None:
    """Prepare deliveries of two lanes that one relay handles together."""
    stage.routes = ("strict",)
    stage.arrive(an_event(1, "u1"), an_event(2, "u2"), an_event(3, "u1"), an_event(4, "u2"))
    stage.do("r1 sequences", "r1 claims two")
    stage.arrive(an_event(5, "u2"), an_event(6, "u1"))


@_scene(
    ("r1 records", "r1 gives back", "r2 sequences", "r2 claims two"),
    triples=(("r1 records", "r1 gives back", "r2 sequences"),),
)
def two_routes_at_once(stage: Stage) -> None:
    """Prepare an event in flight on two routes and arrivals on both, so that both locks are needed."""
    stage.routes = ("strict", "latest")
    stage.arrive(an_event(1, routes=stage.routes), an_event(2, routes=stage.routes))
    stage.do("r1 sequences", "r1 claims two")
    stage.arrive(an_event(3, routes=stage.routes))


@_scene(
    ("r3 records its success", "r3 renews", "r4 rescues", "r4 claims", "r5 claims suspects"),
)
def a_lease_that_ran_out_once_too_often(stage: Stage) -> None:
    """Prepare a delivery whose relay died each time, which becomes dead."""
    _claim_first(stage, "strict", 1, 2)
    stage.lapse()
    stage.do("r2 rescues", "r2 claims")
    stage.lapse()
    stage.do("r3 rescues", "r3 claims suspects")
    stage.lapse()


@_scene(
    ("r3 claims suspects", "r4 claims", "r5 sequences"),
)
def suspects(stage: Stage) -> None:
    """Prepare two suspects and in `latest` a newer event that takes one over."""
    stage.routes = ("latest",)
    stage.arrive(an_event(1, "u1", routes=["latest"]), an_event(2, "u2", routes=["latest"]))
    stage.do("r1 sequences", "r1 claims two")
    stage.lapse()
    stage.do("r2 rescues", "r2 claims two")
    stage.lapse()
    stage.do("r3 rescues")
    stage.arrive(an_event(3, "u1", routes=["latest"]))


def a_row_of_no_event(stage: Stage) -> None:
    """Prepare a row without an event, for a rebuild to remove in its last chunk."""
    stage.routes = ("strict",)
    _place(stage, 1)
    stage.put(
        "INSERT INTO open_delivery (seq, route, lane, occurred_at, state)"
        " VALUES (1000000, 'strict', 'USER|u9', '2026-01-01 00:00:00.000000Z', 'dead')"
    )
    stage.later = (an_event(2), an_event(3, "u2"))


def _place(stage: Stage, *numbers: int) -> None:
    """Arrive and sequence events of one lane."""
    stage.arrive(*(an_event(number, routes=stage.routes) for number in numbers))
    stage.do("r1 sequences")


def _claim_first(stage: Stage, route: str, *numbers: int) -> None:
    """Place events of one lane and claim the first for r1."""
    stage.routes = (route,)
    _place(stage, *numbers)
    stage.do("r1 claims")
