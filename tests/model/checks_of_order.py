"""What goes first in a lane, what is late, and what stands for what."""

from __future__ import annotations

from collections.abc import Sequence

from relay import facts
from relay.lifecycle import State
from tests.model.moment import Moment
from tests.model.world import POLICIES, SCHEDULE


def first_claims_are_in_order(moment: Moment) -> Sequence[object]:
    """Of those that were in their lane before, the earliest is claimed first. Afterwards only a replay goes back."""
    return [
        (delivery, row)
        for delivery in moment.doing.claimed
        if delivery.run == 0 and moment.ledger.claimed[delivery.seq, delivery.route] == moment.ledger.step
        for key, row in moment.before.items()
        if (row.route, row.lane) == (delivery.route, delivery.lane)
        and row.state in _UNTOUCHED
        and row.order < (delivery.occurred_at, delivery.seq)
        and key in moment.after
        and moment.after[key].state in _UNTOUCHED
    ]


_UNTOUCHED = frozenset({State.WAITING, State.READY})


def claims_are_due(moment: Moment) -> Sequence[object]:
    return [
        (delivery, standing)
        for delivery in moment.doing.claimed
        if (standing := moment.history.standing.get((delivery.seq, delivery.route)))
        and standing.due_at is not None
        and standing.due_at > moment.now
    ]


def first_calls_are_in_order(moment: Moment) -> Sequence[object]:
    """Who is called after a later one of its lane came into the lane after that one was claimed."""
    ledger = moment.ledger
    return [
        (call, key)
        for call in moment.doing.calls
        if call.run == 0 and len(ledger.calls[call.key]) == 1
        for key, claimed in ledger.claimed.items()
        if ledger.calls[key]
        and ledger.lanes[key] == ledger.lanes[call.key]
        and ledger.order(key) > ledger.order(call.key)
        and claimed > ledger.ordered[call.key]
    ]


def late_is_marked(moment: Moment) -> Sequence[object]:
    evidence = []
    for delivery in moment.doing.claimed:
        passed = any(
            isinstance(entry.fact, facts.Delivered)
            for key, entries in moment.history.entries.items()
            if moment.ledger.lanes[key] == (delivery.route, delivery.lane)
            and moment.ledger.order(key) > (delivery.occurred_at, delivery.seq)
            for entry in entries
        )
        if passed != delivery.late:
            evidence.append(delivery)
    return evidence


def newer_supersede_older(moment: Moment) -> Sequence[object]:
    ledger = moment.ledger
    return [
        entry
        for entry in moment.new
        if isinstance(entry.fact, facts.Superseded)
        and (
            ledger.lanes.get((entry.fact.by, entry.key[1])) != ledger.lanes[entry.key]
            or ledger.order((entry.fact.by, entry.key[1])) <= ledger.order(entry.key)
            or POLICIES[entry.key[1]].ordering != "latest"
        )
    ]


def retries_that_are_taken_over_go_on(moment: Moment) -> Sequence[object]:
    """With the attempts of the older one, no sooner than its next was due, and no later than the first delay."""
    evidence = []
    for entry in moment.new:
        if isinstance(entry.fact, facts.TookOver):
            *before, superseded = moment.history.entries[entry.fact.of, entry.key[1]]
            latest = entry.at + SCHEDULE[0]
            due_at = getattr(before[-1].fact, "due_at", before[-1].at)
            if entry.fact.attempt != superseded.attempt or not min(due_at, latest) <= entry.fact.due_at <= latest:
                evidence.append((entry, before[-1]))
    return evidence
