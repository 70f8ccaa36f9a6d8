"""Whether what is stored follows from the log. Pure: facts and rows of one delivery in, differences out.

`relay.store.audit.examine` reads what is compared here, `relay verify` shows the differences, `relay rebuild` mends them.
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
    "state",  # its row is open, blocked or dead, and its facts say otherwise
    "attempt",  # its row counts other attempts than its facts
    "run",  # its row counts other replays than its facts
    "crashes",  # its row counts other abandoned attempts in a row than its facts
    "due_at",  # its row is due before its last failure allows
    "ahead",  # a time lies further ahead than any rule allows
    "occurred_at",  # its row has another time than its event
    "lane",  # its row is in a lane that its event can't have
    "contradiction",  # its facts can't all be true
    "newer_version",  # it has facts that only a newer version knows; that has to look
    "superseded_by",  # the event that stands for it can't
    "view",  # the view `delivery` shows something else
    "no_head",  # deliveries wait in a lane where none may go next
    "last_delivered",  # the lane's last delivery is not what its facts say
    "total",  # a view counts something else than the table
]


class Difference(msgspec.Struct, frozen=True):
    """One thing that is stored otherwise than the log has it."""

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
    """None: it is no fact of this version."""
    at: Callable[[], datetime]
    """When it was recorded; asked for only when it matters."""


class Account(msgspec.Struct, frozen=True):
    """What the facts of one delivery come to."""

    standing: FoldedState = NO_FACTS
    contradictions: tuple[str, ...] = ()
    last: Logged | None = None
    delivered: facts.Delivered | None = None
    """The last time that it was."""
    superseded_by: int | None = None
    """When it ended so: the newer event that stands for it."""
    is_asked_for: bool = False
    """A person had it replayed, so it is a delivery even where its event was not routed to."""
    is_put_right: bool = False
    """A correction stands for all that was before it."""
    is_newer: bool = False
    """It has facts that only a newer version knows, so that nothing follows from the others."""


def account(history: Iterable[Logged], pruned_before: datetime) -> Account:
    """Fold the facts of one delivery, in the order of their ids; one that can't be is left out and told.

    Args:
        history: the facts.
        pruned_before: attempts older than this may have been pruned, so that others count further than these.
    """
    standing, last, delivered = NO_FACTS, None, None
    is_asked_for = is_put_right = is_newer = False
    contradictions: list[str] = []
    unseen = 0
    for last in history:
        if last.fact is None:
            is_newer |= last.kind not in facts.KINDS
            contradictions.append(f"fact {last.id}: no fact of this version is a {last.kind} like this")
            continue
        try:
            standing = advance(standing, last.fact)
        except IllegalTransition as error:
            contradictions.append(f"fact {last.id}: {error}")
            continue
        match last.fact:
            case facts.Corrected():
                contradictions.clear()
                is_put_right, is_newer, unseen = True, False, 0
            case facts.Replayed():
                is_asked_for, unseen = True, 0
            case facts.Delivered():
                delivered = last.fact
            case _:
                pass
        gap = last.attempt - standing.attempt
        if gap != unseen and not (gap > unseen and last.at() < pruned_before):
            contradictions.append(
                f"fact {last.id} ({last.kind}) counts {last.attempt} attempts, the facts up to it {standing.attempt}"
            )
        unseen = gap
    ended_by = last.fact if last is not None and isinstance(last.fact, facts.Superseded) else None
    by = ended_by.by if ended_by is not None and ended_by.because in {"newer", "healed"} else None
    return Account(
        standing,
        tuple(contradictions),
        last,
        delivered,
        by if standing.state is State.ENDED else None,
        is_asked_for,
        is_put_right,
        is_newer,
    )


class Subject(msgspec.Struct, frozen=True):
    """One delivery, as far as anything is stored of it."""

    seq: int
    route: str
    occurred_at: datetime | None
    """Its event's time; None: the event is not in the inbox."""
    lanes: frozenset[str]
    """Those that its event can have."""
    is_routed: bool
    """Its event took this route when it arrived."""
    row: OpenDelivery | None
    account: Account

    @property
    def is_expected(self) -> bool:
        """Whether there is such a delivery."""
        return self.occurred_at is not None and (self.is_routed or self.account.is_asked_for)


def compare(subject: Subject) -> Iterator[Difference]:
    """What is stored of a delivery otherwise than its facts have it."""
    row, standing = subject.row, subject.account.standing
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
        if standing.state is not State.ENDED:
            yield _difference(subject, "missing", _told(standing.state), _stored(row))
        return
    if standing.state is State.ENDED:
        yield _difference(subject, "ended", _told(standing.state), _stored(row))
        return
    yield from _compare_fields(subject, row, standing)


def _compare_fields(subject: Subject, row: OpenDelivery, standing: FoldedState) -> Iterator[Difference]:
    state = State.RECEIVED if row.state in OPEN else row.state
    used = row.attempt - int(row.state is State.IN_FLIGHT)  # the attempt that runs is no fact yet
    if state is not standing.state:
        yield _difference(subject, "state", _told(standing.state), row.state)
    pairs: tuple[tuple[Finding, object, object], ...] = (
        ("attempt", standing.attempt, used),
        ("run", standing.run, row.run),
        ("crashes", standing.crashes, row.crashes),
        ("occurred_at", subject.occurred_at, row.occurred_at),
    )
    for finding, said, stored in pairs:
        if said != stored:
            yield _difference(subject, finding, str(said), str(stored))
    if (
        row.state is State.READY
        and standing.due_at is not None
        and (row.due_at is None or row.due_at < standing.due_at)
    ):
        yield _difference(subject, "due_at", f"not before {standing.due_at}", str(row.due_at))
    if row.lane not in subject.lanes:
        yield _difference(subject, "lane", " or ".join(sorted(subject.lanes)), row.lane)


def shown(subject: Subject) -> tuple[str, int]:
    """State and attempts of the view `delivery`."""
    row, last = subject.row, subject.account.last
    if row is not None:
        return row.state.value, row.attempt
    return ("", 0) if last is None else (last.kind, last.attempt)


def _difference(subject: Subject, finding: Finding, facts_say: str, stored: str) -> Difference:
    lane = None if subject.row is None else subject.row.lane
    return Difference(finding, subject.seq, subject.route, lane, facts_say, stored)


def _stored(row: OpenDelivery | None) -> str:
    return "no row" if row is None else row.state.value


def _told(state: State) -> str:
    return "open" if state is State.RECEIVED else state.value
