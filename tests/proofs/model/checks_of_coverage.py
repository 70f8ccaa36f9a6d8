"""Checks of superseded events (folded, dropped or healed), and of those that a duplicate rearms."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from relay.delivery import facts
from relay.delivery.lifecycle import State
from relay.delivery.ordering import LastDelivered, covers
from tests.helpers.agreement import NOTHING_YET
from tests.proofs.model.actors import Ledger, Snapshot, is_swept
from tests.proofs.model.world import POLICIES, SKEW, Entry, History, Key, Repeat, Row

_NO_REPEAT = Repeat(0, 0, is_handled=False)


def find_superseded_without_a_stand_in(snapshot: Snapshot) -> Iterator[object]:
    """Require that a superseded event has a stand-in of its lane.

    In `latest`, a newer open or delivered event, or a success that covers it; in `strict`, a delivered sweep's event of
    the same change that stands for no other.
    """
    for entry, fact in snapshot.told(facts.Superseded):
        by = (fact.by, entry.key[1])
        of_its_lane = snapshot.ledger.lanes.get(by) == snapshot.ledger.lanes[entry.key]
        ordering = "strict" if fact.because == "swept" else "latest"
        if not of_its_lane or POLICIES[entry.key[1]].ordering != ordering or not _stands_for(snapshot, entry, by):
            yield entry


def _stands_for(snapshot: Snapshot, entry: Entry, by: Key) -> bool:
    newer, successes = snapshot.ledger.order(by) > snapshot.ledger.order(entry.key), snapshot.history.successes
    match entry.fact:
        case facts.Superseded(because="newer"):
            return newer and entry.before.state is State.RECEIVED
        case facts.Superseded(because="healed"):
            died = max(each.number for each in snapshot.history.entries[entry.key] if each.number < entry.number)
            later = {each.key for each in successes if each.number > died}
            return newer and entry.before.state is State.DEAD and by in later
        case facts.Superseded(because="swept"):
            event, swept = (snapshot.ledger.events[key[0]] for key in (entry.key, by))
            same = (event.event_type, event.occurred_at) == (swept.event_type, swept.occurred_at)
            was = any(each.key == by and each.number < entry.number for each in successes)
            alone = snapshot.history.told[by] == [entry]
            return same and was and alone and is_swept(swept) and not is_swept(event) and entry.before == NOTHING_YET
        case _:
            last = snapshot.last_before(entry)
            is_by = last is not None and last.seq == by[0]
            return is_by and is_covered(snapshot.ledger, entry.key, last) and entry.before == NOTHING_YET


def is_covered(ledger: Ledger, key: Key, last: LastDelivered | None) -> bool:
    """Return whether the lane's last success certainly includes the change of this event."""
    return last is not None and covers(last, ledger.order(key), SKEW)


def find_told_again_after_a_sweep(snapshot: Snapshot) -> Iterator[object]:
    """Require that a webhook ends without a call if a sweep's event of the same change was delivered before.

    This applies in `strict`, to webhooks sequenced after that delivery, if the sweep's event stands for no other.
    """
    events = snapshot.ledger.events
    delivered = {
        _change(snapshot.ledger, each.key)
        for each in snapshot.history.successes
        if each not in snapshot.new and not snapshot.history.told[each.key] and is_swept(events[each.key[0]])
    }
    for key, row in snapshot.after.items():
        was = snapshot.before.get(key)
        is_placed = was is not None and was.state is State.RECEIVED is not row.state and row.run == 0
        is_webhook = POLICIES[key[1]].ordering == "strict" and not is_swept(events[key[0]])
        if is_placed and is_webhook and _change(snapshot.ledger, key) in delivered:
            yield key, row


def _change(ledger: Ledger, key: Key) -> tuple[object, ...]:
    event = ledger.events[key[0]]
    return key[1], event.entity_id, event.event_type, event.occurred_at


def find_dead_though_a_later_one_succeeded(snapshot: Snapshot) -> Iterator[object]:
    """Require in `latest` that the dead are healed by the delivery of a later event of their lane."""
    for success, _ in snapshot.told(facts.DeliveredFact):
        if POLICIES[success.key[1]].ordering == "latest":
            for key in healable(snapshot.history, snapshot.ledger, snapshot.after, success):
                yield key, success


def healable(history: History, ledger: Ledger, rows: Mapping[Key, Row], success: Entry) -> list[Key]:
    """Return the dead deliveries that this success heals."""
    return [
        key
        for key, row in rows.items()
        if row.state is State.DEAD
        and ledger.lanes[key] == ledger.lanes[success.key]
        and ledger.order(key) < ledger.order(success.key)
        and history.entries[key][-1].number < success.number
    ]


def find_rearmed_without_need(snapshot: Snapshot) -> Iterator[object]:
    for entry, fact in snapshot.told(facts.Rearmed):
        was, is_now = (each.repeats.get(fact.duplicate, _NO_REPEAT) for each in (snapshot.earlier, snapshot.stored))
        last, is_right = snapshot.last_before(entry), is_now == Repeat(entry.key[0], was.times, is_handled=True)
        is_needed = POLICIES[entry.key[1]].ordering == "latest" and not is_covered(snapshot.ledger, entry.key, last)
        if was.is_handled or not is_right or not is_needed:
            yield entry, was, is_now, last


def find_a_repeat_is_judged_wrongly(snapshot: Snapshot) -> Iterator[object]:
    """Require that all duplicates are judged, except for deliveries in flight that are not covered."""
    rearmed = {entry.key for entry, _ in snapshot.told(facts.Rearmed)}
    is_alone = snapshot.doing.judged and snapshot.doing.operations == 1
    for number, repeat in snapshot.earlier.repeats.items() if is_alone else ():
        key = (repeat.seq, "latest")
        lane, row = snapshot.ledger.lanes.get(key), snapshot.before.get(key)
        needed = lane is not None and not is_covered(snapshot.ledger, key, snapshot.lasts.get(lane))
        waits = needed and row is not None and row.state is State.IN_FLIGHT
        again = needed and (row is None or row.state is State.DEAD)
        if not repeat.is_handled and (
            snapshot.stored.repeats[number].is_handled == waits or (again and key not in rearmed)
        ):
            yield number, repeat, row, lane and snapshot.lasts.get(lane)
