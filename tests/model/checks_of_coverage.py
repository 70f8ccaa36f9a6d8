"""What stands for what: events that are folded, dropped or healed, and those that a repeat makes needed again."""

from __future__ import annotations

from collections.abc import Sequence

from relay import facts
from relay.lifecycle import Standing, State, fold
from relay.ordering import covers
from tests.model.history import Entry, Key
from tests.model.moment import Moment
from tests.model.world import POLICIES, SKEW, Repeat


def the_superseded_have_a_stand_in(moment: Moment) -> Sequence[object]:
    """One of its lane, on a route in `latest`: a newer one that is to come or was delivered, or a success that covers it."""
    evidence: list[object] = []
    for entry in moment.new:
        if isinstance(entry.fact, facts.Superseded):
            by = (entry.fact.by, entry.key[1])
            of_its_lane = moment.ledger.lanes.get(by) == moment.ledger.lanes[entry.key]
            if not of_its_lane or POLICIES[entry.key[1]].ordering != "latest" or not _stands_for(moment, entry, by):
                evidence.append(entry)
    return evidence


def _stands_for(moment: Moment, entry: Entry, by: Key) -> bool:
    newer = moment.ledger.order(by) > moment.ledger.order(entry.key)
    before = fold(each.fact for each in moment.history.entries[entry.key] if each.number < entry.number)
    match entry.fact:
        case facts.Superseded(because="newer"):
            return newer and before.state is State.RECEIVED
        case facts.Superseded(because="healed"):
            delivered = {each.key for each in moment.new if isinstance(each.fact, facts.Delivered)}
            return newer and before.state is State.DEAD and by in delivered
        case _:
            last = moment.last_before(entry)
            is_covered = last is not None and covers(last, moment.ledger.order(entry.key), SKEW)
            return is_covered and last is not None and last.seq == by[0] and before == Standing()


def later_successes_heal(moment: Moment) -> Sequence[object]:
    """On a route in `latest` none is left dead that had died before a later event of its lane was delivered."""
    return [
        (key, success)
        for success in moment.new
        if isinstance(success.fact, facts.Delivered) and POLICIES[success.key[1]].ordering == "latest"
        for key, row in moment.after.items()
        if row.state is State.DEAD
        and moment.ledger.lanes[key] == moment.ledger.lanes[success.key]
        and moment.ledger.order(key) < moment.ledger.order(success.key)
        and moment.history.entries[key][-1].number < success.number
    ]


_NO_REPEAT = Repeat(0, is_handled=False)


def a_repeat_rearms_what_is_not_covered(moment: Moment) -> Sequence[object]:
    evidence: list[object] = []
    for entry in moment.new:
        if isinstance(entry.fact, facts.Rearmed):
            was, is_now = (
                stored.repeats.get(entry.fact.repeat, _NO_REPEAT) for stored in (moment.earlier, moment.stored)
            )
            last = moment.last_before(entry)
            if (
                was.is_handled
                or is_now != Repeat(entry.key[0], is_handled=True)
                or POLICIES[entry.key[1]].ordering != "latest"
                or (last is not None and covers(last, moment.ledger.order(entry.key), SKEW))
            ):
                evidence.append((entry, was, is_now, last))
    return evidence


def repeats_are_judged(moment: Moment) -> Sequence[object]:
    """All of them, but for those whose delivery is in flight and not covered: they are judged when that has ended."""
    if not moment.doing.judged or moment.doing.operations != 1:
        return []
    evidence: list[object] = []
    rearmed = {entry.key for entry in moment.new if isinstance(entry.fact, facts.Rearmed)}
    for number, repeat in moment.earlier.repeats.items():
        key = (repeat.seq, "latest")
        lane, row = moment.ledger.lanes.get(key), moment.before.get(key)
        last = None if lane is None else moment.lasts.get(lane)
        covered = lane is None or (last is not None and covers(last, moment.ledger.order(key), SKEW))
        waits = not covered and row is not None and row.state is State.IN_FLIGHT
        again = not covered and (row is None or row.state is State.DEAD)
        if not repeat.is_handled and (
            moment.stored.repeats[number].is_handled == waits or (again and key not in rearmed)
        ):
            evidence.append((number, repeat, row, last))
    return evidence
