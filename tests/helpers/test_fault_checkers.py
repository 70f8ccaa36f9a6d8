"""Every checker of a run with faults passes a good one and finds what is wrong with a bad one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tests.helpers import fault_checkers
from tests.helpers.fault_checkers import Holding, Interval, Takeover

Line = dict[str, Any]
KILLED = Holding(100.0, "n1", ((1, 0, 1),))
NEVER: list[Interval] = []


def came(seq: int, attempt: int, at: float) -> Line:
    return {"seq": seq, "run": 0, "attempt": attempt, "at": at}


def fact(seq: int, kind: str, attempt: int, at: float = 0.0, **detail: object) -> Line:
    return {"seq": seq, "kind": kind, "attempt": attempt, "at": at, "detail": detail}


ABANDONED = fact(1, "abandoned", 1, 115.5, relay_node="n1")
DELIVERED = fact(1, "delivered", 2, 116.1, did="forwarded")


def test_a_takeover_lasts_until_the_next_attempt_calls() -> None:
    arrivals = [came(1, 1, 99.9), came(1, 2, 116.0)]
    assert fault_checkers.takeovers([KILLED], arrivals, [ABANDONED, DELIVERED], NEVER) == {
        (1, 0, 1): Takeover(16.0, 0.0)
    }


def test_a_next_attempt_that_ended_before_it_called_had_been_under_way_all_the_same() -> None:
    facts = [ABANDONED, fact(1, "abandoned", 2, 131.5, relay_node="n2"), fact(1, "delivered", 3, 132.0)]
    measured = fault_checkers.takeovers([KILLED], [came(1, 3, 131.9)], facts, NEVER)
    assert measured == {(1, 0, 1): Takeover(16.5, 0.0)}


def test_what_was_recorded_after_all_needs_nobody_to_take_it_over() -> None:
    assert fault_checkers.takeovers([KILLED], [came(1, 1, 99.9)], [fact(1, "delivered", 1)], NEVER) == {}


def test_a_takeover_that_takes_too_long_is_slow_unless_there_was_no_database() -> None:
    arrivals, facts = [came(1, 2, 121.0)], [ABANDONED, DELIVERED]
    slow = fault_checkers.takeovers([KILLED], arrivals, facts, NEVER)
    assert fault_checkers.slow_takeovers(slow) == [((1, 0, 1), 21.0)]
    assert fault_checkers.slow_takeovers(slow, slowness=1.1) == [((1, 0, 1), 21.0)]
    assert fault_checkers.slow_takeovers(slow, slowness=1.3) == []
    excused = fault_checkers.takeovers([KILLED], arrivals, facts, [Interval(90.0, 102.0)])
    assert excused == {(1, 0, 1): Takeover(21.0, 2.0)}
    assert fault_checkers.slow_takeovers(excused) == []


def test_a_delivery_over_which_relays_died_twice_may_wait_for_its_turn() -> None:
    twice = [fact(1, "abandoned", 1), fact(1, "abandoned", 2, 315.0, relay_node="n2"), fact(1, "delivered", 3, 330.0)]
    again = Holding(300.0, "n2", ((1, 0, 2),))
    measured = fault_checkers.takeovers([again], [came(1, 3, 330.0)], twice, NEVER)
    assert measured == {(1, 0, 2): Takeover(30.0, 0.0, crashes=2)}
    assert fault_checkers.slow_takeovers(measured) == []
    assert fault_checkers.slow_takeovers(measured, suspects_within=25.0) == [((1, 0, 2), 30.0)]


def test_what_nobody_takes_over_is_slow() -> None:
    measured = fault_checkers.takeovers([KILLED], [], [ABANDONED], NEVER)
    assert fault_checkers.slow_takeovers(measured) == [((1, 0, 1), float("inf"))]


def test_a_lease_that_runs_out_needs_a_cause() -> None:
    assert fault_checkers.abandoned_without_cause([ABANDONED], {}) == [(1, "n1")]
    assert fault_checkers.abandoned_without_cause([ABANDONED], {"n2": [Interval(100, 100)]}) == [(1, "n1")]
    assert fault_checkers.abandoned_without_cause([ABANDONED], {"n1": [Interval(10, 12)]}) == [(1, "n1")]
    assert fault_checkers.abandoned_without_cause([ABANDONED], {"n1": [Interval(120, 130)]}) == [(1, "n1")]
    assert fault_checkers.abandoned_without_cause([ABANDONED], {"n1": [Interval(100, 100)]}) == []


def test_an_outcome_is_recorded_by_the_relay_that_called() -> None:
    arrivals = [{**came(1, 2, 116.0), "caller": "7"}]
    by_itself = {**DELIVERED, "relay_node": "n2"}
    assert fault_checkers.recorded_by_another(arrivals, [ABANDONED, by_itself], {"7": "n2"}) == []
    assert fault_checkers.recorded_by_another(arrivals, [ABANDONED, by_itself], {"7": "n3"}) == [((1, 0, 2), "n2")]


SEVENTH = {"7": "n7"}


def passed(frozen: Sequence[Holding] = (), standstills: Sequence[Interval] = ()) -> list[tuple[str, int, int]]:
    """Seq 1 is the older and was acknowledged at 100; seq 2 is called first, at 104, by the relay n7."""
    older, later = {"entity": "a", "occurred_at": "t1"}, {"entity": "a", "occurred_at": "t2"}
    sends = [{**older, "seq": 1, "at": 100.0, "outcome": "ok"}, {**later, "seq": 2, "at": 90.0, "outcome": "ok"}]
    arrivals = [
        {**came(2, 1, 104.0), **later, "n": 1, "caller": "7"},
        {**came(1, 1, 105.0), **older, "n": 2, "caller": "7"},
    ]
    return fault_checkers.passed_over(sends, arrivals, [], SEVENTH, frozen=frozen, standstills=standstills)


def test_what_a_frozen_relay_held_before_an_older_one_came_has_passed_nobody() -> None:
    assert passed() == [("a", 1, 2)]
    assert passed([Holding(99.0, "n7", ((2, 0, 1),))]) == []


def test_what_another_relay_held_or_this_one_later_or_in_another_attempt_has_passed_it() -> None:
    for holding in (
        Holding(99.0, "n8", ((2, 0, 1),)),
        Holding(103.0, "n7", ((2, 0, 1),)),
        Holding(99.0, "n7", ((3, 0, 1), (2, 0, 2))),
    ):
        assert passed([holding]) == [("a", 1, 2)]


def test_what_was_called_late_as_the_database_stood_still_has_passed_nobody() -> None:
    assert passed(standstills=[Interval(100.1, 103.9)]) == []


def test_what_was_called_late_before_or_after_the_database_stood_still_or_for_longer_has_passed_it() -> None:
    for standstill in (Interval(96.0, 99.9), Interval(104.1, 108.0), Interval(100.1, 101.0)):
        assert passed(standstills=[standstill]) == [("a", 1, 2)]


def test_a_call_long_after_its_lease_was_taken_back_is_found() -> None:
    assert fault_checkers.called_without_lease([came(1, 1, 115.0), came(1, 2, 117.0)], [ABANDONED, DELIVERED]) == []
    assert fault_checkers.called_without_lease([came(1, 1, 117.0)], [ABANDONED, DELIVERED]) == [(1, 0, 1)]


def test_what_never_happened_is_named() -> None:
    assert fault_checkers.never_happened({"kills": 3, "cuts": 0}, ("kills", "cuts", "freezes")) == ["cuts", "freezes"]
