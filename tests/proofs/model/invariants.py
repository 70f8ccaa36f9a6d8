"""Invariants that hold after every step, named after their violation, and situations that should occur."""

from __future__ import annotations

import inspect
from collections import Counter
from collections.abc import Callable, Iterable

from relay.delivery import facts
from relay.delivery.gates import BreakerState
from relay.delivery.lifecycle import State
from tests.proofs.model import checks
from tests.proofs.model.actors import Snapshot, Violation
from tests.proofs.model.checks import breaker, is_paused, is_uncounted
from tests.proofs.model.world import FEW, POLICIES, Entry

CHECKS: dict[str, Callable[[Snapshot], Iterable[object]]] = {
    name.removeprefix("find_").replace("_", " "): check
    for name, check in vars(checks).items()
    if inspect.isgeneratorfunction(check) and check.__module__ == checks.__name__
}
"""All generator functions of the checks, which yield evidence, by the violation that they are named after."""


def broken(snapshot: Snapshot) -> dict[str, list[object]]:
    """Run every check and return the evidence of violations."""
    return {kind: evidence for kind, check in CHECKS.items() if (evidence := list(check(snapshot)))}


def hold(snapshot: Snapshot) -> None:
    """Run every check.

    Raises:
        Violation: an invariant is broken.
    """
    if found := broken(snapshot):
        violation = Violation(*next(iter(found.items())), *found)
        violation.add_note("\n".join(map(str, ["open:", *snapshot.after.values(), "new:", *snapshot.new])))
        violation.add_note("\n".join(f"{k}: {[str(e) for e in v]}" for k, v in snapshot.history.entries.items()))
        violation.add_note(str(snapshot.doing))
        raise violation


def noteworthy(snapshot: Snapshot) -> Counter[str]:
    """Count the noteworthy situations of a step."""
    before, after = snapshot.before, snapshot.after
    seen = Counter(_name(snapshot, entry) for entry in snapshot.new)
    seen["not counted"] += sum(is_uncounted(entry.fact) for entry in snapshot.new)
    seen["fenced"] += sum(result.fact is None for result in snapshot.doing.results)
    seen["late"] += sum(delivery.late for delivery in snapshot.doing.claimed)
    seen["taken over"] += sum(
        row.state is State.IN_FLIGHT and row.relay_node not in {entries[-1].relay_node, last.relay_node}
        for key, row in after.items()
        if (entries := snapshot.history.entries.get(key)) and isinstance(last := entries[-1].fact, facts.Abandoned)
    )
    seen["demoted"] += sum(
        before[key].state is State.READY and after[key].state is State.WAITING for key in before.keys() & after.keys()
    )
    waiting = Counter(row.lane for row in after.values() if (row.route, row.state) == ("latest", State.WAITING))
    seen["more waits than is folded"] += sum(number > FEW for number in waiting.values())
    for gate in {gate for policy in POLICIES.values() for gate in policy.breakers}:
        was, is_now = breaker(snapshot.earlier, gate), breaker(snapshot.stored, gate)
        seen[f"breaker: {was} to {is_now}"] += was is not is_now
    for key, row in before.items() if snapshot.doing.asked_to_claim else ():
        if row.state is State.READY and row.due_at and row.due_at <= snapshot.now and after.get(key) == row:
            breakers = (breaker(snapshot.earlier, gate) for gate in POLICIES[key[1]].breakers)
            seen["held back by a pause"] += is_paused(snapshot.earlier, snapshot.ledger, key)
            seen["held back by a breaker"] += BreakerState.OPEN in breakers
    return seen


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
            return f"{facts.get_kind(entry.fact)}: {before}"
        case fact:
            return facts.get_kind(fact)
