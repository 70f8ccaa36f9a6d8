"""Checks of what goes first in a lane, what is late, and what stands for what."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from relay.delivery import facts
from relay.delivery.lifecycle import State
from tests.proofs.model.history import Entry
from tests.proofs.model.snapshot import Snapshot
from tests.proofs.model.world import SCHEDULE


def first_claims_are_in_order(snapshot: Snapshot) -> Sequence[object]:
    """Of those that were in their lane before, the earliest is claimed first, and first again when it was given back.

    Afterwards only a replay goes back.
    """
    return [
        (delivery, row)
        for delivery in snapshot.doing.claimed
        if delivery.run == 0
        and (delivery.attempt == 1 or snapshot.ledger.claimed[delivery.seq, delivery.route] == snapshot.ledger.step)
        and not snapshot.ledger.is_kept_in_place((delivery.route, delivery.lane), delivery.attempt)
        for key, row in snapshot.before.items()
        if (row.route, row.lane) == (delivery.route, delivery.lane)
        and row.state in _UNTOUCHED
        and row.order < (delivery.occurred_at, delivery.seq)
        and key in snapshot.after
        and snapshot.after[key].state in _UNTOUCHED
    ]


_UNTOUCHED = frozenset({State.WAITING, State.READY})


def claims_are_due(snapshot: Snapshot) -> Sequence[object]:
    return [
        (delivery, standing)
        for delivery in snapshot.doing.claimed
        if (standing := snapshot.history.standing.get((delivery.seq, delivery.route)))
        and standing.due_at is not None
        and standing.due_at > snapshot.now
    ]


def first_calls_are_in_order(snapshot: Snapshot) -> Sequence[object]:
    """Require that a delivery called after a later one of its lane came into the lane after that one was claimed."""
    ledger = snapshot.ledger
    return [
        (call, key)
        for call in snapshot.doing.calls
        if call.run == 0 and len(ledger.calls[call.key]) == 1
        for key, claimed in ledger.claimed.items()
        if ledger.calls[key]
        and not ledger.is_kept_in_place(ledger.lanes[key], ledger.calls[key][0].attempt)
        and ledger.lanes[key] == ledger.lanes[call.key]
        and ledger.order(key) > ledger.order(call.key)
        and claimed > ledger.ordered[call.key]
    ]


def late_is_marked(snapshot: Snapshot) -> Sequence[object]:
    """Require the mark `late` exactly where a later event of the lane has been delivered."""
    return [
        delivery
        for delivery in snapshot.doing.claimed
        if delivery.late
        != any(
            snapshot.ledger.lanes[success.key] == (delivery.route, delivery.lane)
            and snapshot.ledger.order(success.key) > (delivery.occurred_at, delivery.seq)
            for success in snapshot.history.successes
        )
    ]


def retries_that_are_taken_over_go_on(snapshot: Snapshot) -> Sequence[object]:
    """With the attempts of the older one, no sooner than its next was due, and no later than the first delay."""
    return [
        (entry, snapshot.history.entries[entry.fact.of, entry.key[1]])
        for entry in snapshot.new
        if isinstance(entry.fact, facts.TookOver) and not _goes_on(snapshot, entry, entry.fact)
    ]


def _goes_on(snapshot: Snapshot, entry: Entry, taken: facts.TookOver) -> bool:
    """From where the older one stood when it was superseded; that may have happened to it more than once in a step."""
    latest = entry.at + SCHEDULE[0]
    entries = snapshot.history.entries[taken.of, entry.key[1]]
    return any(
        taken.attempt == superseded.attempt
        and min(getattr(before.fact, "due_at", before.at), latest) <= taken.due_at <= latest
        for before, superseded in pairwise(entries)
        if superseded in snapshot.new and getattr(superseded.fact, "by", None) == entry.key[0]
    )
