"""The states of a delivery and every transition between them.

Only this file changes states, with three exceptions in SQL: `relay.store.claim` makes CLAIMED, `relay.store.leases`
makes GIVEN_BACK, and `relay.store.rebuild` makes repairs.

1. A delivery changes only by a *step*. `TRANSITIONS` alone defines the effect of a step in a state, except for rule 7. A step
   without an entry is a bug: it raises `IllegalTransition`, and the delivery stays unchanged.
2. A step is a fact or scheduling (`SCHEDULING`). A fact is appended to `delivery_log` in the same transaction.
   Scheduling is not logged: it follows from the facts of the lane and the leases.
3. Two steps that lead to the same state remain two steps: the log distinguishes them.
4. The row of a fact stores the delivery's `Standing` after the fact. The last row says whether the delivery is open,
   blocked, dead or ended. `relay verify` checks that each row follows from the one before (`follows`), and compares
   `open_delivery` with the last row.
5. A lane has at most one head (`HEADS`); the database refuses a second.
6. A dead delivery lets its lane continue; a blocked one stops it.
7. A correction, which only `relay.store.rebuild` makes, leads from any state to any other: the facts before it contradict
   each other.
"""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum

import msgspec

from inbox.errors import IllegalTransition
from inbox.events import states
from relay.delivery import facts
from relay.delivery.facts import AnyFact

State = states.State


class Step(StrEnum):
    """A change of a delivery. The first five are scheduling; the others are kinds of facts."""

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
ENDING_STEPS = frozenset({Step.DELIVERED, Step.UNCHANGED, Step.SUPERSEDED, Step.SKIPPED, Step.CANCELLED})

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
"""States between which scheduling moves a delivery, without a log entry. `open_delivery` also has dead and blocked ones."""


def apply_step(state: State, step: Step) -> State:
    """Return the state that `step` leads to.

    Raises:
        IllegalTransition: `step` can't happen in `state`.
    """
    try:
        return TRANSITIONS[state][step]
    except KeyError:
        raise IllegalTransition(f"{step} can't happen to a delivery that is {state}") from None


def get_step(fact: AnyFact) -> Step:
    """Return the step of a fact."""
    if isinstance(fact, facts.Dead) and not fact.counted:
        return Step.DEAD_UNATTEMPTED
    if isinstance(fact, facts.Dead) and fact.blocks_lane:
        return Step.DEAD_BLOCKING
    return Step(facts.get_kind(fact))


class Standing(msgspec.Struct, frozen=True):
    """State and counts of a delivery after a fact, stored in columns of `delivery_log`."""

    state: State = State.RECEIVED
    attempt: int = 0
    """Completed attempts of this run."""
    run: int = 0
    crashes: int = 0


NO_FACTS = Standing()


class OpenDelivery(msgspec.Struct, frozen=True):
    """A row of `open_delivery` within a transaction, with the facts appended there."""

    seq: int
    route: str
    lane: str
    occurred_at: datetime
    state: State
    attempt: int = 0
    """Attempts of this run, including a running one."""
    run: int = 0
    due_at: datetime | None = None
    facts: tuple[AnyFact, ...] = ()
    crashes: int = 0
    """Consecutive attempts whose lease expired."""
    standings: tuple[Standing, ...] = ()
    """The standing after each of `facts`."""

    @property
    def position(self) -> tuple[datetime, int]:
        """Position in the order of its lane."""
        return (self.occurred_at, self.seq)

    @property
    def standing(self) -> Standing:
        """The standing now. A running attempt has no fact yet, so it is not counted."""
        return Standing(self.state, self.attempt - int(self.state is State.IN_FLIGHT), self.run, self.crashes)


def schedule(delivery: OpenDelivery, step: Step, now: datetime) -> OpenDelivery:
    """Queue, promote or demote a delivery. A promoted one is due now, or at the later time that its last failure set.

    Raises:
        IllegalTransition: `step` can't happen in its state.
    """
    state = apply_step(delivery.state, step)
    due_at = max(now, delivery.due_at or now) if state is State.READY else None
    return msgspec.structs.replace(delivery, state=state, due_at=due_at)


def apply_fact(delivery: OpenDelivery, fact: AnyFact, now: datetime) -> OpenDelivery:
    """Apply `fact` to a row.

    Raises:
        IllegalTransition: it can't happen in the row's state.
    """
    before, due_at = delivery.standing, now
    attempt, run, crashes = before.attempt, before.run, before.crashes
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
        case facts.Superseded() | facts.Cancelled() | facts.Unblocked() | facts.Dead(counted=False) | facts.Erased():
            pass  # no attempt was made
        case _:
            attempt += 1
    standing = Standing(apply_step(delivery.state, get_step(fact)), attempt, run, crashes)
    return msgspec.structs.replace(
        delivery,
        state=standing.state,
        attempt=attempt,
        run=run,
        crashes=crashes,
        due_at=due_at if standing.state is State.READY else None,
        facts=(*delivery.facts, fact),
        standings=(*delivery.standings, standing),
    )


_ONE_MORE = frozenset({"delivered", "unchanged", "skipped", "abandoned"})
_PERHAPS_ONE_MORE = frozenset({"attempt_failed", "dead"})
"""Kinds of facts that end an attempt, which may or may not count."""
_BEGINS_RUN = frozenset({"replayed", "rearmed"})


def follows(before: Standing | None, kind: str, then: Standing, *, may_be_pruned: bool = False) -> bool:
    """Return whether a fact of this kind can lead from one standing of a delivery to the next.

    A correction, or a fact of a newer version, can lead anywhere.

    Args:
        before: the standing before the fact; None if it is the first.
        kind: the kind of the fact.
        then: the standing after the fact.
        may_be_pruned: True if earlier failed attempts may have been deleted already.
    """
    if kind == "corrected" or kind not in facts.KINDS:
        return True
    if before is None:  # a run of an event that did not take the route on arrival starts from an ended delivery
        before = Standing(State.ENDED) if kind in _BEGINS_RUN else NO_FACTS
    steps = {step for step in Step if step.value.startswith("dead")} if kind == "dead" else {Step(kind)}
    states = OPEN if before.state in OPEN else {before.state}
    if not any(TRANSITIONS[state].get(step) is then.state for state in states for step in steps):
        return False
    if kind in _BEGINS_RUN:
        return then == Standing(then.state, 0, before.run + 1, 0)
    gained = then.attempt - before.attempt
    is_counted = (
        kind == "took_over"
        or gained == int(kind in _ONE_MORE)
        or (gained == 1 and kind in _PERHAPS_ONE_MORE)
        or (gained > 0 and may_be_pruned)
    )
    return is_counted and then.run == before.run


def restore(delivery: OpenDelivery, standing: Standing, due_at: datetime | None) -> OpenDelivery:
    """Return the delivery as its last fact implies, keeping the row's state where that agrees with the fact.

    Args:
        delivery: the row; not one that has to stay in flight.
        standing: the standing after its last fact.
        due_at: the earliest time of the next attempt by that fact, if any.
    """
    is_open = standing.state in OPEN
    keeps = delivery.state in OPEN if is_open else delivery.state is standing.state
    keeps &= delivery.state is not State.WAITING or due_at is None  # it was the head of its lane
    state = delivery.state if keeps else State.RECEIVED if is_open else standing.state
    earliest = [due for due in (delivery.due_at if keeps else None, due_at) if due is not None]
    return msgspec.structs.replace(
        delivery,
        state=state,
        attempt=standing.attempt,
        run=standing.run,
        crashes=standing.crashes,
        due_at=max(earliest, default=None) if state in (State.RECEIVED, State.READY) else None,
    )
