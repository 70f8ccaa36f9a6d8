"""What must hold after every step, by the name of what is wrong when it does not."""

from __future__ import annotations

from tests.model import checks_of_leases, checks_of_order, checks_of_results, checks_of_state
from tests.model.moment import Check, Moment, Violation

CHECKS: dict[str, Check] = {
    "an acknowledged event is not stored once": checks_of_state.acknowledged_is_stored_once,
    "a delivery is lost": checks_of_state.every_delivery_is_open_or_ended,
    "a delivery nobody asked for": checks_of_state.nothing_is_made_up,
    "a result nobody made": checks_of_results.results_were_made,
    "a refused result changed something": checks_of_results.refused_results_change_nothing,
    "the facts say something else": checks_of_state.facts_fold_to_the_rows,
    "a lane without its one head": checks_of_state.waiting_lanes_have_one_head,
    "two trust a lease of one lane": checks_of_leases.one_trusted_lease_per_lane,
    "a trusted lease is not in force": checks_of_leases.every_trusted_lease_is_in_force,
    "abandoned by somebody else": checks_of_leases.abandoned_by_their_holders,
    "a crash loop of relays that live": checks_of_leases.crash_loops_are_of_the_dead,
    "claimed before an earlier one": checks_of_order.first_claims_are_in_order,
    "claimed before it is due": checks_of_order.claims_are_due,
    "called after a later one": checks_of_order.first_calls_are_in_order,
    "late is marked wrongly": checks_of_order.late_is_marked,
    "a retry that does not go on": checks_of_order.retries_that_are_taken_over_go_on,
    "superseded by an older one": checks_of_order.newer_supersede_older,
    "the lane remembers something else": checks_of_state.lane_remembers_the_newest_delivered,
    "a repeated call that nothing explains": checks_of_results.repeats_are_explained,
    "replayed without being asked": checks_of_results.only_what_was_asked_for_is_replayed,
    "verify finds a difference": checks_of_state.verify_agrees,
}


def hold(moment: Moment) -> None:
    """Make every check.

    Raises:
        Violation: of the first that finds something.
    """
    for kind, check in CHECKS.items():
        if evidence := check(moment):
            violation = Violation(kind, list(evidence))
            violation.add_note("\n".join(map(str, ["open:", *moment.after.values(), "new:", *moment.new])))
            violation.add_note("\n".join(f"{k}: {[str(e) for e in v]}" for k, v in moment.history.entries.items()))
            violation.add_note(str(moment.doing))
            raise violation
