"""Which delivery of a lane goes next, and which need not go at all. Pure: rows of one lane in, the rows that change out.

This is called whenever a lane may need a new head: when events arrive, when its head ends, dies or is to be retried.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime, timedelta

from inbox.config import Ordering
from relay import facts
from relay.lifecycle import HEADS, OpenDelivery, State, Step, append, schedule


def settle(
    ordering: Ordering, lane: Iterable[OpenDelivery], now: datetime, first_delay: timedelta
) -> list[OpenDelivery]:
    """Give a lane its head, and fold what a newer event stands for.

    Args:
        ordering: the route's.
        lane: its head if it has one, and those that arrived or wait. For `strict`, of the waiting ones the first is
            enough.
        now: the database's clock.
        first_delay: a retry that a newer event takes over is due no later than this.

    Returns:
        Every delivery given, in the state it has now.
    """
    rows = list(lane)
    head = next((row for row in rows if row.state in HEADS), None)
    others = [row for row in rows if row is not head]
    if not others:
        return rows
    if ordering == "latest":
        return _settle_latest(head, others, now, first_delay)
    return _settle_strict(head, others, now)


def _settle_strict(head: OpenDelivery | None, others: list[OpenDelivery], now: datetime) -> list[OpenDelivery]:
    """One by one by (occurred_at, seq). An older event that arrives in time goes before a head nobody has worked on."""
    first = min(others, key=lambda row: row.key)
    if head is not None and head.state is State.READY and head.attempt == 0 and first.key < head.key:
        settled = [schedule(head, Step.DEMOTED, now), schedule(first, Step.PROMOTED, now)]
    elif head is None:
        settled = [schedule(first, Step.PROMOTED, now)]
    else:
        settled = [head, _queued(first, now)]
    return settled + [_queued(row, now) for row in others if row is not first]


def _settle_latest(
    head: OpenDelivery | None, others: list[OpenDelivery], now: datetime, first_delay: timedelta
) -> list[OpenDelivery]:
    """The newest stands for all whose fetch is still to come. What is in flight may have fetched already, so it stands for none."""
    if head is not None and head.state is not State.READY:
        newest = max(others, key=lambda row: row.key)
        return [head, _queued(newest, now), *_superseded(others, newest, now)]
    candidates = others if head is None else [head, *others]
    newest = max(candidates, key=lambda row: row.key)
    folded = _superseded(candidates, newest, now)
    if newest is head:
        return [head, *folded]
    if head is not None and head.due_at is not None and (head.attempt > 0 or head.due_at > now):
        due_at = min(head.due_at, now + first_delay)
        taken = facts.TookOver(of=head.seq, attempt=head.attempt, crashes=head.crashes, due_at=due_at)
        return [*folded, append(newest, taken, now)]
    return [*folded, schedule(newest, Step.PROMOTED, now)]


def _queued(row: OpenDelivery, now: datetime) -> OpenDelivery:
    return schedule(row, Step.QUEUED, now) if row.state is State.RECEIVED else row


def _superseded(rows: list[OpenDelivery], newest: OpenDelivery, now: datetime) -> list[OpenDelivery]:
    return [append(row, facts.Superseded(by=newest.seq), now) for row in rows if row is not newest]
