"""The states of a delivery, and everything that changes them. This file is the whole truth about it.

Rules:

1. A delivery changes only by a *step*. What a step does in a state stands in `TRANSITIONS`, and nowhere else; a step
without a row is
   a bug and raises `IllegalTransition`, and the delivery stays what it was.
2. A step is a fact, which is appended to `delivery_log` in the same transaction, or scheduling (`SCHEDULING`), which is
not: which
   delivery of a lane may go next, and who is working on it. Scheduling follows from the facts of the lane and from
   leases.
3. Two steps that lead to the same state are still two steps: the log tells them apart.
4. The facts alone, folded, say whether a delivery is open, blocked, dead or ended, how many attempts of its run are
used, and when
   the next is due. `relay verify` holds `open_delivery` against that.
5. At most one delivery of a lane is a head (`HEADS`); the database refuses a second.
6. A dead delivery does not hold up its lane, a blocked one does.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from enum import StrEnum

import msgspec

from inbox.errors import IllegalTransition
from relay import facts
from relay.facts import AnyFact


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
    DEAD = "dead"
    DEAD_BLOCKING = "dead_blocking"
    REPLAYED = "replayed"
    REARMED = "rearmed"
    UNBLOCKED = "unblocked"


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
        Step.SUPERSEDED: State.ENDED,
        Step.CANCELLED: State.ENDED,
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

    @property
    def key(self) -> tuple[datetime, int]:
        """A lane is worked in the order of this."""
        return (self.occurred_at, self.seq)


def schedule(delivery: OpenDelivery, step: Step, now: datetime) -> OpenDelivery:
    """Queue, promote or demote a delivery; one that is promoted is due at once.

    Raises:
        IllegalTransition: it can't be.
    """
    state = after(delivery.state, step)
    return msgspec.structs.replace(delivery, state=state, due_at=now if state is State.READY else None)


def append(delivery: OpenDelivery, fact: AnyFact, now: datetime) -> OpenDelivery:
    """Let `fact` happen to a delivery.

    Raises:
        IllegalTransition: it can't.
    """
    state = after(delivery.state, step_of(fact))
    attempt, run, due_at = delivery.attempt, delivery.run, None
    match fact:
        case facts.AttemptFailed(counted=counted, due_at=next_due):
            attempt, due_at = attempt - int(not counted), next_due
        case facts.TookOver(attempt=taken, due_at=next_due):
            attempt, due_at = taken, next_due
        case facts.Abandoned():
            due_at = now
        case facts.Replayed() | facts.Rearmed():
            attempt, run = 0, run + 1
        case _:
            pass
    return msgspec.structs.replace(
        delivery, state=state, attempt=attempt, run=run, due_at=due_at, facts=(*delivery.facts, fact)
    )


class Standing(msgspec.Struct, frozen=True):
    """What the facts of one delivery say of it; a delivery without facts is open, with no attempt used."""

    state: State = State.RECEIVED
    """RECEIVED stands for every open state: which one is scheduling."""
    attempt: int = 0
    run: int = 0
    due_at: datetime | None = None
    """The earliest next attempt, where the facts set one."""


def fold(history: Iterable[AnyFact]) -> Standing:
    """What the facts of one delivery, in the order of their ids, say of it.

    Raises:
        IllegalTransition: no delivery can have this history.
    """
    standing = Standing()
    for fact in history:
        standing = _apply(standing, fact)
    return standing


def _apply(standing: Standing, fact: AnyFact) -> Standing:
    step = step_of(fact)
    state = _folded(standing.state, step)
    attempt, run = standing.attempt, standing.run
    match fact:
        case facts.AttemptFailed(counted=counted, due_at=due_at):
            return Standing(state, attempt + int(counted), run, due_at)
        case facts.TookOver(attempt=taken, due_at=due_at):
            return Standing(state, taken, run, due_at)
        case facts.Replayed() | facts.Rearmed():
            return Standing(state, 0, run + 1, None)
        case facts.Superseded() | facts.Cancelled() | facts.Unblocked():
            return Standing(state, attempt, run, None)  # no attempt was made
        case _:
            return Standing(state, attempt + 1, run, None)


_OPEN = (State.RECEIVED, State.WAITING, State.READY, State.IN_FLIGHT)


def _folded(state: State, step: Step) -> State:
    """What `step` does to a folded state: an open one stands for each of the open states, so it takes what any of them takes."""
    candidates = _OPEN if state is State.RECEIVED else (state,)
    for candidate in candidates:
        if step in TRANSITIONS[candidate]:
            to = TRANSITIONS[candidate][step]
            return State.RECEIVED if to in _OPEN else to
    raise IllegalTransition(f"{step} can't happen to a delivery that is {'open' if state is State.RECEIVED else state}")
