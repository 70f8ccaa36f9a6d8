"""The states of a delivery, and everything that changes them. This file is the whole truth about it.

1. A delivery changes only by a *step*. What a step does in a state stands in `TRANSITIONS`, and nowhere else; a step
   without a row is a bug and raises `IllegalTransition`, and the delivery stays what it was.
2. A step is a fact, which is appended to `delivery_log` in the same transaction, or scheduling (`SCHEDULING`), which is
   not: which delivery of a lane may go next, and who works on it, follows from the facts of the lane and from leases.
3. Two steps that lead to the same state are still two steps: the log tells them apart.
4. The facts alone, folded, say whether a delivery is open, blocked, dead or ended, how many attempts of its run are used,
   and when the next is due. `relay verify` holds `open_delivery` against that.
5. At most one delivery of a lane is a head (`HEADS`); the database refuses a second.
6. A dead delivery does not hold up its lane, a blocked one does.
7. A correction alone leads from anywhere to where it says (`CORRECTED_TO`): the facts before it can't all be true.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from enum import StrEnum

import msgspec

from inbox.errors import IllegalTransition
from relay.delivery import facts
from relay.delivery.facts import AnyFact


class State(StrEnum):
    """Where a delivery stands: `open_delivery.state`, or ENDED when it has no row there."""

    RECEIVED = "received"
    WAITING = "waiting"
    READY = "ready"
    IN_FLIGHT = "in_flight"
    BLOCKED = "blocked"
    DEAD = "dead"
    ENDED = "ended"


class Step(StrEnum):
    """What can happen to a delivery. The first five are scheduling; the others are kinds of facts."""

    QUEUED = "queued"
    PROMOTED = "promoted"
    DEMOTED = "demoted"
    CLAIMED = "claimed"
    GIVEN_BACK = "given_back"
    DELIVERED = "delivered"
    UNCHANGED = "unchanged"
    SUPERSEDED = "superseded"
    SKIPPED = "skipped"
    CANCELLED = "cancelled"
    ATTEMPT_FAILED = "attempt_failed"
    ABANDONED = "abandoned"
    TOOK_OVER = "took_over"
    RESCHEDULED = "rescheduled"
    DEAD = "dead"
    DEAD_BLOCKING = "dead_blocking"
    DEAD_UNATTEMPTED = "dead_unattempted"
    REPLAYED = "replayed"
    REARMED = "rearmed"
    UNBLOCKED = "unblocked"
    CORRECTED = "corrected"


SCHEDULING = frozenset({Step.QUEUED, Step.PROMOTED, Step.DEMOTED, Step.CLAIMED, Step.GIVEN_BACK})
HEADS = frozenset({State.READY, State.IN_FLIGHT, State.BLOCKED})
TERMINAL = frozenset({Step.DELIVERED, Step.UNCHANGED, Step.SUPERSEDED, Step.SKIPPED, Step.CANCELLED})

TRANSITIONS: dict[State, dict[Step, State]] = {
    State.RECEIVED: {
        Step.QUEUED: State.WAITING,
        Step.PROMOTED: State.READY,
        Step.TOOK_OVER: State.READY,
        Step.SUPERSEDED: State.ENDED,
        Step.CANCELLED: State.ENDED,
        Step.DEAD_UNATTEMPTED: State.DEAD,
    },
    State.WAITING: {
        Step.PROMOTED: State.READY,
        Step.TOOK_OVER: State.READY,
        Step.SUPERSEDED: State.ENDED,
        Step.CANCELLED: State.ENDED,
    },
    State.READY: {
        Step.CLAIMED: State.IN_FLIGHT,
        Step.DEMOTED: State.WAITING,
        Step.RESCHEDULED: State.READY,
        Step.SUPERSEDED: State.ENDED,
        Step.CANCELLED: State.ENDED,
        Step.DEAD_UNATTEMPTED: State.DEAD,
    },
    State.IN_FLIGHT: {
        Step.DELIVERED: State.ENDED,
        Step.UNCHANGED: State.ENDED,
        Step.SKIPPED: State.ENDED,
        Step.ATTEMPT_FAILED: State.READY,
        Step.ABANDONED: State.READY,
        Step.GIVEN_BACK: State.READY,
        Step.DEAD: State.DEAD,
        Step.DEAD_BLOCKING: State.BLOCKED,
    },
    State.BLOCKED: {
        Step.UNBLOCKED: State.DEAD,
        Step.REPLAYED: State.RECEIVED,
        Step.CANCELLED: State.ENDED,
    },
    State.DEAD: {
        Step.REPLAYED: State.RECEIVED,
        Step.REARMED: State.RECEIVED,
        Step.SUPERSEDED: State.ENDED,
        Step.CANCELLED: State.ENDED,
    },
    State.ENDED: {
        Step.REPLAYED: State.RECEIVED,
        Step.REARMED: State.RECEIVED,
    },
}

CORRECTED_TO: dict[facts.CorrectedState, State] = {
    "open": State.RECEIVED,
    "blocked": State.BLOCKED,
    "dead": State.DEAD,
    "ended": State.ENDED,
}


def after(state: State, step: Step) -> State:
    """The state that `step` leads to.

    Raises:
        IllegalTransition: `step` can't happen in `state`.
    """
    try:
        return TRANSITIONS[state][step]
    except KeyError:
        raise IllegalTransition(f"{step} can't happen to a delivery that is {state}") from None


def step_of(fact: AnyFact) -> Step:
    """The step that a fact is."""
    if isinstance(fact, facts.Dead) and not fact.counted:
        return Step.DEAD_UNATTEMPTED
    if isinstance(fact, facts.Dead) and fact.blocks_lane:
        return Step.DEAD_BLOCKING
    return Step(facts.kind_of(fact))


class OpenDelivery(msgspec.Struct, frozen=True):
    """A row of `open_delivery` on its way through one transaction, with the facts it has gathered there."""

    seq: int
    route: str
    lane: str
    occurred_at: datetime
    state: State
    attempt: int = 0
    run: int = 0
    due_at: datetime | None = None
    facts: tuple[AnyFact, ...] = ()
    crashes: int = 0
    """Attempts in a row whose lease ran out."""
    counts: tuple[int, ...] = ()
    """The attempts used after each of `facts`."""

    @property
    def key(self) -> tuple[datetime, int]:
        """A lane is worked in the order of this."""
        return (self.occurred_at, self.seq)


def schedule(delivery: OpenDelivery, step: Step, now: datetime) -> OpenDelivery:
    """Queue, promote or demote a delivery; one that is promoted is due at once, or when its last failure said.

    Raises:
        IllegalTransition: it can't be.
    """
    state = after(delivery.state, step)
    due_at = max(now, delivery.due_at or now) if state is State.READY else None
    return msgspec.structs.replace(delivery, state=state, due_at=due_at)


def append(delivery: OpenDelivery, fact: AnyFact, now: datetime) -> OpenDelivery:
    """Let `fact` happen to a delivery.

    Raises:
        IllegalTransition: it can't.
    """
    attempt, run, crashes, due_at = delivery.attempt, delivery.run, delivery.crashes, None
    match fact:
        case facts.AttemptFailed(counted=counted, due_at=next_due):
            attempt, crashes, due_at = attempt - int(not counted), 0, next_due
        case facts.TookOver(attempt=taken, crashes=taken_crashes, due_at=next_due):
            attempt, crashes, due_at = taken, taken_crashes, next_due
        case facts.Rescheduled(due_at=next_due):
            due_at = next_due
        case facts.Abandoned():
            crashes, due_at = crashes + 1, now
        case facts.Replayed() | facts.Rearmed():
            attempt, run, crashes = 0, run + 1, 0
        case facts.Corrected():
            attempt, run, crashes = fact.attempt, fact.run, 0
        case _:
            pass
    return msgspec.structs.replace(
        delivery,
        state=_target(delivery.state, fact),
        attempt=attempt,
        run=run,
        crashes=crashes,
        due_at=due_at,
        facts=(*delivery.facts, fact),
        counts=(*delivery.counts, attempt),
    )


def _target(state: State, fact: AnyFact) -> State:
    return CORRECTED_TO[fact.state] if isinstance(fact, facts.Corrected) else after(state, step_of(fact))


class FoldedState(msgspec.Struct, frozen=True):
    """What the facts of one delivery say of it; a delivery without facts is open, with no attempt used."""

    state: State = State.RECEIVED
    """RECEIVED stands for every open state: which one is scheduling."""
    attempt: int = 0
    run: int = 0
    crashes: int = 0
    due_at: datetime | None = None
    """The earliest next attempt, where the facts set one."""


NO_FACTS = FoldedState()


def fold(history: Iterable[AnyFact]) -> FoldedState:
    """What the facts of one delivery, in the order of their ids, say of it. A correction stands for all before it.

    Raises:
        IllegalTransition: no delivery can have this history.
    """
    known = list(history)
    corrections = [number for number, fact in enumerate(known) if isinstance(fact, facts.Corrected)]
    standing = NO_FACTS
    for fact in known[corrections[-1] if corrections else 0 :]:
        standing = advance(standing, fact)
    return standing


def advance(standing: FoldedState, fact: AnyFact) -> FoldedState:
    """One step of `fold`.

    Raises:
        IllegalTransition: it can't happen to a delivery that stands so.
    """
    attempt, run, crashes, due_at = standing.attempt, standing.run, standing.crashes, None
    # A replay may be the first fact there is: its event had not taken the route, or what was before it is pruned.
    before = State.ENDED if standing == NO_FACTS and isinstance(fact, facts.Replayed) else standing.state
    match fact:
        case facts.AttemptFailed(counted=counted, due_at=next_due):
            attempt, crashes, due_at = attempt + int(counted), 0, next_due
        case facts.TookOver(attempt=taken, crashes=taken_crashes, due_at=next_due):
            attempt, crashes, due_at = taken, taken_crashes, next_due
        case facts.Rescheduled(due_at=next_due):
            due_at = next_due
        case facts.Abandoned():
            attempt, crashes = attempt + 1, crashes + 1
        case facts.Replayed() | facts.Rearmed():
            attempt, run, crashes = 0, run + 1, 0
        case facts.Corrected():
            attempt, run, crashes = fact.attempt, fact.run, 0
        case facts.Superseded() | facts.Cancelled() | facts.Unblocked() | facts.Dead(counted=False):
            pass  # no attempt was made
        case _:
            attempt += 1
    return FoldedState(_folded(before, fact), attempt, run, crashes, due_at)


def restore(delivery: OpenDelivery, standing: FoldedState) -> OpenDelivery:
    """The delivery as its facts have it, whatever its row says.

    Where the row's state can be true it stays, with the lease of one in flight, whose running attempt is no fact yet.
    """
    keeps = delivery.state in OPEN if standing.state is State.RECEIVED else delivery.state is standing.state
    state = delivery.state if keeps else standing.state
    earliest = [due for due in (delivery.due_at if keeps else None, standing.due_at) if due is not None]
    return msgspec.structs.replace(
        delivery,
        state=state,
        attempt=standing.attempt + int(state is State.IN_FLIGHT),
        run=standing.run,
        crashes=standing.crashes,
        due_at=max(earliest, default=None) if state in (State.RECEIVED, State.READY) else None,
    )


OPEN = frozenset({State.RECEIVED, State.WAITING, State.READY, State.IN_FLIGHT})
"""What a folded state of RECEIVED stands for."""


def _folded(state: State, fact: AnyFact) -> State:
    """What a fact does to a folded state: an open one stands for each of the open states, so it takes what any of them takes."""
    if isinstance(fact, facts.Corrected):
        return CORRECTED_TO[fact.state]
    step = step_of(fact)
    for candidate in sorted(OPEN) if state is State.RECEIVED else (state,):
        if step in TRANSITIONS[candidate]:
            to = TRANSITIONS[candidate][step]
            return State.RECEIVED if to in OPEN else to
    raise IllegalTransition(f"{step} can't happen to a delivery that is {'open' if state is State.RECEIVED else state}")
