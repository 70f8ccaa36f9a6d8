"""The states of a delivery and every transition between them. No other file changes a state.

1. A delivery changes only by a *step*. `TRANSITIONS` alone says what a step does in a state. A step without a row is a
   bug: it raises `IllegalTransition`, and the delivery stays as it was.
2. A step is a fact or scheduling (`SCHEDULING`). A fact is appended to `delivery_log` in the same transaction.
   Scheduling is not logged: the facts of the lane and the leases determine its head and its worker.
3. Two steps that lead to the same state remain two steps: the log distinguishes them.
4. The folded facts determine whether a delivery is open, blocked, dead or ended, how many attempts its run has used,
   and when the next is due. `relay verify` compares `open_delivery` with them.
5. A lane has at most one head (`HEADS`); the database refuses a second.
6. A dead delivery lets its lane go on; a blocked one stops it.
7. Only a correction leads from any state to the state it names (`CORRECTED_TO`): the facts before it contradict each other.
8. `append` applies a fact to a row, `advance` to the facts folded so far. Both go through `_apply`. They differ in what
   they know: a row has one of the open states and counts its running attempt (`_running`), a fold has neither.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from datetime import datetime
from enum import StrEnum

import msgspec

from inbox.errors import IllegalTransition
from inbox.events import states
from relay.delivery import facts
from relay.delivery.facts import AnyFact

State = states.State


class Step(StrEnum):
    """A thing that can happen to a delivery. The first five are scheduling; the others are kinds of facts."""

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
    ERASED = "erased"


SCHEDULING = frozenset({Step.QUEUED, Step.PROMOTED, Step.DEMOTED, Step.CLAIMED, Step.GIVEN_BACK})
HEADS = frozenset(states.HEADS)
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
        Step.ERASED: State.ENDED,
    },
}

OPEN = frozenset({State.RECEIVED, State.WAITING, State.READY, State.IN_FLIGHT})
"""The states that RECEIVED stands for in a fold."""

CORRECTED_TO: dict[facts.CorrectedState, State] = {
    "open": State.RECEIVED,
    "blocked": State.BLOCKED,
    "dead": State.DEAD,
    "ended": State.ENDED,
}


def after(state: State, step: Step) -> State:
    """Return the state that `step` leads to.

    Raises:
        IllegalTransition: `step` can't happen in `state`.
    """
    try:
        return TRANSITIONS[state][step]
    except KeyError:
        raise IllegalTransition(f"{step} can't happen to a delivery that is {state}") from None


def step_of(fact: AnyFact) -> Step:
    """Return the step that a fact is."""
    if isinstance(fact, facts.Dead) and not fact.counted:
        return Step.DEAD_UNATTEMPTED
    if isinstance(fact, facts.Dead) and fact.blocks_lane:
        return Step.DEAD_BLOCKING
    return Step(facts.kind_of(fact))


class OpenDelivery(msgspec.Struct, frozen=True):
    """A row of `open_delivery` on its way through one transaction, with the facts appended there."""

    seq: int
    route: str
    lane: str
    occurred_at: datetime
    state: State
    attempt: int = 0
    """Attempts of this run, a running one included."""
    run: int = 0
    due_at: datetime | None = None
    facts: tuple[AnyFact, ...] = ()
    crashes: int = 0
    """Attempts in a row whose lease expired."""
    counts: tuple[int, ...] = ()
    """The attempts used after each of `facts`."""

    @property
    def key(self) -> tuple[datetime, int]:
        """Sort key: a lane is worked in this order."""
        return (self.occurred_at, self.seq)

    @property
    def attempts_used(self) -> int:
        """Attempts of this run that have ended, as its facts count them."""
        return self.attempt - _running(self.state)


def _running(state: State) -> int:
    """Count the attempts that a row includes and its facts don't: the running one has no fact yet."""
    return int(state is State.IN_FLIGHT)


def schedule(delivery: OpenDelivery, step: Step, now: datetime) -> OpenDelivery:
    """Queue, promote or demote a delivery. A promoted one is due now, or later where its last failure set that.

    Raises:
        IllegalTransition: `step` can't happen in its state.
    """
    state = after(delivery.state, step)
    due_at = max(now, delivery.due_at or now) if state is State.READY else None
    return msgspec.structs.replace(delivery, state=state, due_at=due_at)


def append(delivery: OpenDelivery, fact: AnyFact, now: datetime) -> OpenDelivery:
    """Apply `fact` to a row.

    Raises:
        IllegalTransition: it can't happen in the row's state.
    """
    before = FoldedState(delivery.state, delivery.attempts_used, delivery.run, delivery.crashes)
    if isinstance(fact, facts.Replayed | facts.Rearmed):
        fact = msgspec.structs.replace(fact, run=before.run + 1)
    folded = _apply(fact, before, (delivery.state,))
    return msgspec.structs.replace(
        delivery,
        state=folded.state,
        attempt=folded.attempt,
        run=folded.run,
        crashes=folded.crashes,
        due_at=(folded.due_at or now) if folded.state is State.READY else None,
        facts=(*delivery.facts, fact),
        counts=(*delivery.counts, folded.attempt),
    )


class FoldedState(msgspec.Struct, frozen=True):
    """The state that the facts of one delivery lead to. Without facts it is open, with no attempt used."""

    state: State = State.RECEIVED
    """RECEIVED stands for every open state: scheduling determines the exact one."""
    attempt: int = 0
    """Attempts of this run that have ended."""
    run: int = 0
    crashes: int = 0
    due_at: datetime | None = None
    """The earliest next attempt, where the facts set one."""


NO_FACTS = FoldedState()


def fold(history: Iterable[AnyFact]) -> FoldedState:
    """Fold the facts of one delivery, in the order of their ids. A correction replaces all before it.

    Raises:
        IllegalTransition: no delivery can have this history.
    """
    known = list(history)
    corrections = [number for number, fact in enumerate(known) if isinstance(fact, facts.Corrected)]
    folded = NO_FACTS
    for fact in known[corrections[-1] if corrections else 0 :]:
        folded = advance(folded, fact)
    return folded


def advance(folded: FoldedState, fact: AnyFact) -> FoldedState:
    """Apply `fact` to the facts folded so far.

    Raises:
        IllegalTransition: it can't happen in this state, or for RECEIVED in any open state.
    """
    # The first fact may begin a run: its event had not taken the route, or the facts before it are pruned, or left out.
    begins = folded == NO_FACTS and isinstance(fact, facts.Replayed | facts.Rearmed)
    before = State.ENDED if begins else folded.state
    after_fact = _apply(fact, folded, OPEN if before is State.RECEIVED else (before,))
    is_open = after_fact.state in OPEN
    return msgspec.structs.replace(after_fact, state=State.RECEIVED) if is_open else after_fact


def _apply(fact: AnyFact, before: FoldedState, possible: Collection[State]) -> FoldedState:
    """Apply a fact to a delivery that is in one of the `possible` states.

    Args:
        fact: the fact.
        before: attempts used, run and crashes before it.
        possible: the states that it may be in before: one for a row, every open state for a fold that is open.

    Raises:
        IllegalTransition: it can't happen in any of them.
    """
    attempt, run, crashes, due_at = before.attempt, before.run, before.crashes, None
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
            attempt, run, crashes = 0, fact.run or run + 1, 0
        case facts.Corrected():
            attempt, run, crashes = fact.attempt, fact.run, 0
        case facts.Superseded() | facts.Cancelled() | facts.Unblocked() | facts.Dead(counted=False) | facts.Erased():
            pass  # no attempt was made
        case _:
            attempt += 1
    return FoldedState(_target(fact, possible), attempt, run, crashes, due_at)


def _target(fact: AnyFact, possible: Collection[State]) -> State:
    """Return the state after a fact, from one of the `possible` ones. No step leads from two open states to different ones."""
    if isinstance(fact, facts.Corrected):
        return CORRECTED_TO[fact.state]
    step = step_of(fact)
    for state in possible:
        if step in TRANSITIONS[state]:
            return TRANSITIONS[state][step]
    name = "open" if len(possible) > 1 else next(iter(possible))
    raise IllegalTransition(f"{step} can't happen to a delivery that is {name}")


def restore(delivery: OpenDelivery, folded: FoldedState) -> OpenDelivery:
    """Return the delivery as its facts have it, whatever its row says.

    A row's state that can be true stays. One in flight keeps its lease, and counts its running attempt.
    """
    keeps = delivery.state in OPEN if folded.state is State.RECEIVED else delivery.state is folded.state
    state = delivery.state if keeps else folded.state
    earliest = [due for due in (delivery.due_at if keeps else None, folded.due_at) if due is not None]
    return msgspec.structs.replace(
        delivery,
        state=state,
        attempt=folded.attempt + _running(state),
        run=folded.run,
        crashes=folded.crashes,
        due_at=max(earliest, default=None) if state in (State.RECEIVED, State.READY) else None,
    )
