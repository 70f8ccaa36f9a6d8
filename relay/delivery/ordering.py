"""Picks the head of a lane, and ends deliveries that a newer event covers. Pure: rows of one lane in and out.

The store calls it whenever a lane may need a new head: when events arrive, and when its head ends, dies or fails.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime, timedelta

import msgspec

from inbox.config.model import Ordering
from relay.delivery import facts
from relay.delivery.lifecycle import HEADS, OpenDelivery, State, Step, apply_fact, schedule

LanePosition = tuple[datetime, int]
"""Time and seq of an event: the sort key of a lane."""


def settle(
    ordering: Ordering,
    lane: Iterable[OpenDelivery],
    now: datetime,
    first_delay: timedelta,
    upto: LanePosition | None = None,
) -> list[OpenDelivery]:
    """Choose the head of a lane, and supersede deliveries that a newer event covers.

    Args:
        ordering: the ordering of the route.
        lane: the head of the lane if it has one, and its received and waiting deliveries. `strict` needs only the first
            waiting delivery, and `latest` the oldest few.
        now: the database's time.
        first_delay: the longest delay of a retry that a newer event takes over.
        upto: the last waiting delivery that was read, if more wait behind it. `latest` leaves later ones to the next
            rounds, as if they had not arrived yet. So a delivery made between two rounds is older than all the rest.

    Returns:
        Every given delivery in its new state.
    """
    rows = list(lane)
    head = next((row for row in rows if row.state in HEADS), None)
    others = [row for row in rows if row is not head]
    if not others:
        return rows
    if ordering == "latest":
        return _settle_oldest(head, others, now, first_delay, upto)
    return _settle_strict(head, others, now)


def _settle_strict(head: OpenDelivery | None, others: list[OpenDelivery], now: datetime) -> list[OpenDelivery]:
    """Promote the oldest by (occurred_at, seq). An older event replaces a head that has not been attempted.

    A head that is due later has been attempted, even if the attempt did not count.
    """
    first = min(others, key=lambda row: row.position)
    if head is not None and _is_untouched(head, now) and first.position < head.position:
        settled = [schedule(head, Step.DEMOTED, now), schedule(first, Step.PROMOTED, now)]
    elif head is None:
        settled = [schedule(first, Step.PROMOTED, now)]
    else:
        settled = [head, _queue(first, now)]
    return settled + [_queue(row, now) for row in others if row is not first]


def _is_untouched(head: OpenDelivery, now: datetime) -> bool:
    return head.state is State.READY and head.attempt == 0 and (head.due_at or now) <= now


def has_begun(head: OpenDelivery, now: datetime) -> bool:
    """Return whether a head keeps its place because its attempts have begun: an older event would be sent after it."""
    return head.state is not State.BLOCKED and not _is_untouched(head, now)


def _settle_oldest(
    head: OpenDelivery | None,
    others: list[OpenDelivery],
    now: datetime,
    first_delay: timedelta,
    upto: LanePosition | None,
) -> list[OpenDelivery]:
    """Settle the deliveries up to `upto`, and queue the rest.

    A head beyond `upto` that has not been attempted waits with the rest, as older deliveries must be superseded first.
    An attempted head keeps its place, as in `strict`. Only behind such a head can this many older deliveries gather.
    """
    if upto is None:
        return _settle_latest(head, others, now, first_delay)
    later = [_queue(row, now) for row in others if row.position > upto]
    oldest = [row for row in others if row.position <= upto]
    if head is not None and head.position > upto and _is_untouched(head, now):
        later.append(schedule(head, Step.DEMOTED, now))
        head = None
    return [*later, *_settle_latest(head, oldest, now, first_delay)]


def _settle_latest(
    head: OpenDelivery | None, others: list[OpenDelivery], now: datetime, first_delay: timedelta
) -> list[OpenDelivery]:
    """Promote the newest, which covers the others. A head in flight may have fetched already, so it covers none."""
    if head is not None and head.state is not State.READY:
        newest = max(others, key=lambda row: row.position)
        return [head, _queue(newest, now), *_supersede(others, newest, now)]
    candidates = others if head is None else [head, *others]
    newest = max(candidates, key=lambda row: row.position)
    folded = _supersede(candidates, newest, now)
    if newest is head:
        return [head, *folded]
    if head is not None and head.due_at is not None and (head.attempt > 0 or head.due_at > now):
        due_at = min(head.due_at, now + first_delay)
        taken = facts.TookOver(of=head.seq, attempt=head.attempt, crashes=head.crashes, due_at=due_at)
        return [*folded, apply_fact(newest, taken, now)]
    return [*folded, schedule(newest, Step.PROMOTED, now)]


def _queue(row: OpenDelivery, now: datetime) -> OpenDelivery:
    return schedule(row, Step.QUEUED, now) if row.state is State.RECEIVED else row


def _supersede(rows: list[OpenDelivery], newest: OpenDelivery, now: datetime) -> list[OpenDelivery]:
    return [apply_fact(row, facts.Superseded(by=newest.seq), now) for row in rows if row is not newest]


class LastDelivered(msgspec.Struct, frozen=True):
    """The last success in a lane: a row of `lane`."""

    occurred_at: datetime
    seq: int
    fetch_began_at: datetime | None = None
    last_modified: datetime | None = None

    @property
    def position(self) -> LanePosition:
        """Position in the order of its lane."""
        return (self.occurred_at, self.seq)


def covers(last: LastDelivered, position: LanePosition, skew: timedelta) -> bool:
    """Return whether the last success in a lane certainly includes the change of an event at this position.

    With a fetch: the fetch began after the change, allowing for clocks that differ by `skew`; or the entity's own time is
    at least as new. A time without a fraction may be any moment of its second, so two changes in one second look the same.

    Without a fetch the event itself was delivered, and an older event adds nothing. If the event arrived before
    the last success, an earlier time makes it older: had both waited, it would have been superseded. If it arrived later,
    its time must be earlier by more than `skew`, as the clocks of the sender's hosts differ. Intake
    ensures that no stored time is later than the event's arrival by more than that.
    """
    latest_moment = position[0] + _resolution(position[0])
    if last.fetch_began_at is None:
        if position[1] < last.seq:
            return position < last.position
        return last.occurred_at > latest_moment + skew
    if last.last_modified is not None and last.last_modified >= latest_moment:
        return True
    return last.fetch_began_at > latest_moment + skew


def _resolution(moment: datetime) -> timedelta:
    """Return the resolution of a time: two times closer than this may look equal."""
    if moment.microsecond == 0:
        return timedelta(seconds=1)
    return timedelta(milliseconds=1) if moment.microsecond % 1000 == 0 else timedelta(microseconds=1)
