"""Checks of what stands for what: events folded, dropped or healed, and those that a duplicate makes needed again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from relay.delivery import facts
from relay.delivery.lifecycle import State
from relay.delivery.ordering import covers
from tests.helpers.agreement import NOTHING_YET, fold
from tests.proofs.model.actors import Ledger, is_swept
from tests.proofs.model.history import Entry, History, Key
from tests.proofs.model.snapshot import Snapshot
from tests.proofs.model.world import POLICIES, SKEW, Repeat, Row


def the_superseded_have_a_stand_in(snapshot: Snapshot) -> Sequence[object]:
    """One of its lane.

    In `latest` a newer one that is to come or was delivered, or a success that covers it; in `strict` a sweep's event of
    the same change that was delivered, and that stands for no other.
    """
    evidence: list[object] = []
    for entry in snapshot.new:
        if isinstance(entry.fact, facts.Superseded):
            by = (entry.fact.by, entry.key[1])
            of_its_lane = snapshot.ledger.lanes.get(by) == snapshot.ledger.lanes[entry.key]
            may_be = POLICIES[entry.key[1]].ordering == ("strict" if entry.fact.because == "swept" else "latest")
            if not of_its_lane or not may_be or not _stands_for(snapshot, entry, by):
                evidence.append(entry)
    return evidence


def _stands_for(snapshot: Snapshot, entry: Entry, by: Key) -> bool:
    newer = snapshot.ledger.order(by) > snapshot.ledger.order(entry.key)
    before = fold(
        (each.fact, each.standing) for each in snapshot.history.entries[entry.key] if each.number < entry.number
    )
    match entry.fact:
        case facts.Superseded(because="newer"):
            return newer and before.state is State.RECEIVED
        case facts.Superseded(because="healed"):
            died = max(each.number for each in snapshot.history.entries[entry.key] if each.number < entry.number)
            later = {each.key for each in snapshot.history.successes if each.number > died}
            return newer and before.state is State.DEAD and by in later
        case facts.Superseded(because="swept"):
            event, swept = (snapshot.ledger.events[key[0]] for key in (entry.key, by))
            same = (event.event_type, event.occurred_at) == (swept.event_type, swept.occurred_at)
            was = any(each.key == by and each.number < entry.number for each in snapshot.history.successes)
            alone = snapshot.history.told[by] == [entry]
            return same and was and alone and is_swept(swept) and not is_swept(event) and before == NOTHING_YET
        case _:
            last = snapshot.last_before(entry)
            is_covered = last is not None and covers(last, snapshot.ledger.order(entry.key), SKEW)
            return is_covered and last is not None and last.seq == by[0] and before == NOTHING_YET


def what_a_sweep_has_told_is_not_told_again(snapshot: Snapshot) -> Sequence[object]:
    """Require that an event has ended without a call if a sweep's event of the same change was delivered before.

    It applies in `strict` if that delivery came before the event got its place, and the sweep's event stands for no other.
    """
    delivered = {
        (each.key[1], event.entity_id, event.event_type, event.occurred_at)
        for each in snapshot.history.successes
        if each not in snapshot.new
        and not snapshot.history.told[each.key]
        and is_swept(event := snapshot.ledger.events[each.key[0]])
    }
    return [
        (key, row)
        for key, row in snapshot.after.items()
        if key in snapshot.before
        and snapshot.before[key].state is State.RECEIVED
        and row.state is not State.RECEIVED
        and row.run == 0
        and POLICIES[key[1]].ordering == "strict"
        and not is_swept(event := snapshot.ledger.events[key[0]])
        and (key[1], event.entity_id, event.event_type, event.occurred_at) in delivered
    ]


def later_successes_heal(snapshot: Snapshot) -> Sequence[object]:
    """On a route in `latest` none is left dead that had died before a later event of its lane was delivered."""
    return [
        (key, success)
        for success in snapshot.new
        if isinstance(success.fact, facts.DeliveredFact) and POLICIES[success.key[1]].ordering == "latest"
        for key in healable(snapshot.history, snapshot.ledger, snapshot.after, success)
    ]


def healable(history: History, ledger: Ledger, rows: Mapping[Key, Row], success: Entry) -> list[Key]:
    """The dead that this success stands for."""
    return [
        key
        for key, row in rows.items()
        if row.state is State.DEAD
        and ledger.lanes[key] == ledger.lanes[success.key]
        and ledger.order(key) < ledger.order(success.key)
        and history.entries[key][-1].number < success.number
    ]


_NO_REPEAT = Repeat(0, 0, is_handled=False)


def a_repeat_rearms_what_is_not_covered(snapshot: Snapshot) -> Sequence[object]:
    evidence: list[object] = []
    for entry in snapshot.new:
        if isinstance(entry.fact, facts.Rearmed):
            was, is_now = (
                stored.repeats.get(entry.fact.duplicate, _NO_REPEAT) for stored in (snapshot.earlier, snapshot.stored)
            )
            last = snapshot.last_before(entry)
            if (
                was.is_handled
                or is_now != Repeat(entry.key[0], was.times, is_handled=True)
                or POLICIES[entry.key[1]].ordering != "latest"
                or (last is not None and covers(last, snapshot.ledger.order(entry.key), SKEW))
            ):
                evidence.append((entry, was, is_now, last))
    return evidence


def repeats_are_judged(snapshot: Snapshot) -> Sequence[object]:
    """All of them, but for those whose delivery is in flight and not covered: they are judged when that has ended."""
    if not snapshot.doing.judged or snapshot.doing.operations != 1:
        return []
    evidence: list[object] = []
    rearmed = {entry.key for entry in snapshot.new if isinstance(entry.fact, facts.Rearmed)}
    for number, repeat in snapshot.earlier.repeats.items():
        key = (repeat.seq, "latest")
        lane, row = snapshot.ledger.lanes.get(key), snapshot.before.get(key)
        last = None if lane is None else snapshot.lasts.get(lane)
        covered = lane is None or (last is not None and covers(last, snapshot.ledger.order(key), SKEW))
        waits = not covered and row is not None and row.state is State.IN_FLIGHT
        again = not covered and (row is None or row.state is State.DEAD)
        if not repeat.is_handled and (
            snapshot.stored.repeats[number].is_handled == waits or (again and key not in rearmed)
        ):
            evidence.append((number, repeat, row, last))
    return evidence
