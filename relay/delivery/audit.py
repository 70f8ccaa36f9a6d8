"""Compares stored state with the state folded from the log. Pure: facts and rows of one delivery in, differences out.

`relay.store.audit.examine` reads both sides, `relay verify` shows the differences, `relay rebuild` repairs them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from datetime import datetime
from typing import Literal

import msgspec

from inbox.errors import IllegalTransition
from relay.delivery import facts
from relay.delivery.facts import AnyFact
from relay.delivery.lifecycle import NO_FACTS, OPEN, FoldedState, OpenDelivery, State, advance

Finding = Literal[
    "missing",  # it is open, blocked or dead by its facts, and has no row
    "ended",  # it has ended by its facts, and has a row
    "unrouted",  # it has a row or facts, and its event was never routed there
    "no_event",  # it has a row or facts, and its event is not in the inbox
    "state",  # its row is open, blocked or dead, and its facts contradict that
    "attempt",  # its row and its facts count different attempts
    "run",  # its row and its facts count different runs
    "crashes",  # its row and its facts count different abandoned attempts in a row
    "due_at",  # its row is due before its last failure allows
    "occurred_at",  # its row and its event have different times
    "lane",  # its row is in a lane that its event can't have
    "contradiction",  # its facts can't all be true
    "newer_version",  # it has facts that only a newer version can read: verify with that version
    "superseded_by",  # the event said to cover it can't
    "no_head",  # deliveries wait in a lane without a head
    "last_delivered",  # the lane's last delivery contradicts its facts
]


class Difference(msgspec.Struct, frozen=True):
    """A stored value that contradicts the log."""

    finding: Finding
    seq: int | None
    route: str | None
    lane: str | None
    facts_say: str
    stored: str


class Logged(msgspec.Struct, frozen=True):
    """A row of `delivery_log`."""

    id: int
    kind: str
    attempt: int
    fact: AnyFact | None
    """None: this version can't read it."""
    at: Callable[[], datetime]
    """Returns the time of the record. A callable, since few need it."""


class Account(msgspec.Struct, frozen=True):
    """The state and the contradictions found in the facts of one delivery."""

    folded: FoldedState = NO_FACTS
    contradictions: tuple[str, ...] = ()
    last: Logged | None = None
    """The last fact that is no erasure."""
    delivered: facts.DeliveredFact | None = None
    """The last delivered fact."""
    superseded_by: int | None = None
    """The newer event that covers it, where it ended so."""
    is_asked_for: bool = False
    """An operator replayed it, so it is a delivery even on a route that its event had not taken."""
    is_put_right: bool = False
    """A correction replaced all facts before it."""
    is_newer: bool = False
    """It has facts that only a newer version can read, so the others prove nothing."""


def account(history: Iterable[Logged], pruned_before: datetime) -> Account:
    """Fold the facts of one delivery, in the order of their ids. Report an impossible one, and leave it out.

    Args:
        history: the facts.
        pruned_before: facts older than this may have been pruned, so a later one may count more attempts than are left.
    """
    folded, last, delivered = NO_FACTS, None, None
    is_asked_for = is_put_right = is_newer = False
    contradictions: list[str] = []
    unseen = 0
    for logged in history:
        last = last if isinstance(logged.fact, facts.Erased) else logged
        if logged.fact is None:
            is_newer |= logged.kind not in facts.KINDS
            contradictions.append(f"fact {logged.id}: no fact of this version is a {logged.kind} like this")
            continue
        try:
            folded = advance(folded, logged.fact)
        except IllegalTransition as error:
            contradictions.append(f"fact {logged.id}: {error}")
            continue
        match logged.fact:
            case facts.Corrected():
                contradictions.clear()
                is_put_right, is_newer, unseen = True, False, 0
            case facts.Replayed():
                is_asked_for, unseen = True, 0
            case facts.Rearmed():
                unseen = 0  # a new run, too
            case facts.DeliveredFact():
                delivered = logged.fact
            case _:
                pass
        gap = logged.attempt - folded.attempt
        if gap != unseen and not (gap > unseen and logged.at() < pruned_before):
            contradictions.append(
                f"fact {logged.id} ({logged.kind}) counts {logged.attempt} attempts, the facts up to it {folded.attempt}"
            )
        unseen = gap
    ended_by = last.fact if last is not None and isinstance(last.fact, facts.Superseded) else None
    by = ended_by.by if ended_by is not None and ended_by.because in {"newer", "healed"} else None
    return Account(
        folded,
        tuple(contradictions),
        last,
        delivered,
        by if folded.state is State.ENDED else None,
        is_asked_for,
        is_put_right,
        is_newer,
    )


class Subject(msgspec.Struct, frozen=True):
    """All that is stored of one delivery."""

    seq: int
    route: str
    occurred_at: datetime | None
    """Its event's time; None: the event is not in the inbox."""
    lanes: frozenset[str]
    """The lanes that its event can have."""
    is_routed: bool
    """Its event took this route when it arrived."""
    row: OpenDelivery | None
    account: Account

    @property
    def is_expected(self) -> bool:
        """True when the delivery should exist."""
        return self.occurred_at is not None and (self.is_routed or self.account.is_asked_for)


def compare(subject: Subject) -> Iterator[Difference]:
    """Yield each stored value of a delivery that contradicts its facts."""
    row, folded = subject.row, subject.account.folded
    if subject.occurred_at is None:
        yield _difference(subject, "no_event", "no such event", _stored(row))
        return
    if subject.account.is_newer:
        yield _difference(subject, "newer_version", "; ".join(subject.account.contradictions), _stored(row))
        return
    for contradiction in subject.account.contradictions:
        yield _difference(subject, "contradiction", contradiction, _stored(row))
    if not subject.is_expected:
        if row is not None or (subject.account.last is not None and not subject.account.is_put_right):
            yield _difference(subject, "unrouted", "the event takes no such route", _stored(row))
        return
    if row is None:
        if folded.state is not State.ENDED:
            yield _difference(subject, "missing", _state_name(folded.state), _stored(row))
        return
    if folded.state is State.ENDED:
        yield _difference(subject, "ended", _state_name(folded.state), _stored(row))
        return
    yield from _compare_fields(subject, row, folded)


def _compare_fields(subject: Subject, row: OpenDelivery, folded: FoldedState) -> Iterator[Difference]:
    state = State.RECEIVED if row.state in OPEN else row.state

    if state is not folded.state:
        yield _difference(subject, "state", _state_name(folded.state), row.state)
    pairs: tuple[tuple[Finding, object, object], ...] = (
        ("attempt", folded.attempt, row.attempts_used),
        ("run", folded.run, row.run),
        ("crashes", folded.crashes, row.crashes),
        ("occurred_at", subject.occurred_at, row.occurred_at),
    )
    for finding, said, stored in pairs:
        if said != stored:
            yield _difference(subject, finding, str(said), str(stored))
    if row.state is State.READY and folded.due_at is not None and (row.due_at is None or row.due_at < folded.due_at):
        yield _difference(subject, "due_at", f"not before {folded.due_at}", str(row.due_at))
    if row.lane not in subject.lanes:
        yield _difference(subject, "lane", " or ".join(sorted(subject.lanes)), row.lane)


def _difference(subject: Subject, finding: Finding, facts_say: str, stored: str) -> Difference:
    lane = None if subject.row is None else subject.row.lane
    return Difference(finding, subject.seq, subject.route, lane, facts_say, stored)


def _stored(row: OpenDelivery | None) -> str:
    return "no row" if row is None else row.state.value


def _state_name(state: State) -> str:
    return "open" if state is State.RECEIVED else state.value
