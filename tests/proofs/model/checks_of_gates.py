"""Checks of what pauses and breakers hold back, and of what opens and closes them.

Where two operations run at once, a gate may turn between one's look at it and its claim. Only a gate that was the same
before and after counts then.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from relay.delivery.gates import BreakerState, GateKey, entity_key
from relay.delivery.policy import endpoint_of, health_of
from relay.store.claim import PROBE_GIVEN_UP_AFTER
from tests.proofs.model.actors import Ledger
from tests.proofs.model.history import Key
from tests.proofs.model.snapshot import Snapshot
from tests.proofs.model.world import OPEN_GATE, POLICIES, Stored


def breaker(stored: Stored, gate: GateKey) -> BreakerState:
    return stored.gates.get(gate, OPEN_GATE).breaker


def is_paused(stored: Stored, ledger: Ledger, key: Key) -> bool:
    event = ledger.events[key[0]]
    entity = entity_key(event.source, event.entity_type or "", event.entity_id or "")
    return any(stored.gates.get(gate, OPEN_GATE).is_paused for gate in (*POLICIES[key[1]].gates, entity))


def the_paused_is_not_claimed(snapshot: Snapshot) -> Sequence[object]:
    return [
        delivery
        for delivery in snapshot.doing.claimed
        if all(
            is_paused(s, snapshot.ledger, (delivery.seq, delivery.route)) for s in (snapshot.earlier, snapshot.stored)
        )
    ]


def a_stopped_endpoint_is_only_probed(snapshot: Snapshot) -> Sequence[object]:
    probes = {delivery.lease_token for delivery in snapshot.doing.probes}
    return [
        (delivery, gate)
        for delivery in snapshot.doing.claimed
        if delivery.lease_token not in probes
        for gate in POLICIES[delivery.route].breakers
        if BreakerState.CLOSED not in {breaker(snapshot.earlier, gate), breaker(snapshot.stored, gate)}
    ]


def one_probe_at_a_time(snapshot: Snapshot) -> Sequence[object]:
    """Require that a probe begins once the breaker's time has come, and the previous one has ended or was given up."""
    probed = [(delivery, gate) for delivery in snapshot.doing.probes for gate in POLICIES[delivery.route].breakers]
    times = Counter(gate for _, gate in probed)
    evidence: list[object] = []
    for delivery, gate in probed:
        before, after = (stored.gates.get(gate, OPEN_GATE) for stored in (snapshot.earlier, snapshot.stored))
        if before.breaker is BreakerState.CLOSED:
            continue  # it was opened meanwhile
        is_due = before.until is not None and before.until <= snapshot.now
        is_noted = after.breaker is BreakerState.HALF_OPEN and after.until == snapshot.now + PROBE_GIVEN_UP_AFTER
        if not is_due or (snapshot.doing.operations == 1 and (not is_noted or times[gate] > 1)):
            evidence.append((delivery, before, after))
    return evidence


def breakers_have_reasons(snapshot: Snapshot) -> Sequence[object]:
    """They open at trouble; they close at a success while one is tried, or at the word of a person."""
    evidence: list[object] = []
    for gate in {gate for policy in POLICIES.values() for gate in policy.breakers}:
        before, after = breaker(snapshot.earlier, gate), breaker(snapshot.stored, gate)
        healths = {
            health_of(outcome, POLICIES[delivery.route])[0]
            for _, delivery, outcome in snapshot.doing.handed_in
            if endpoint_of(outcome, POLICIES[delivery.route]) == gate
        }
        is_tried = before is BreakerState.HALF_OPEN or bool(snapshot.doing.probes)
        reasons = {
            BreakerState.CLOSED: snapshot.doing.resumed or (is_tried and "well" in healths),
            BreakerState.OPEN: healths & {"unwell", "refused"},
            BreakerState.HALF_OPEN: snapshot.doing.probes,
        }
        if before is not after and not reasons.get(after):
            evidence.append((gate, before, after, healths))
        is_left = healths == {"refused"} and after is BreakerState.CLOSED and not snapshot.doing.resumed
        if is_left and all(result.fact is not None for result in snapshot.doing.results):
            evidence.append((gate, "credentials were refused, and it is closed"))
    return evidence
