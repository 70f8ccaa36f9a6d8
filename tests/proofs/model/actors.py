"""The model's knowledge of a run: each relay's memory, all calls, and each step as the checks see it."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import cached_property
from typing import Any, Literal, NamedTuple, TypeVar

import msgspec

from inbox.events.event import Event, swept_key
from inbox.events.timestamps import to_nanoseconds
from relay.daemon.leases import TRUSTED_SECONDS
from relay.delivery import facts
from relay.delivery import outcome as outcomes
from relay.delivery.facts import AnyFact
from relay.delivery.gates import Admission, Gate, Gates
from relay.delivery.ordering import LastDelivered
from relay.delivery.outcome import Delivered, Delivery, ErrorClass, Failed, Outcome, Skipped
from relay.delivery.policy import Policies
from relay.operations.asks import Selection
from relay.store import claim, duplicates, gates, leases, nodes, record, sequence
from relay.store.audit import Checked, Difference, verify
from relay.store.deliveries import LeaseKey, lease_key_of
from relay.store.operator import commands, execution
from relay.store.operator.selection import Act
from relay.store.rebuild import rebuild
from relay.store.record import Recorded
from relay.store.work import Work
from tests.helpers.relaying import carry_out, work_of
from tests.helpers.relaying import record as recorded
from tests.proofs.model.world import (
    BEFORE_THE_CHANGE,
    CONFIG,
    LONG_AGO,
    POLICIES,
    Entry,
    History,
    Key,
    LaneKey,
    Row,
    Stored,
    World,
)

TRUSTED = timedelta(seconds=TRUSTED_SECONDS)


def _call(status: int | None) -> outcomes.Call:
    return outcomes.Call(
        "forward", "POST", "https://example.com/", "unknown" if status is None else "answered", 1.0, status
    )


def _make_failed(error_class: ErrorClass, status: int | None) -> Failed:
    return Failed((_call(status),), error_class, f"answered {status}" if status else "no answer in time")


SUCCEEDED, FETCHED, FETCHED_AS_NEW = SUCCESSES = ("succeeded", "fetched", "fetched as new")
FAILED, TIMED_OUT, REJECTED, CONFLICT = FAILURES = ("failed", "timed out", "rejected", "conflict")
REFUSED, HOPELESS, CUT, SKIPPED = "refused", "hopeless", "cut", "skipped"

_OUTCOMES: dict[str, Outcome] = {
    SUCCEEDED: Delivered((_call(200),), "forwarded"),
    FETCHED: Delivered((_call(200),), "updated", LONG_AGO),
    FETCHED_AS_NEW: Delivered((_call(200),), "updated", LONG_AGO, LONG_AGO),
    FAILED: _make_failed("server_error", 503),
    TIMED_OUT: _make_failed("unknown", None),
    REJECTED: _make_failed("rejected", 422),
    CONFLICT: _make_failed("conflict", 409),
    REFUSED: _make_failed("auth", 401),
    HOPELESS: Failed((), "mapping", "email: no value"),
    CUT: Failed((), "lease_lost", "the lease ended"),
    SKIPPED: Skipped((), "nothing to do"),
}
"""Outcomes by name; `make_outcome` sets the times."""


def make_outcome(name: str, delivery: Delivery, began_at: datetime) -> Outcome:
    """Make the outcome of an attempt that began then.

    "fetched as new" has a last change up to a second after the event.
    """
    outcome = _OUTCOMES[name]
    if not isinstance(outcome, Delivered) or outcome.fetch_began_at is None:
        return outcome
    modified = None if outcome.last_modified is None else delivery.occurred_at + timedelta(seconds=1)
    return msgspec.structs.replace(outcome, fetch_began_at=began_at, last_modified=modified)


def is_swept(event: Event) -> bool:
    """Return whether the event is from a sweep."""
    if event.entity_type is None or event.entity_id is None:
        return False
    return event.dedup_key == swept_key(event.entity_type, event.entity_id, to_nanoseconds(event.occurred_at))


class Call(NamedTuple):
    """One call that reached the downstream service."""

    key: Key
    run: int
    attempt: int
    node: str
    step: int


@dataclass(eq=False)
class Held:
    """A delivery claimed by a relay."""

    delivery: Delivery
    trusted_until: datetime
    begun_at: datetime | None = None
    outcome: Outcome | None = None
    is_handed_in: bool = False
    """True when its outcome was sent to the database."""

    def end_call(self, name: str) -> None:
        """End its call with the outcome of this name."""
        assert self.begun_at is not None
        self.outcome = make_outcome(name, self.delivery, self.begun_at)

    @property
    def key(self) -> Key:
        return (self.delivery.seq, self.delivery.route)

    @property
    def lane(self) -> LaneKey:
        return (self.delivery.route, self.delivery.lane)


class Relay:
    """Consecutive relay processes with fresh ids, and the memory of the current one."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.starts = 0
        self.restart()

    def restart(self) -> None:
        """Crash and restart with an empty memory."""
        self.starts += 1
        self.node = f"{self.name}.{self.starts}"
        self.paused = False
        self.gates = Gates()
        """Gates as last read."""
        self.held: dict[LeaseKey, Held] = {}
        self.recorded: list[Held] = []
        """Deliveries last handed in and known to be recorded or refused."""

    def was_granted(self, delivery: Delivery, asked_at: datetime) -> None:
        self.held[lease_key_of(delivery)] = Held(delivery, asked_at + TRUSTED)

    def was_renewed(self, claimed: LeaseKey, asked_at: datetime) -> None:
        if claimed in self.held:
            self.held[claimed].trusted_until = asked_at + TRUSTED

    def forget(self, recorded: Iterable[Held]) -> None:
        for held in recorded:
            self.held.pop(lease_key_of(held.delivery), None)

    def list_untouched(self) -> list[Held]:
        """Return the deliveries without a call; a call may begin while the lease is trusted."""
        return [held for held in self.held.values() if held.begun_at is None]

    def running(self) -> list[Held]:
        """Return the running calls."""
        return [held for held in self.held.values() if held.begun_at is not None and held.outcome is None]

    def list_finished(self) -> list[Held]:
        """Return the deliveries with an outcome to record."""
        return [held for held in self.held.values() if held.outcome is not None]

    def cut(self, now: datetime) -> None:
        """Cut the calls without a trusted lease."""
        for held in self.running():
            if now >= held.trusted_until:
                held.end_call(CUT)


@dataclass
class Doing:
    """Record of one step of the model."""

    claimed: list[Delivery] = field(default_factory=list)
    probes: list[Delivery] = field(default_factory=list)
    """Claimed deliveries that probe a breaker."""
    handed_in: list[tuple[str, Delivery, Outcome]] = field(default_factory=list)
    """Outcomes handed in, with the node."""
    results: list[Recorded] = field(default_factory=list)
    calls: list[Call] = field(default_factory=list)
    asked_to_claim: bool = False
    rescued: list[tuple[int, str, AnyFact]] = field(default_factory=list)
    """Facts of expired leases taken back."""
    judged: int = 0
    """Count of judgements of duplicates."""
    differences: list[Difference] = field(default_factory=list)
    """Differences found by `verify` or `rebuild`."""
    operations: int = 0
    arrivals: int = 0
    """Count of receiver operations."""


class Ledger:
    """The true history of a run, which no relay knows in full."""

    def __init__(self) -> None:
        self.step = 0
        self.events: dict[int, Event] = {}
        """Acknowledged events, by seq."""
        self.lanes: dict[Key, LaneKey] = {}
        """Lanes of all expected deliveries."""
        self.ordered: dict[Key, int] = {}
        """Step in which each was first in its lane."""
        self.claimed: dict[Key, int] = {}
        """Step of each first claim before any replay."""
        self.calls: dict[Key, list[Call]] = defaultdict(list)
        self.arrived: dict[int, int] = {}
        """Step of the last request of each event."""
        self.repeats: Counter[int] = Counter()
        """Counts of duplicates by seq."""
        self.strict_once: set[LaneKey] = set()
        """Lanes that were settled before `ordering` became "latest"."""

    def acknowledge(self, seq: int, event: Event) -> None:
        self.events[seq] = event
        self.arrived[seq] = self.step
        for enrolment in event.enrolments:
            self.lanes[seq, enrolment.route] = (enrolment.route, enrolment.lane)

    def note_duplicate(self, seq: int) -> None:
        self.arrived[seq] = self.step
        self.repeats[seq] += 1

    def order(self, key: Key) -> tuple[datetime, int]:
        """Return the position of a delivery in its lane."""
        return (self.events[key[0]].occurred_at, key[0])

    def is_kept_in_place(self, lane: LaneKey, attempt: int) -> bool:
        """Return whether a first attempt of this number has taken over a retry, and may precede older events.

        In `strict`, an older arrival waits behind a head with attempts, even after `ordering` became "latest".
        """
        return attempt > 1 and lane in self.strict_once

    def call(self, call: Call) -> None:
        self.calls[call.key].append(call)


Told = TypeVar("Told", bound=AnyFact)


class Violation(AssertionError):
    """Broken promises; `kinds` has all that were seen together, the evidence is of the first."""

    def __init__(self, kind: str, evidence: object, *others: str) -> None:
        super().__init__(f"{kind}: {evidence}")
        self.kinds = {kind, *others}


@dataclass(frozen=True)
class Snapshot:
    """The stored state before and after a step, and the step's operations."""

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

    def told(self, kind: type[Told]) -> Iterator[tuple[Entry, Told]]:
        """Return the new entries with facts of this kind."""
        return ((entry, entry.fact) for entry in self.new if isinstance(entry.fact, kind))

    def held(self) -> Iterator[tuple[Relay, Held]]:
        """Return the deliveries with a trusted lease."""
        every = ((relay, held) for relay in self.relays for held in relay.held.values())
        return ((relay, held) for relay, held in every if self.now < held.trusted_until)

    @cached_property
    def lasts(self) -> Mapping[LaneKey, LastDelivered]:
        """Last success of each lane, by the facts."""
        return self._lasts(self.history.successes)

    def last_before(self, entry: Entry) -> LastDelivered | None:
        """Return the last success of the lane before this entry."""
        earlier = [success for success in self.history.successes if success.number < entry.number]
        return self._lasts(earlier).get(self.ledger.lanes[entry.key])

    def _lasts(self, successes: Sequence[Entry]) -> dict[LaneKey, LastDelivered]:
        """Return by lane the position of the newest delivered event, with the last fetch since then."""
        lasts: dict[LaneKey, LastDelivered] = {}
        for entry in successes:
            lane, order, fact = self.ledger.lanes[entry.key], self.ledger.order(entry.key), entry.fact
            assert isinstance(fact, facts.DeliveredFact)
            newest = max(order, lasts[lane].position) if lane in lasts else order
            if newest == order or fact.fetch_began_at is not None:
                lasts[lane] = LastDelivered(*newest, fact.fetch_began_at, fact.last_modified)
        return lasts


# --- The store's operations as the model's relays use them: statements to send, and results to learn from


@dataclass(frozen=True)
class Operation:
    """One call of a store function."""

    name: str
    send: Callable[[], Any]
    """Function that only uses the database, in any thread."""
    learn: Callable[[Any], None] = lambda _: None
    """Function that processes the result."""


class Operations:
    """A factory of operations. `answered` is False if the relay does not receive the result."""

    def __init__(self, world: World, ledger: Ledger) -> None:
        self._world = world
        self._database = world.database
        self._ledger = ledger
        self.doing = Doing()

    def _work(self, node: str | None = None, known: Policies = POLICIES) -> Work:
        return Work(self._database, CONFIG, known, node)

    def sequence(self, relay: Relay, batch: int = 500, known: Policies = POLICIES) -> Operation:
        return Operation("sequence", lambda: sequence.sequence(self._work(relay.node, known), batch=batch))

    def sequence_by_the_old(self, relay: Relay) -> Operation:
        """Sequence by the configuration before `ordering` became "latest"."""
        return self.sequence(relay, known=BEFORE_THE_CHANGE)

    def claim(
        self, relay: Relay, routes: Sequence[str], room: int, *, answered: bool = True, seen: Gates | None = None
    ) -> Operation:
        """Claim deliveries that the gates admit."""

        def claim_seen(seen: Gates) -> list[Delivery]:
            wanted = [claim.FreeCapacity(_select_admitted(seen, routes, "all"), room)]
            return claim.claim(self._work(relay.node), wanted) if wanted[0][0] else []

        return self._claiming("claim", relay, claim_seen, answered=answered, seen=seen)

    def claim_suspect(self, relay: Relay, routes: Sequence[str], *, seen: Gates | None = None) -> Operation:
        def claim_seen(seen: Gates) -> list[Delivery]:
            admitted = _select_admitted(seen, routes, "all")
            return claim.claim_suspect(self._work(relay.node), admitted) if admitted else []

        return self._claiming("claim_suspect", relay, claim_seen, seen=seen)

    def probe(self, relay: Relay, routes: Sequence[str]) -> Operation:
        """Claim a delivery of the first of these routes with a breaker to probe."""

        def claim_seen(seen: Gates) -> list[Delivery]:
            found = (
                claim.claim_probe(self._work(relay.node), route) for route in _select_admitted(seen, routes, "probe")
            )
            return next(filter(None, found), [])

        return self._claiming("probe", relay, claim_seen)

    def _claiming(
        self,
        name: str,
        relay: Relay,
        claimed: Callable[[Gates], list[Delivery]],
        *,
        answered: bool = True,
        seen: Gates | None = None,
    ) -> Operation:
        """Make a claim by the gates as `seen`, which are read first by default."""
        asked_at = self._world.clock.now

        def send() -> tuple[Gates, list[Delivery]]:
            gates_now = gates.read_gates(self._work()) if seen is None else seen
            return gates_now, claimed(gates_now)

        def learn(found: tuple[Gates, list[Delivery]]) -> None:
            relay.gates, deliveries = found
            self.doing.asked_to_claim = True
            self.doing.claimed += deliveries
            self.doing.probes += deliveries if name == "probe" else []
            for delivery in deliveries:
                if delivery.run == 0:
                    self._ledger.claimed.setdefault((delivery.seq, delivery.route), self._ledger.step)
                if answered:
                    relay.was_granted(delivery, asked_at)

        return Operation(name, send, learn)

    def renew(self, relay: Relay, held: Sequence[Held], *, answered: bool = True) -> Operation:
        asked_at, keys = self._world.clock.now, [lease_key_of(each.delivery) for each in held]

        def learn(renewed: set[LeaseKey]) -> None:
            for claimed in renewed if answered else ():
                relay.was_renewed(claimed, asked_at)

        return Operation("renew", lambda: leases.renew(self._database, keys), learn)

    def give_back(self, relay: Relay, held: Sequence[Held]) -> Operation:
        """Give back claims, which the relay forgets in any case."""
        keys = [lease_key_of(each.delivery) for each in held]
        return Operation(
            "give_back", lambda: leases.give_back(self._work(relay.node), keys)[1], lambda _: relay.forget(held)
        )

    def record(self, relay: Relay, held: Sequence[Held], *, answered: bool = True) -> Operation:
        """Record outcomes; successes reach only breakers that the relay has seen."""
        outcomes = [(each.delivery, each.outcome) for each in held if each.outcome is not None]
        node, watched = relay.node, list(relay.gates.breakers)

        def learn(results: list[record.Recorded]) -> None:
            self.doing.handed_in += [(node, *outcome) for outcome in outcomes]
            self.doing.results += results
            for each in held:
                each.is_handed_in = True
            if answered:
                relay.recorded = list(held)
                relay.forget(held)

        return Operation("record", lambda: recorded(self._work(node), outcomes, watched), learn)

    def look_at_gates(self, relay: Relay) -> Operation:
        return Operation(
            "look_at_gates", lambda: gates.read_gates(self._work()), lambda seen: setattr(relay, "gates", seen)
        )

    def rescue(self, relay: Relay) -> Operation:
        def learn(rescued: list[tuple[int, str, AnyFact]]) -> None:
            self.doing.rescued += rescued

        return Operation("rescue", lambda: leases.rescue_expired(self._work(relay.node)), learn)

    def judge(self, relay: Relay) -> Operation:
        def learn(_: object) -> None:
            self.doing.judged += 1

        return Operation("judge", lambda: duplicates.judge_duplicates(self._work(relay.node)), learn)

    def command(self, act: Act, selection: Selection) -> Operation:
        """Make an operator's command, whose result is the number of changed deliveries."""
        return Operation(act, lambda: carry_out(self._database, CONFIG, act, selection, why="agreed"))

    def turn(self, kind: Literal["pause", "resume"], gate: Gate) -> Operation:
        """Pause or resume a gate."""

        def send() -> None:
            number = commands.ask(self._database, kind, gate, who="kim", why="maintenance")
            execution.work_on(self._work(), number)

        return Operation(kind, send)

    def verify(self) -> Operation:
        """Verify the state, which must find no difference."""
        return Operation("verify", lambda: list(verify(self._database, CONFIG)), self._found)

    def rebuild(self) -> Operation:
        """Rebuild the state, which must find no difference."""
        return Operation(
            "rebuild", lambda: list(rebuild(self._database, CONFIG, who="kim", why="a check")), self._found
        )

    def _found(self, checked: Sequence[Checked]) -> None:
        self.doing.differences += [difference for chunk in checked for difference in chunk.differences]

    def heartbeat(self, relay: Relay) -> Operation:
        return Operation("heartbeat", lambda: nodes.heartbeat(self._database, relay.node))

    def start(self, relay: Relay) -> Operation:
        return Operation("heartbeat", lambda: nodes.describe(work_of(self._database, node=relay.node), "host", 1, "0"))


def _select_admitted(seen: Gates, routes: Sequence[str], admission: Admission) -> list[str]:
    return [route for route in routes if seen.admit(POLICIES[route].gates) == admission]
