"""Checks of calls and results, gates, and operators' commands.

With two operations at once, a gate may change between its reading and a claim: only a gate that was the same before and
after counts.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from relay.delivery import facts
from relay.delivery.gates import BreakerState, GateKey, entity_key
from relay.delivery.lifecycle import State
from relay.delivery.outcome import Delivered, Delivery, Fact, Failed, Outcome, Skipped
from relay.delivery.policy import endpoint_of, health_of
from relay.operations.asks import Selection
from relay.store.claim import PROBE_GIVEN_UP_AFTER
from relay.store.operator.selection import Act
from tests.proofs.model.actors import Ledger, Snapshot
from tests.proofs.model.world import CONFIG, OPEN_GATE, POLICIES, Entry, Key, Row, Stored


def find_a_repeated_call_that_nothing_explains(snapshot: Snapshot) -> Iterator[object]:
    """Require a failed or abandoned attempt before another call in a run, and its own number for each counted attempt.

    An uncounted attempt leaves its number to the next.
    """
    for call in snapshot.doing.calls:
        calls = [other for other in snapshot.ledger.calls[call.key] if other.run == call.run]
        failures = [
            entry
            for entry in snapshot.history.entries[call.key]
            if entry.before.run == call.run and isinstance(entry.fact, facts.AttemptFailed | facts.Abandoned)
        ]
        same = [other for other in calls if other.attempt == call.attempt]
        left = [entry for entry in failures if is_uncounted(entry.fact) and entry.standing.attempt + 1 == call.attempt]
        if len(calls) > 1 + len(failures) or len(same) > 1 + len(left):
            yield call, calls, failures


def is_uncounted(fact: facts.AnyFact) -> bool:
    return isinstance(fact, facts.AttemptFailed) and not fact.counted


_WORK = facts.DeliveredFact | Skipped | facts.AttemptFailed | facts.Dead | facts.Abandoned


def find_a_result_of_no_attempt(snapshot: Snapshot) -> Iterator[object]:
    """Require that every logged result is of an attempt of this relay, and agrees with the results returned to relays."""
    written = Counter(entry.key for entry in snapshot.new if isinstance(entry.fact, _WORK))
    told = Counter((r.delivery.seq, r.delivery.route) for r in snapshot.doing.results if r.fact is not None)
    told.update((seq, route) for seq, route, _ in snapshot.doing.reaped)
    if told != written:
        yield told, written
    for entry in snapshot.new:
        is_abandoned = isinstance(entry.fact, facts.Abandoned) or getattr(entry.fact, "cause", None) == "crash_loop"
        if isinstance(entry.fact, _WORK) and not is_abandoned:
            attempt = entry.standing.attempt + int(is_uncounted(entry.fact))
            made = (entry.relay_node, *entry.key, entry.before.run, attempt)
            if not any(
                made == (node, d.seq, d.route, d.run, d.attempt) and _comes_of(entry.fact, d, outcome)
                for node, d, outcome in snapshot.doing.handed_in
            ):
                yield entry, snapshot.doing.handed_in


def _comes_of(fact: facts.AnyFact, delivery: Delivery, outcome: Outcome) -> bool:
    match outcome, fact:
        case Delivered(), facts.DeliveredFact(late=late, fetch_began_at=began, last_modified=modified):
            return (late, began, modified) == (delivery.late, outcome.fetch_began_at, outcome.last_modified)
        case Failed(error_class=error_class), facts.AttemptFailed():
            return error_class == fact.error_class
        case Failed(error_class=error_class), facts.Dead(cause=cause):
            return cause in {error_class, "exhausted"}
        case _:
            return isinstance(outcome, Skipped) and isinstance(fact, Skipped)


def find_a_refused_result_changed_something(snapshot: Snapshot) -> Iterator[object]:
    results = snapshot.doing.results
    are_refused = bool(results) and all(result.fact is None for result in results)
    has_changed = snapshot.before != snapshot.after or snapshot.new
    if snapshot.doing.operations == 1 and are_refused and has_changed:
        yield results, snapshot.new


def breaker(stored: Stored, gate: GateKey) -> BreakerState:
    return stored.gates.get(gate, OPEN_GATE).breaker


def is_paused(stored: Stored, ledger: Ledger, key: Key) -> bool:
    event = ledger.events[key[0]]
    entity = entity_key(event.source, event.entity_type or "", event.entity_id or "")
    return any(stored.gates.get(gate, OPEN_GATE).is_paused for gate in (*POLICIES[key[1]].gates, entity))


def find_claimed_while_it_is_paused(snapshot: Snapshot) -> Iterator[object]:
    for delivery in snapshot.doing.claimed:
        key = (delivery.seq, delivery.route)
        if all(is_paused(stored, snapshot.ledger, key) for stored in (snapshot.earlier, snapshot.stored)):
            yield delivery


def find_claimed_while_the_endpoint_is_stopped(snapshot: Snapshot) -> Iterator[object]:
    probes = {delivery.lease_token for delivery in snapshot.doing.probes}
    for delivery in snapshot.doing.claimed:
        for gate in POLICIES[delivery.route].breakers if delivery.lease_token not in probes else ():
            if BreakerState.CLOSED not in {breaker(snapshot.earlier, gate), breaker(snapshot.stored, gate)}:
                yield delivery, gate


def find_two_try_one_breaker(snapshot: Snapshot) -> Iterator[object]:
    """Require that a probe begins when the breaker is due, after the end of the previous probe."""
    probed = [(delivery, gate) for delivery in snapshot.doing.probes for gate in POLICIES[delivery.route].breakers]
    times = Counter(gate for _, gate in probed)
    for delivery, gate in probed:
        before, after = (stored.gates.get(gate, OPEN_GATE) for stored in (snapshot.earlier, snapshot.stored))
        is_due = before.until is not None and before.until <= snapshot.now
        is_noted = after.breaker is BreakerState.HALF_OPEN and after.until == snapshot.now + PROBE_GIVEN_UP_AFTER
        is_wrong = not is_due or (snapshot.doing.operations == 1 and (not is_noted or times[gate] > 1))
        if is_wrong and before.breaker is not BreakerState.CLOSED:  # otherwise it was opened meanwhile
            yield delivery, before, after


def find_a_breaker_turned_without_a_reason(snapshot: Snapshot) -> Iterator[object]:
    """Require a reason: breakers open at failures, and close at a probe's success or an operator's command."""
    doing = snapshot.doing
    for gate in {gate for policy in POLICIES.values() for gate in policy.breakers}:
        before, after = breaker(snapshot.earlier, gate), breaker(snapshot.stored, gate)
        healths = {
            health_of(outcome, POLICIES[delivery.route])[0]
            for _, delivery, outcome in doing.handed_in
            if endpoint_of(outcome, POLICIES[delivery.route]) == gate
        }
        is_tried = before is BreakerState.HALF_OPEN or bool(doing.probes)
        reasons = {
            BreakerState.CLOSED: doing.resumed or (is_tried and "well" in healths),
            BreakerState.OPEN: healths & {"unwell", "refused"},
            BreakerState.HALF_OPEN: doing.probes,
        }
        is_left = healths == {"refused"} and after is BreakerState.CLOSED and not doing.resumed
        if before is not after and not reasons.get(after):
            yield gate, before, after, healths
        if is_left and all(result.fact is not None for result in doing.results):
            yield gate, "credentials were refused, and it is closed"


_ACTS: dict[type[Fact], Act] = {
    facts.Replayed: "replay",
    facts.Cancelled: "cancel",
    facts.Unblocked: "unblock",
    facts.Rescheduled: "retry",
}


def find_an_act_without_a_command(snapshot: Snapshot) -> Iterator[object]:
    for entry in snapshot.new:
        act = _ACTS.get(type(entry.fact))
        before = [each for each in snapshot.history.entries[entry.key] if each.number < entry.number]
        if act and not any(
            act == done and _is_meant(act, chosen, entry.key, before) for done, chosen in snapshot.doing.asked
        ):
            yield entry, snapshot.doing.asked


def _is_meant(act: Act, chosen: Selection, key: Key, before: list[Entry]) -> bool:
    """Return whether the selection includes the delivery. A cause, or a replay by route alone, selects only the dead."""
    died = [entry.fact for entry in before if isinstance(entry.fact, facts.Dead)]
    is_dead = bool(before) and isinstance(before[-1].fact, facts.Dead | facts.Unblocked)
    only_dead = chosen.cause is not None or (act == "replay" and chosen.dead_only)
    return (
        chosen.seq in {None, key[0]}
        and chosen.route in {None, key[1]}
        and chosen.destination in {None, CONFIG.routes[key[1]].destination}
        and (is_dead or not only_dead)
        and (chosen.cause is None or died[-1].cause == chosen.cause)
    )


def find_not_all_that_was_asked_for(snapshot: Snapshot) -> Iterator[object]:
    """Require that commands are complete: cancel spares only deliveries in flight, unblock and retry none."""
    for act, chosen in snapshot.doing.asked if snapshot.doing.operations == 1 else ():
        for key, row in snapshot.after.items():
            left = {
                "unblock": row.state is State.BLOCKED,
                "retry": row.due_at is not None and row.due_at > snapshot.now,
                "cancel": row.state is not State.IN_FLIGHT,
            }
            if left.get(act) and _is_meant(act, chosen, key, snapshot.history.entries.get(key, [])):
                yield act, row


def find_something_older_is_replayed(snapshot: Snapshot) -> Iterator[object]:
    """Require for an unforced replay without a fetch that the last delivered event comes again later.

    It comes again if it is replayed too, or is open without an attempt.
    """
    replayed = [entry for entry, _ in snapshot.told(facts.Replayed)]
    for entry in replayed if not any(chosen.force for _, chosen in snapshot.doing.asked) else ():
        last = snapshot.last_before(entry)
        if last and last.fetch_began_at is None and snapshot.ledger.order(entry.key) < last.key:
            again = (last.seq, entry.key[1])
            if again not in {each.key for each in replayed} and not _is_untouched(snapshot.before.get(again)):
                yield entry, last


def _is_untouched(row: Row | None) -> bool:
    return row is not None and row.attempt == 0 and row.state in {State.RECEIVED, State.WAITING, State.READY}
