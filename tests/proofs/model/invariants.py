"""Invariants that hold after every step, by the name of what is wrong when one does not."""

from __future__ import annotations

from tests.proofs.model import checks_of_coverage, checks_of_results, checks_of_state
from tests.proofs.model.snapshot import Check, Snapshot, Violation

CHECKS: dict[str, Check] = {
    "an acknowledged event is not stored once": checks_of_state.acknowledged_is_stored_once,
    "a delivery is lost": checks_of_state.every_delivery_is_open_or_ended,
    "a delivery nobody asked for": checks_of_state.nothing_is_made_up,
    "a result nobody made": checks_of_results.results_were_made,
    "a refused result changed something": checks_of_results.refused_results_change_nothing,
    "the facts say something else": checks_of_state.facts_fold_to_the_rows,
    "a lane without its one head": checks_of_state.waiting_lanes_have_one_head,
    "two trust a lease of one lane": checks_of_state.one_trusted_lease_per_lane,
    "a trusted lease is not in force": checks_of_state.every_trusted_lease_is_in_force,
    "abandoned by somebody else": checks_of_state.abandoned_by_their_holders,
    "a crash loop of too few attempts": checks_of_state.crash_loops_are_abandoned_in_a_row,
    "claimed before an earlier one": checks_of_state.first_claims_are_in_order,
    "claimed before it is due": checks_of_state.claims_are_due,
    "called after a later one": checks_of_state.first_calls_are_in_order,
    "late is marked wrongly": checks_of_state.late_is_marked,
    "a retry that does not go on": checks_of_state.retries_that_are_taken_over_go_on,
    "superseded without a stand-in": checks_of_coverage.the_superseded_have_a_stand_in,
    "told again after a sweep": checks_of_coverage.what_a_sweep_has_told_is_not_told_again,
    "dead though a later one succeeded": checks_of_coverage.later_successes_heal,
    "re-armed without need": checks_of_coverage.a_repeat_rearms_what_is_not_covered,
    "a repeat is judged wrongly": checks_of_coverage.repeats_are_judged,
    "a repeat is lost": checks_of_state.every_repeat_is_stored,
    "the lane remembers something else": checks_of_state.lane_remembers_its_last_success,
    "a repeated call that nothing explains": checks_of_results.repeats_are_explained,
    "claimed while it is paused": checks_of_results.the_paused_is_not_claimed,
    "claimed while the endpoint is stopped": checks_of_results.a_stopped_endpoint_is_only_probed,
    "two try one breaker": checks_of_results.one_probe_at_a_time,
    "a breaker turned without a reason": checks_of_results.breakers_have_reasons,
    "nobody asked for it": checks_of_results.only_what_was_asked_for,
    "not all that was asked for": checks_of_results.all_that_was_asked_for,
    "something older is replayed": checks_of_results.nothing_older_is_replayed_unasked,
    "verify finds a difference": checks_of_state.verify_agrees,
}


def broken(snapshot: Snapshot) -> dict[str, list[object]]:
    """Make every check, and give the evidence of those that find something."""
    return {kind: list(evidence) for kind, check in CHECKS.items() if (evidence := check(snapshot))}


def hold(snapshot: Snapshot) -> None:
    """Make every check.

    Raises:
        Violation: of the first that finds something.
    """
    for kind, evidence in broken(snapshot).items():
        violation = Violation(kind, evidence)
        violation.add_note("\n".join(map(str, ["open:", *snapshot.after.values(), "new:", *snapshot.new])))
        violation.add_note("\n".join(f"{k}: {[str(e) for e in v]}" for k, v in snapshot.history.entries.items()))
        violation.add_note(str(snapshot.doing))
        raise violation
