"""Situations that should occur at least sometimes."""

from __future__ import annotations

from collections import Counter

from relay.delivery import facts
from relay.delivery.gates import BreakerState
from relay.delivery.lifecycle import State
from tests.proofs.model.checks_of_results import breaker, is_paused
from tests.proofs.model.history import Entry
from tests.proofs.model.snapshot import Snapshot
from tests.proofs.model.world import FEW, POLICIES


def noteworthy(snapshot: Snapshot) -> Counter[str]:
    """Count how often each of these situations occurred in a step."""
    seen = Counter(_name(snapshot, entry) for entry in snapshot.new)
    seen["not counted"] += sum(isinstance(e.fact, facts.AttemptFailed) and not e.fact.counted for e in snapshot.new)
    seen["fenced"] += sum(result.fact is None for result in snapshot.doing.results)
    seen["late"] += sum(delivery.late for delivery in snapshot.doing.claimed)
    seen["taken over"] += sum(
        row.state is State.IN_FLIGHT and row.relay_node not in {entries[-1].relay_node, last.relay_node}
        for key, row in snapshot.after.items()
        if (entries := snapshot.history.entries.get(key)) and isinstance(last := entries[-1].fact, facts.Abandoned)
    )
    seen["demoted"] += sum(
        row.state is State.READY and key in snapshot.after and snapshot.after[key].state is State.WAITING
        for key, row in snapshot.before.items()
    )
    waiting = Counter(
        row.lane for row in snapshot.after.values() if (row.route, row.state) == ("latest", State.WAITING)
    )
    seen["more waits than is folded"] += sum(number > FEW for number in waiting.values())
    return seen + _gates(snapshot)


def _name(snapshot: Snapshot, entry: Entry) -> str:
    match entry.fact:
        case facts.Dead(cause=cause):
            return f"dead: {cause}"
        case facts.Superseded(because=because):
            return f"superseded: {because}"
        case facts.AttemptFailed(error_class=error_class):
            return f"failed: {error_class}"
        case facts.Replayed() | facts.Cancelled():
            before = snapshot.before[entry.key].state if entry.key in snapshot.before else State.ENDED
            return f"{facts.kind_of(entry.fact)}: {before}"
        case fact:
            return facts.kind_of(fact)


def _gates(snapshot: Snapshot) -> Counter[str]:
    seen: Counter[str] = Counter()
    for key in {key for policy in POLICIES.values() for key in policy.breakers}:
        before, after = breaker(snapshot.earlier, key), breaker(snapshot.stored, key)
        if before is not after:
            seen[f"breaker: {before} to {after}"] += 1
    if snapshot.doing.asked_to_claim:
        left = [
            key
            for key, row in snapshot.before.items()
            if row.state is State.READY and row.due_at and row.due_at <= snapshot.now and snapshot.after.get(key) == row
        ]
        seen["held back by a pause"] += sum(is_paused(snapshot.earlier, snapshot.ledger, key) for key in left)
        seen["held back by a breaker"] += sum(
            breaker(snapshot.earlier, gate) is BreakerState.OPEN for key in left for gate in POLICIES[key[1]].breakers
        )
    return seen
