"""Checks of what was called, and of what is recorded of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from datetime import timedelta
from typing import NamedTuple

from relay.delivery import facts
from relay.delivery.gates import BreakerState
from relay.delivery.outcome import Delivered, Delivery, ErrorClass, Failed, Outcome, Skipped
from tests.proofs.model.checks_of_gates import breaker
from tests.proofs.model.checks_of_leases import is_abandoned
from tests.proofs.model.history import Entry, Key
from tests.proofs.model.snapshot import Snapshot
from tests.proofs.model.world import POLICIES, SCHEDULE


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


_WORK = facts.DeliveredFact | facts.SkippedFact | facts.AttemptFailed | facts.Dead


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
        case Skipped(), facts.SkippedFact():
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
