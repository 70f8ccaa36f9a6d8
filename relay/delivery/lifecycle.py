"""The states of a delivery and every transition between them.

No other file changes a state, but for CLAIMED and GIVEN_BACK, which `relay.store.claim` and `relay.store.leases` make in SQL.

1. A delivery changes only by a *step*. `TRANSITIONS` alone says what a step does in a state. A step without a row is a
   bug: it raises `IllegalTransition`, and the delivery stays as it was.
2. A step is a fact or scheduling (`SCHEDULING`). A fact is appended to `delivery_log` in the same transaction.
   Scheduling is not logged: the facts of the lane and the leases determine its head and its worker.
3. Two steps that lead to the same state remain two steps: the log distinguishes them.
4. The row of a fact stores how the delivery stands after it (`Standing`): the last one says whether it is open, blocked,
   dead or ended. `relay verify` checks that each row follows from the one before (`follows`), and compares
   `open_delivery` with the last.
5. A lane has at most one head (`HEADS`); the database refuses a second.
6. A dead delivery lets its lane go on; a blocked one stops it.
7. Only a correction leads from any state to any other: the facts before it contradict each other.
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
"""Scheduling leads from one of them to another, and the log does not have it. `open_delivery` has dead and blocked ones, too."""


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


class Standing(msgspec.Struct, frozen=True):
    """State and counts of a delivery after a fact, as in the columns of `delivery_log`."""

    state: State = State.RECEIVED
    attempt: int = 0
    """Attempts of this run that have ended."""
    run: int = 0
    crashes: int = 0


NO_FACTS = Standing()


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
    standings: tuple[Standing, ...] = ()
    """Its standing after each of `facts`."""

    @property
    def key(self) -> tuple[datetime, int]:
        """Sort key: a lane is worked in this order."""
        return (self.occurred_at, self.seq)

    @property
    def standing(self) -> Standing:
        """Its standing now. The attempt that runs has no fact yet, so it is not counted."""
        return Standing(self.state, self.attempt - int(self.state is State.IN_FLIGHT), self.run, self.crashes)


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
    standing = Standing(after(delivery.state, step_of(fact)), attempt, run, crashes)
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
"""Kinds of facts that end an attempt. A failed one may not count."""
_BEGINS_RUN = frozenset({"replayed", "rearmed"})


def follows(before: Standing | None, kind: str, then: Standing, *, may_be_pruned: bool = False) -> bool:
    """True when a fact of this kind can lead from one row of a delivery's log to the next.

    Anything can follow in a correction, and in a fact that only a newer version knows.

    Args:
        before: how it stood after the row before; None: this is the first.
        kind: the fact's.
        then: how it stood after it.
        may_be_pruned: it is so old that failed attempts before it may have been deleted.
    """
    if kind == "corrected" or kind not in facts.KINDS:
        return True
    if before is None:  # its event had not taken the route when it arrived, so it had ended from the start
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
    """Return the delivery as its last fact has it, whatever its row says. A row's state that can be true stays.

    Args:
        delivery: its row; not one in flight that has to stay so.
        standing: how it stands after its last fact.
        due_at: the time before which that allows no attempt, if any.
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
