"""What was called, and what is recorded of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from relay import facts
from relay.lifecycle import State
from relay.outcome import Delivered, Delivery, Failed, Outcome, Skipped
from relay.rules import RULES, Rule
from tests.model.checks_of_leases import is_abandoned
from tests.model.history import Entry, Key
from tests.model.moment import Moment
from tests.model.world import SCHEDULE


def repeats_are_explained(moment: Moment) -> Sequence[object]:
    """Within a run another call follows only an attempt that failed or was abandoned, and has a number of its own.

    One that is not counted leaves its number to the next.
    """
    evidence: list[object] = []
    for call in moment.doing.calls:
        calls = [other for other in moment.ledger.calls[call.key] if other.run == call.run]
        failures = [
            entry
            for entry in moment.history.entries[call.key]
            if entry.run == call.run and isinstance(entry.fact, facts.AttemptFailed | facts.Abandoned)
        ]
        same = [other for other in calls if other.attempt == call.attempt]
        left = [entry for entry in failures if _is_uncounted(entry.fact) and entry.attempt + 1 == call.attempt]
        if len(calls) > 1 + len(failures) or len(same) > 1 + len(left):
            evidence.append((call, calls, failures))
    return evidence


def _is_uncounted(fact: facts.AnyFact) -> bool:
    return isinstance(fact, facts.AttemptFailed) and not fact.counted


HOPELESS = {name for name, rule in RULES.items() if rule is Rule.DEAD}
_WORK = facts.Delivered | facts.Skipped | facts.AttemptFailed | facts.Dead


def results_were_made(moment: Moment) -> Sequence[object]:
    """Every result in the log is of an attempt that this relay made, and what it was told agrees."""
    handed_in = {
        (node, (delivery.seq, delivery.route), delivery.run, delivery.attempt): (delivery, outcome)
        for node, delivery, outcome in moment.doing.handed_in
    }
    evidence: list[object] = []
    written: Counter[Key] = Counter()
    for entry in moment.new:
        if isinstance(entry.fact, _WORK) and not is_abandoned(entry.fact):
            written[entry.key] += 1
            attempt = entry.attempt + int(_is_uncounted(entry.fact))
            made = handed_in.get((str(entry.relay_node), entry.key, entry.run, attempt))
            if made is None or not _follows(entry, *made):
                evidence.append((entry, made))
    told = Counter((r.delivery.seq, r.delivery.route) for r in moment.doing.results if r.fact is not None)
    return evidence or ([] if told == written else [(told, written)])


def _follows(entry: Entry, delivery: Delivery, outcome: Outcome) -> bool:
    match outcome, entry.fact:
        case Delivered(), facts.Delivered(late=late):
            return late == delivery.late
        case Skipped(), facts.Skipped():
            return True
        case Failed(error_class="lease_lost"), facts.AttemptFailed(counted=counted, due_at=due_at):
            return not counted and due_at == entry.at
        case Failed(error_class=error_class), facts.AttemptFailed(counted=counted, due_at=due_at):
            delays = SCHEDULE[delivery.attempt - 1 :][:1]
            return error_class not in HOPELESS and counted and [due_at - entry.at] == list(delays)
        case Failed(error_class=error_class), facts.Dead(cause=cause):
            return cause == (error_class if error_class in HOPELESS else "exhausted") and (
                error_class in HOPELESS or delivery.attempt > len(SCHEDULE)
            )
        case _:
            return False


def refused_results_change_nothing(moment: Moment) -> Sequence[object]:
    results = moment.doing.results
    if moment.doing.operations != 1 or not results or any(result.fact is not None for result in results):
        return []
    return [] if moment.before == moment.after and not moment.new else [(results, moment.new)]


def only_what_was_asked_for_is_replayed(moment: Moment) -> Sequence[object]:
    return [
        entry
        for entry in moment.new
        if isinstance(entry.fact, facts.Replayed)
        and (
            entry.key not in moment.doing.replayed
            or (entry.key in moment.before and moment.before[entry.key].state not in {State.DEAD, State.BLOCKED})
        )
    ]
