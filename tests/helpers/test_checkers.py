"""Every checker passes a good run and finds what is wrong with a bad one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from tests.helpers import checkers
from tests.helpers.checkers import Holding, Interval, Takeover

Line = dict[str, Any]


def sent(
    entity: str, occurred_at: str, outcome: str | None, seq: int | None = None, *, at: float = 0.0, **more: object
) -> Line:
    line: Line = {
        "at": at,
        "entity": entity,
        "occurred_at": occurred_at,
        "body": f"{entity}@{occurred_at}",
        "outcome": outcome,
        **more,
    }
    return line if seq is None else {**line, "seq": seq}


def came(
    n: int, seq: int, entity: str, occurred_at: str, *, attempt: int = 1, run: int = 0, status: int = 200, at: float = 0.0,
    **more: object,
) -> Line:  # fmt: skip
    event = {"entity": entity, "occurred_at": occurred_at, "body": f"{entity}@{occurred_at}"}
    return {"n": n, "at": at, "seq": seq, "run": run, "attempt": attempt, "status": status, **event, **more}


def fact(seq: int, kind: str, attempt: int = 1, at: float = 0.0, **detail: object) -> Line:
    return {"seq": seq, "kind": kind, "attempt": attempt, "at": at, "detail": detail}


SENDS = [
    sent("a", "t1", None), sent("a", "t1", "unknown"), sent("a", "t1", None), sent("a", "t1", "ok", 1),
    sent("a", "t2", None), sent("a", "t2", "ok", 2),
    sent("b", "t1", None), sent("b", "t1", "failed", status=503, retry_after="2"),
]  # fmt: skip
ARRIVALS = [came(1, 1, "a", "t1"), came(2, 2, "a", "t2")]
SWAPPED = [came(1, 2, "a", "t2"), came(2, 1, "a", "t1")]
BEHIND = ("a", 1, "behind, not marked")
FACTS = [fact(1, "delivered"), fact(2, "delivered")]
STORED = [{"entity": "a", "occurred_at": "t1", "seq": 1}, {"entity": "a", "occurred_at": "t2", "seq": 2}]


def test_a_good_run_has_nothing_against_it() -> None:
    assert checkers.lost(SENDS, ARRIVALS) == []
    assert checkers.phantoms(SENDS, ARRIVALS) == []
    assert checkers.two_numbers(SENDS, STORED) == []
    assert checkers.unstored(SENDS, STORED) == []
    assert checkers.out_of_order(ARRIVALS, FACTS) == []
    assert checkers.passed_over(SENDS, ARRIVALS) == []
    assert checkers.unexplained_repeats(ARRIVALS, FACTS) == []
    assert checkers.attempts_called_twice(ARRIVALS) == []
    assert checkers.repeats(ARRIVALS) == []
    assert checkers.taken_as_new_twice(SENDS) == []
    assert checkers.improper_refusals(SENDS) == []
    assert checkers.unfinished(STORED, FACTS) == []
    assert checkers.complaints({"relay.log": "all is well\n"}) == []


def test_what_was_acknowledged_and_did_not_arrive_with_success_is_lost() -> None:
    assert checkers.lost(SENDS, ARRIVALS[:1]) == [("a", "t2")]
    assert checkers.lost(SENDS, [ARRIVALS[0], came(2, 2, "a", "t2", status=503)]) == [("a", "t2")]
    assert checkers.lost([sent("a", "t9", None), sent("a", "t9", "unknown")], []) == []


def test_what_nobody_sent_is_a_phantom_and_what_was_never_answered_is_none() -> None:
    assert checkers.phantoms(SENDS, [*ARRIVALS, came(3, 3, "c", "t1")]) == ["c@t1"]
    assert checkers.phantoms(SENDS, [came(3, 3, "b", "t1")]) == []


def test_an_event_that_is_told_two_seqs_or_stored_twice_has_two_numbers() -> None:
    assert checkers.two_numbers([*SENDS, sent("a", "t1", "ok", 7)], STORED) == [(("a", "t1"), [1, 7])]
    again = {"entity": "a", "occurred_at": "t1", "seq": 3}
    assert checkers.two_numbers(SENDS, [*STORED, again]) == [(("a", "t1"), [1, 3])]


def test_what_was_acknowledged_and_is_not_in_the_inbox_is_unstored() -> None:
    assert checkers.unstored(SENDS, STORED[1:]) == [("a", "t1")]


def test_an_older_event_behind_a_later_one_is_out_of_order_unless_it_is_late() -> None:
    assert checkers.out_of_order(SWAPPED, FACTS) == [BEHIND]
    assert checkers.out_of_order(SWAPPED, [fact(1, "delivered", late=True), fact(2, "delivered")]) == []


def test_what_comes_behind_one_that_was_set_aside_need_not_be_marked() -> None:
    assert checkers.out_of_order(SWAPPED, [fact(2, "dead"), fact(1, "delivered")]) == []
    assert checkers.out_of_order(SWAPPED, [fact(2, "delivered"), fact(1, "delivered")]) != []


def test_an_older_event_may_go_before_one_whose_only_call_was_cut_and_not_counted() -> None:
    calls = [*SWAPPED, came(3, 2, "a", "t2")]
    assert checkers.out_of_order(calls, [fact(2, "attempt_failed", 0, counted=False), *FACTS]) == []
    assert checkers.out_of_order(calls, FACTS) == [BEHIND]


def test_a_mark_without_a_reason_is_found() -> None:
    marked = [fact(1, "delivered", late=True)]
    assert checkers.out_of_order(ARRIVALS, marked) == [("a", 1, "marked, not behind")]


def test_a_replayed_event_may_be_late_though_its_first_call_was_not() -> None:
    facts = [fact(1, "dead", cause="crash_loop"), fact(1, "replayed"), fact(1, "delivered", late=True)]
    assert checkers.out_of_order([*ARRIVALS, came(3, 1, "a", "t1", run=1)], facts) == []
    swapped = [SWAPPED[0], came(2, 1, "a", "t1", run=1)]
    assert checkers.out_of_order(swapped, [fact(1, "replayed"), fact(1, "delivered")]) == [BEHIND]


def test_events_of_one_instant_are_in_order_of_their_seqs_and_a_repeat_is_in_no_order() -> None:
    assert checkers.out_of_order([came(1, 4, "a", "t1"), came(2, 3, "a", "t1")], []) != []
    assert checkers.out_of_order([came(1, 3, "a", "t1"), came(2, 4, "a", "t1")], []) == []
    assert checkers.out_of_order([*ARRIVALS, came(3, 1, "a", "t1", attempt=2)], FACTS) == []


OLDER_ONE_PASSED = [("a", 1, 2)]


def passed(
    *,
    acknowledged: float,
    called: float,
    attempt: int = 1,
    facts: Sequence[Line] = (),
    frozen: Sequence[Holding] = (),
    standstills: Sequence[Interval] = (),
) -> list[tuple[str, int, int]]:
    """Seq 1 is the older; seq 2 is called first, by the relay n7."""
    sends = [sent("a", "t1", "ok", 1, at=acknowledged), sent("a", "t2", "ok", 2, at=1.0)]
    later = came(1, 2, "a", "t2", at=called, attempt=attempt, caller="7")
    arrivals = [later, came(2, 1, "a", "t1", at=called + 1.0, caller="7")]
    return checkers.passed_over(sends, arrivals, facts, {"7": "n7"}, frozen=frozen, standstills=standstills)


def test_an_event_that_waited_may_not_be_passed_by_a_later_one() -> None:
    assert passed(acknowledged=1.0, called=9.0) == OLDER_ONE_PASSED
    assert passed(acknowledged=8.9, called=9.0) == []
    assert passed(acknowledged=10.0, called=9.0) == []


def test_an_event_that_was_set_aside_is_not_passed_over() -> None:
    assert passed(acknowledged=1.0, called=9.0, facts=[fact(1, "dead", cause="crash_loop")]) == []
    assert passed(acknowledged=1.0, called=9.0, facts=[fact(2, "dead", cause="crash_loop")]) == OLDER_ONE_PASSED


def test_a_later_one_that_was_claimed_before_by_a_relay_that_died_has_passed_nobody() -> None:
    assert passed(acknowledged=1.0, called=9.0, attempt=2) == []


@pytest.mark.parametrize(
    ("held", "evidence"),
    [
        (Holding(99.0, "n7", ((2, 0, 1),)), []),
        (Holding(99.0, "n8", ((2, 0, 1),)), OLDER_ONE_PASSED),
        (Holding(103.0, "n7", ((2, 0, 1),)), OLDER_ONE_PASSED),
        (Holding(99.0, "n7", ((3, 0, 1), (2, 0, 2))), OLDER_ONE_PASSED),
    ],
    ids=["before", "by another", "later", "in another attempt"],
)
def test_what_a_frozen_relay_held_before_an_older_one_came_has_passed_nobody(
    held: Holding, evidence: list[object]
) -> None:
    assert passed(acknowledged=100.0, called=104.0, frozen=[held]) == evidence


@pytest.mark.parametrize(
    ("standstill", "evidence"),
    [
        (Interval(100.1, 103.9), []),
        (Interval(96.0, 99.9), OLDER_ONE_PASSED),
        (Interval(104.1, 108.0), OLDER_ONE_PASSED),
        (Interval(100.1, 101.0), OLDER_ONE_PASSED),
    ],
    ids=["meanwhile", "before", "after", "for a part of it"],
)
def test_what_was_called_late_as_the_database_stood_still_has_passed_nobody(
    standstill: Interval, evidence: list[object]
) -> None:
    assert passed(acknowledged=100.0, called=104.0, standstills=[standstill]) == evidence


def test_a_call_after_one_that_had_been_processed_is_a_repeat() -> None:
    assert checkers.repeats([*ARRIVALS, came(3, 1, "a", "t1", attempt=2)]) == [(1, 0, 2)]
    assert checkers.repeats([came(1, 1, "a", "t1", status=503), came(2, 1, "a", "t1", attempt=2)]) == []
    assert checkers.repeats([*ARRIVALS, came(3, 1, "a", "t1", run=1)]) == []


def test_a_repeat_needs_a_fact_that_explains_the_attempt_before() -> None:
    repeated = [*ARRIVALS, came(3, 1, "a", "t1", attempt=2)]
    second = [fact(1, "delivered", 2), fact(2, "delivered")]
    assert checkers.unexplained_repeats(repeated, second) == [((1, 0, 1), "no fact")]
    assert checkers.unexplained_repeats(repeated, [fact(1, "abandoned", 1), *second]) == []
    unknown = fact(1, "attempt_failed", 1, error_class="unknown")
    assert checkers.unexplained_repeats(repeated, [unknown, *second]) == []


def test_a_success_that_was_told_may_not_be_taken_for_a_failure() -> None:
    facts = [fact(1, "attempt_failed", 1, error_class="server_error"), fact(1, "delivered", 2), fact(2, "delivered")]
    second = came(3, 1, "a", "t1", attempt=2)
    assert checkers.unexplained_repeats([*ARRIVALS, second], facts) == [((1, 0, 1), "server_error")]
    refused = [came(1, 1, "a", "t1", status=503), ARRIVALS[1], second]
    assert checkers.unexplained_repeats(refused, facts) == []
    lost = [came(1, 1, "a", "t1", sent=False), ARRIVALS[1], second]
    assert checkers.unexplained_repeats(lost, facts) == []


def test_a_replay_counts_its_attempts_anew() -> None:
    replayed = [fact(1, "dead", 3, cause="crash_loop"), fact(1, "replayed", 0), fact(1, "delivered")]
    calls = [came(1, 1, "a", "t1", attempt=3), came(2, 1, "a", "t1", run=1)]
    assert checkers.unexplained_repeats(calls, replayed) == []
    assert checkers.unexplained_repeats([came(1, 1, "a", "t1")], replayed) == [((1, 0, 1), "no fact")]


def test_one_attempt_that_calls_twice_is_found_unless_it_did_not_count() -> None:
    uncounted = fact(1, "attempt_failed", 0, counted=False, error_class="lease_lost")
    twice = [*ARRIVALS, came(3, 1, "a", "t1")]
    assert checkers.attempts_called_twice(twice) == [(1, 0, 1)]
    assert checkers.attempts_called_twice(twice, FACTS) == [(1, 0, 1)]
    assert checkers.attempts_called_twice(twice, [uncounted, *FACTS]) == []
    assert checkers.attempts_called_twice([*twice, came(4, 1, "a", "t1")], [uncounted, *FACTS]) == [(1, 0, 1)]


def test_an_event_that_is_accepted_twice_was_not_recognised() -> None:
    first = sent("a", "t1", "ok", 1, answer="accepted")
    assert checkers.taken_as_new_twice([first, sent("a", "t1", "ok", 1, answer="duplicate")]) == []
    assert checkers.taken_as_new_twice([first, first]) == [("a", "t1")]


def test_a_refusal_is_503_and_says_when_to_come_again() -> None:
    assert checkers.improper_refusals([sent("a", "t1", "failed", status=500, retry_after="2")]) == [(500, "2")]
    assert checkers.improper_refusals([sent("a", "t1", "failed", status=503, retry_after=None)]) == [(503, None)]


def test_an_event_without_its_end_is_unfinished_and_so_is_one_with_two() -> None:
    assert checkers.unfinished(STORED, FACTS[:1]) == [2]
    assert checkers.unfinished(STORED, [*FACTS, fact(1, "delivered")]) == [1]


def test_a_traceback_in_a_log_is_found() -> None:
    log = "fine\nTraceback (most recent call last):\n"
    assert checkers.complaints({"relay.log": log}) == [("relay.log", "Traceback (most recent call last):")]


# With faults.

KILLED = Holding(100.0, "n1", ((1, 0, 1),))
NEVER: list[Interval] = []
ABANDONED = fact(1, "abandoned", 1, 115.5, relay_node="n1")
DELIVERED = fact(1, "delivered", 2, 116.1, did="forwarded")


def called(seq: int, attempt: int, at: float) -> Line:
    return came(0, seq, "a", "t1", attempt=attempt, at=at)


def test_a_takeover_lasts_until_the_next_attempt_calls() -> None:
    arrivals = [called(1, 1, 99.9), called(1, 2, 116.0)]
    assert checkers.takeovers([KILLED], arrivals, [ABANDONED, DELIVERED], NEVER) == {(1, 0, 1): Takeover(16.0, 0.0)}


def test_a_next_attempt_that_ended_before_it_called_had_been_under_way_all_the_same() -> None:
    facts = [ABANDONED, fact(1, "abandoned", 2, 131.5, relay_node="n2"), fact(1, "delivered", 3, 132.0)]
    measured = checkers.takeovers([KILLED], [called(1, 3, 131.9)], facts, NEVER)
    assert measured == {(1, 0, 1): Takeover(16.5, 0.0)}


def test_what_was_recorded_after_all_needs_nobody_to_take_it_over() -> None:
    assert checkers.takeovers([KILLED], [called(1, 1, 99.9)], [fact(1, "delivered", 1)], NEVER) == {}


def test_a_takeover_that_takes_too_long_is_slow_unless_there_was_no_database() -> None:
    arrivals, facts = [called(1, 2, 121.0)], [ABANDONED, DELIVERED]
    slow = checkers.takeovers([KILLED], arrivals, facts, NEVER)
    assert checkers.slow_takeovers(slow) == [((1, 0, 1), 21.0)]
    assert checkers.slow_takeovers(slow, slowness=1.1) == [((1, 0, 1), 21.0)]
    assert checkers.slow_takeovers(slow, slowness=1.3) == []
    excused = checkers.takeovers([KILLED], arrivals, facts, [Interval(90.0, 102.0)])
    assert excused == {(1, 0, 1): Takeover(21.0, 2.0)}
    assert checkers.slow_takeovers(excused) == []


def test_a_delivery_over_which_relays_died_twice_may_wait_for_its_turn() -> None:
    twice = [fact(1, "abandoned", 1), fact(1, "abandoned", 2, 315.0, relay_node="n2"), fact(1, "delivered", 3, 330.0)]
    again = Holding(300.0, "n2", ((1, 0, 2),))
    measured = checkers.takeovers([again], [called(1, 3, 330.0)], twice, NEVER)
    assert measured == {(1, 0, 2): Takeover(30.0, 0.0, crashes=2)}
    assert checkers.slow_takeovers(measured) == []
    assert checkers.slow_takeovers(measured, suspects_within=25.0) == [((1, 0, 2), 30.0)]


def test_what_nobody_takes_over_is_slow() -> None:
    measured = checkers.takeovers([KILLED], [], [ABANDONED], NEVER)
    assert checkers.slow_takeovers(measured) == [((1, 0, 1), float("inf"))]


def test_a_lease_that_runs_out_needs_a_cause() -> None:
    assert checkers.abandoned_without_cause([ABANDONED], {}) == [(1, "n1")]
    assert checkers.abandoned_without_cause([ABANDONED], {"n2": [Interval(100, 100)]}) == [(1, "n1")]
    assert checkers.abandoned_without_cause([ABANDONED], {"n1": [Interval(10, 12)]}) == [(1, "n1")]
    assert checkers.abandoned_without_cause([ABANDONED], {"n1": [Interval(120, 130)]}) == [(1, "n1")]
    assert checkers.abandoned_without_cause([ABANDONED], {"n1": [Interval(100, 100)]}) == []


def test_an_outcome_is_recorded_by_the_relay_that_called() -> None:
    arrivals = [{**called(1, 2, 116.0), "caller": "7"}]
    by_itself = {**DELIVERED, "relay_node": "n2"}
    assert checkers.recorded_by_another(arrivals, [ABANDONED, by_itself], {"7": "n2"}) == []
    assert checkers.recorded_by_another(arrivals, [ABANDONED, by_itself], {"7": "n3"}) == [((1, 0, 2), "n2")]


def test_a_call_long_after_its_lease_was_taken_back_is_found() -> None:
    assert checkers.called_without_lease([called(1, 1, 115.0), called(1, 2, 117.0)], [ABANDONED, DELIVERED]) == []
    assert checkers.called_without_lease([called(1, 1, 117.0)], [ABANDONED, DELIVERED]) == [(1, 0, 1)]


def test_what_never_happened_is_named() -> None:
    assert checkers.never_happened({"kills": 3, "cuts": 0}, ("kills", "cuts", "freezes")) == ["cuts", "freezes"]
