"""Checks that the commands of operators are carried out, and nothing else is."""

from __future__ import annotations

from collections.abc import Sequence

from relay.delivery import facts
from relay.delivery.lifecycle import State
from relay.store.operator.selection import Act, Selection
from tests.proofs.model.history import Entry, Key
from tests.proofs.model.snapshot import Snapshot

_ACTS: dict[type[facts.Fact], Act] = {
    facts.Replayed: "replay",
    facts.Cancelled: "cancel",
    facts.Unblocked: "unblock",
}


def only_what_was_asked_for(snapshot: Snapshot) -> Sequence[object]:
    evidence: list[object] = []
    for entry in snapshot.new:
        if act := _ACTS.get(type(entry.fact)):
            before = [each for each in snapshot.history.entries[entry.key] if each.number < entry.number]
            if not any(
                act == done and _is_meant(act, chosen, entry.key, before) for done, chosen in snapshot.doing.asked
            ):
                evidence.append((entry, snapshot.doing.asked))
    return evidence


def _is_meant(act: Act, chosen: Selection, key: Key, before: Sequence[Entry]) -> bool:
    """By a selection of a seq, a route or a cause. Where a cause is named, the dead; where only a route is replayed, too."""
    died = [entry.fact for entry in before if isinstance(entry.fact, facts.Dead)]
    is_dead = bool(before) and isinstance(before[-1].fact, facts.Dead | facts.Unblocked)
    only_dead = chosen.cause is not None or (act == "replay" and chosen.dead_only)
    return (
        chosen.seq in {None, key[0]}
        and chosen.route in {None, key[1]}
        and (is_dead or not only_dead)
        and (chosen.cause is None or died[-1].cause == chosen.cause)
    )


def all_that_was_asked_for(snapshot: Snapshot) -> Sequence[object]:
    """A cancel leaves nothing but what is in flight, an unblock nothing blocked."""
    if snapshot.doing.operations != 1:
        return []
    return [
        (act, row)
        for act, chosen in snapshot.doing.asked
        for key, row in snapshot.after.items()
        if act != "replay" and _is_meant(act, chosen, key, snapshot.history.entries.get(key, ()))
        if (row.state is State.BLOCKED if act == "unblock" else row.state is not State.IN_FLIGHT)
    ]


def nothing_older_is_replayed_unasked(snapshot: Snapshot) -> Sequence[object]:
    """Not in the place of what was delivered last, when nothing is fetched: unless that is replayed too, or it is forced."""
    if any(chosen.force for _, chosen in snapshot.doing.asked):
        return []
    replayed = [entry for entry in snapshot.new if isinstance(entry.fact, facts.Replayed)]
    return [
        (entry, last)
        for entry in replayed
        if (last := snapshot.last_before(entry))
        and last.fetch_began_at is None
        and snapshot.ledger.order(entry.key) < last.key
        and (last.seq, entry.key[1]) not in {each.key for each in replayed}
    ]
