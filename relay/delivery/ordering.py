"""The rule that picks the next delivery of a lane, and those that need not go at all. Pure: rows of one lane in and out.

This is called whenever a lane may need a new head: when events arrive, when its head ends, dies or is to be retried.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime, timedelta

import msgspec

from inbox.config.model import Ordering
from relay.delivery import facts
from relay.delivery.lifecycle import HEADS, OpenDelivery, State, Step, append, schedule

Place = tuple[datetime, int]
"""When an event occurred, and its seq: a lane is worked in this order."""


def settle(
    ordering: Ordering,
    lane: Iterable[OpenDelivery],
    now: datetime,
    first_delay: timedelta,
    upto: Place | None = None,
) -> list[OpenDelivery]:
    """Give a lane its head, and fold what a newer event stands for.

    Args:
        ordering: the route's.
        lane: its head if it has one, and those that arrived or wait. For `strict`, of the waiting ones the first is
            enough; for `latest` the oldest few.
        now: the database's clock.
        first_delay: a retry that a newer event takes over is due no later than this.
        upto: the last of the waiting ones that were read, where more wait behind it. For `latest`, what comes after it
            is left to later rounds, as if it had not arrived yet. So whatever is delivered between two rounds is older
            than all that is left.

    Returns:
        Every delivery given, in the state it has now.
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
    """One by one by (occurred_at, seq). An older event that arrives in time goes before a head nobody has worked on.

    One that is due later was worked on, though that did not count.
    """
    first = min(others, key=lambda row: row.key)
    if head is not None and _is_untouched(head, now) and first.key < head.key:
        settled = [schedule(head, Step.DEMOTED, now), schedule(first, Step.PROMOTED, now)]
    elif head is None:
        settled = [schedule(first, Step.PROMOTED, now)]
    else:
        settled = [head, _queued(first, now)]
    return settled + [_queued(row, now) for row in others if row is not first]


def _is_untouched(head: OpenDelivery, now: datetime) -> bool:
    return head.state is State.READY and head.attempt == 0 and (head.due_at or now) <= now


def _settle_oldest(
    head: OpenDelivery | None, others: list[OpenDelivery], now: datetime, first_delay: timedelta, upto: Place | None
) -> list[OpenDelivery]:
    """Settle what comes no later than `upto`, and queue the rest.

    A later head that nobody has worked on waits with the rest: older ones than it are still to be folded. One that was
    worked on keeps its place, as in `strict`, where alone so many older ones can have come to wait behind it.
    """
    if upto is None:
        return _settle_latest(head, others, now, first_delay)
    later = [_queued(row, now) for row in others if row.key > upto]
    oldest = [row for row in others if row.key <= upto]
    if head is not None and head.key > upto and _is_untouched(head, now):
        later.append(schedule(head, Step.DEMOTED, now))
        head = None
    return [*later, *_settle_latest(head, oldest, now, first_delay)]


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


class LastDelivered(msgspec.Struct, frozen=True):
    """A row of `lane`: the last success there."""

    occurred_at: datetime
    seq: int
    fetch_began_at: datetime | None = None
    last_modified: datetime | None = None
    received_at: datetime | None = None
    """When its event arrived, by our clock; None: it is not known, or does not matter because something was fetched."""

    @property
    def key(self) -> Place:
        """As `OpenDelivery.key`."""
        return (self.occurred_at, self.seq)


def covers(last: LastDelivered, key: Place, skew: timedelta) -> bool:
    """Whether the last success in a lane certainly has the change of an event with this key in it.

    What was fetched has it when the fetch began after the change, by clocks that differ by `skew` at most, or when it is
    itself as new. A time without a fraction means any moment of its second: two changes in one second look the same.

    Where nothing was fetched, the event itself was delivered, and an older one says nothing new. One that has arrived before
    the last is older when its time says so, too: had both been waiting, the last would have stood for it. One that has arrived
    after it is older for certain only by more than the clocks of the sender's hosts may differ. A time of the last that lies
    further than that beyond its own arrival can't be true, and would prove of every event until then that it is older.
    """
    latest_moment = key[0] + _resolution(key[0])
    if last.fetch_began_at is None:
        if key[1] < last.seq:
            return key < last.key
        is_true = last.received_at is None or last.occurred_at <= last.received_at + skew
        return is_true and last.occurred_at > latest_moment + skew
    if last.last_modified is not None and last.last_modified >= latest_moment:
        return True
    return last.fetch_began_at > latest_moment + skew


def _resolution(moment: datetime) -> timedelta:
    """How far apart two times have to be to look different, judged by one of them."""
    if moment.microsecond == 0:
        return timedelta(seconds=1)
    return timedelta(milliseconds=1) if moment.microsecond % 1000 == 0 else timedelta(microseconds=1)


class ChangeId(msgspec.Struct, frozen=True):
    """What an event says of a change."""

    entity: tuple[str, str, str]
    """Source, type and id."""
    event_type: str
    occurred_at: datetime
    by_sweep: bool
    """It is no webhook: a sweep has found that the entity was changed then."""


def duplicates_swept_event(event: ChangeId, delivered: ChangeId) -> bool:
    """Whether an event on a route in `strict` says again what was delivered there: same entity, event type and instant.

    Of two webhooks the source's `dedup` has decided by their keys: two that it tells apart are two events, whatever else
    they share, and in `strict` every event matters. A sweep's event has a key of its own kind, so that the webhook of the
    same change, when it comes late after all, is told apart from it by nothing but that. It stands for one webhook: the
    first is superseded, a second one of its instant is another change. The other way round there is nothing to decide: a
    sweep adds no event of what a webhook has told.

    On a route in `latest` what was said does not matter, but what was fetched: two changes in one second say the same, and
    the second must not be lost. There `covers` alone decides.
    """
    said = (event.entity, event.event_type, event.occurred_at) == (
        delivered.entity,
        delivered.event_type,
        delivered.occurred_at,
    )
    return said and delivered.by_sweep and not event.by_sweep
