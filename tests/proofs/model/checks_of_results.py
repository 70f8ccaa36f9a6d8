"""Checks of what was called and recorded, held back by gates, or commanded by operators.

Where two operations run at once, a gate may turn between one's look at it and its claim. Only a gate that was the same
before and after counts then.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import NamedTuple

from relay.delivery import facts
from relay.delivery.gates import BreakerState, GateKey, entity_key
from relay.delivery.lifecycle import State
from relay.delivery.outcome import Delivered, Delivery, ErrorClass, Fact, Failed, Outcome, Skipped
from relay.delivery.policy import endpoint_of, health_of
from relay.operations.asks import Selection
from relay.store.claim import PROBE_GIVEN_UP_AFTER
from relay.store.operator.selection import Act
from tests.proofs.model.actors import Ledger
from tests.proofs.model.checks_of_state import is_abandoned
from tests.proofs.model.history import Entry, Key
from tests.proofs.model.snapshot import Snapshot
from tests.proofs.model.world import CONFIG, OPEN_GATE, POLICIES, SCHEDULE, Row, Stored


def repeats_are_explained(snapshot: Snapshot) -> Sequence[object]:
    """Within a run another call follows only an attempt that failed or was abandoned, and has a number of its own.

    One that is not counted leaves its number to the next.
    """
    evidence: list[object] = []
    for call in snapshot.doing.calls:
        calls = [other for other in snapshot.ledger.calls[call.key] if other.run == call.run]
        failures = [
            entry
            for entry in snapshot.history.entries[call.key]
            if entry.run == call.run and isinstance(entry.fact, facts.AttemptFailed | facts.Abandoned)
        ]
        same = [other for other in calls if other.attempt == call.attempt]
        left = [entry for entry in failures if _is_uncounted(entry.fact) and entry.attempt + 1 == call.attempt]
        if len(calls) > 1 + len(failures) or len(same) > 1 + len(left):
            evidence.append((call, calls, failures))
    return evidence


def _is_uncounted(fact: facts.AnyFact) -> bool:
    return isinstance(fact, facts.AttemptFailed) and not fact.counted


_WORK = facts.DeliveredFact | Skipped | facts.AttemptFailed | facts.Dead


def results_were_made(snapshot: Snapshot) -> Sequence[object]:
    """Every result in the log is of an attempt that this relay made, and what relays were told of them and of leases agrees."""
    evidence: list[object] = []
    written: Counter[Key] = Counter()
    for entry in snapshot.new:
        if not isinstance(entry.fact, _WORK | facts.Abandoned):
            continue
        written[entry.key] += 1
        if not is_abandoned(entry.fact):
            attempt = entry.attempt + int(_is_uncounted(entry.fact))
            made = [
                (delivery, outcome)
                for node, delivery, outcome in snapshot.doing.handed_in
                if (node, delivery.seq, delivery.route) == (entry.relay_node, *entry.key)
                and (delivery.run, delivery.attempt) == (entry.run, attempt)
            ]
            if not any(_follows(snapshot, entry, *each) for each in made):
                evidence.append((entry, made))
    told = Counter((r.delivery.seq, r.delivery.route) for r in snapshot.doing.results if r.fact is not None)
    told.update((seq, route) for seq, route, _ in snapshot.doing.reaped)
    return evidence or ([] if told == written else [(told, written)])


def _follows(snapshot: Snapshot, entry: Entry, delivery: Delivery, outcome: Outcome) -> bool:
    match outcome, entry.fact:
        case Delivered(), facts.DeliveredFact(late=late, fetch_began_at=began, last_modified=modified):
            return (late, began, modified) == (delivery.late, outcome.fetch_began_at, outcome.last_modified)
        case Skipped(), Skipped():
            return True
        case Failed(error_class=error_class), facts.AttemptFailed(counted=counted, due_at=due_at):
            return _Expected(counted, due_at - entry.at) in _expected(snapshot, entry, delivery, error_class)
        case Failed(error_class=error_class), facts.Dead(cause=cause):
            return _Expected(cause=cause) in _expected(snapshot, entry, delivery, error_class)
        case _:
            return False


class _Expected(NamedTuple):
    """Expected effect of a failure: another attempt after a delay, or death of a cause."""

    counted: bool = True
    delay: timedelta | None = None
    cause: str | None = None


_AT_ONCE = _Expected(counted=False, delay=timedelta(0))
"""Retry without a delay; an open breaker decides when the next call may be."""
_CONFLICTS = 3
"""So many in a row are tried again at once."""
_ANSWERS = frozenset({"rejected", "conflict"})
"""They say that the endpoint is well: whether they count while it is stopped depends on what the relay knows of that."""


def _expected(snapshot: Snapshot, entry: Entry, delivery: Delivery, error_class: ErrorClass) -> list[_Expected]:
    """As docs/reference/delivery.md has it. Where others did something too, its breaker may have turned before it was recorded."""
    in_a_row = _the_same_in_a_row(snapshot, entry, error_class)
    if error_class == "lease_lost" or (error_class == "conflict" and in_a_row < _CONFLICTS):
        return [_AT_ONCE]
    if error_class == "mapping" or (error_class == "rejected" and in_a_row > 0):
        return [_Expected(cause=error_class)]
    delay = next(iter(SCHEDULE[delivery.attempt - 1 :]), None)
    if error_class == "auth":
        return [_AT_ONCE]
    counted = _Expected(cause="exhausted") if delay is None else _Expected(delay=delay)
    gates = POLICIES[delivery.route].breakers
    was_open = any(breaker(snapshot.earlier, gate) is not BreakerState.CLOSED for gate in gates)
    if snapshot.doing.operations > 1 or (was_open and error_class in _ANSWERS):
        return [_AT_ONCE, counted]
    return [_AT_ONCE if was_open else counted]


def _the_same_in_a_row(snapshot: Snapshot, entry: Entry, error_class: ErrorClass) -> int:
    """Count how many of its last attempts of this run failed in this class, in a row."""
    number = 0
    before = [each for each in snapshot.history.entries[entry.key] if each.number < entry.number]
    for each in before:
        if each.run == entry.run and isinstance(each.fact, facts.AttemptFailed | facts.Abandoned):
            number = number + 1 if getattr(each.fact, "error_class", None) == error_class else 0
    return number


def refused_results_change_nothing(snapshot: Snapshot) -> Sequence[object]:
    results = snapshot.doing.results
    if snapshot.doing.operations != 1 or not results or any(result.fact is not None for result in results):
        return []
    return [] if snapshot.before == snapshot.after and not snapshot.new else [(results, snapshot.new)]


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


_ACTS: dict[type[Fact], Act] = {
    facts.Replayed: "replay",
    facts.Cancelled: "cancel",
    facts.Unblocked: "unblock",
    facts.Rescheduled: "retry",
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
    """By a seq, a route, a destination or a cause. Where a cause is named, the dead; where only a route is replayed, too."""
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


def all_that_was_asked_for(snapshot: Snapshot) -> Sequence[object]:
    """A cancel leaves nothing but what is in flight, an unblock nothing blocked, a retry nothing that is due later."""
    if snapshot.doing.operations != 1:
        return []
    return [
        (act, row)
        for act, chosen in snapshot.doing.asked
        for key, row in snapshot.after.items()
        if act != "replay" and _is_meant(act, chosen, key, snapshot.history.entries.get(key, ()))
        if _is_left(act, row, snapshot.now)
    ]


def _is_left(act: Act, row: Row, now: datetime) -> bool:
    match act:
        case "unblock":
            return row.state is State.BLOCKED
        case "retry":
            return row.due_at is not None and row.due_at > now
        case _:
            return row.state is not State.IN_FLIGHT


def nothing_older_is_replayed_unasked(snapshot: Snapshot) -> Sequence[object]:
    """Not in the place of what was delivered last, when nothing is fetched: unless that comes again later, or it is forced.

    It comes again later when it is replayed too, or was before, and nobody has begun it.
    """
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
        and not _is_untouched(snapshot.before.get((last.seq, entry.key[1])))
    ]


def _is_untouched(row: Row | None) -> bool:
    return row is not None and row.attempt == 0 and row.state in {State.RECEIVED, State.WAITING, State.READY}
