"""Rows that somebody keeps locked, such as a person in psql: what waits for them, and that nothing else does."""

from __future__ import annotations

import pytest
from sqlalchemy import text

from relay.delivery.lifecycle import State
from relay.store import claim, reap, sequence
from relay.store.database import Database
from relay.store.turns import AGAIN_SECONDS, BackOffs
from tests.helpers.kinds import ON_POSTGRES
from tests.helpers.relaying import POLICIES, Monotonic, Steps
from tests.helpers.sent_statements import counted_statements
from tests.helpers.standing_still import locked_by_a_person
from tests.helpers.storing import an_event

pytestmark = ON_POSTGRES

_STATE_OF_NOTHING = text("UPDATE open_delivery SET state = 'nothing'")
_END = text("DELETE FROM open_delivery")


def test_of_a_route_with_a_locked_row_the_others_are_sequenced_as_they_arrive(steps: Steps) -> None:
    steps.receive(an_event(1), an_event(2, "u2"))
    steps.database._thread.hasty_until = float("inf")  # so that each wait for a row is short
    steps.database.back_offs = BackOffs(Monotonic())
    left = steps.hear_of_left()
    with locked_by_a_person(steps.database.engine, "SELECT seq FROM open_delivery WHERE seq = 1 FOR UPDATE"):
        assert steps.sequence() == 1
        for number in (3, 4):
            steps.receive(an_event(number, f"u{number}"))
            assert steps.sequence() == 1
    assert [one.routes for one in left] == [["strict"], (), ()], "the row was tried once"
    assert left[0].again_in == AGAIN_SECONDS
    steps.try_again()
    assert steps.sequence() == 1


def test_what_comes_after_a_locked_delivery_in_its_lane_is_left_with_it_on_strict(steps: Steps) -> None:
    steps.receive(
        *(an_event(n, "u1") for n in (1, 2, 3)), an_event(4, "u2"),
        *(an_event(n, "u1", routes=["latest"]) for n in (5, 6)),
    )  # fmt: skip
    steps.database._thread.hasty_until = float("inf")  # so that each wait for a row is short
    with locked_by_a_person(steps.database.engine, "SELECT seq FROM open_delivery WHERE seq IN (2, 5) FOR UPDATE"):
        assert steps.sequence() == 3
        steps.receive(an_event(7, "u1"))
        for _ in range(2):
            assert steps.sequence() == 0, "nor later, when the locked one is not tried"
        steps.try_again()
        assert steps.sequence() == 0
        assert steps.states() == [
            (1, "strict", "ready"), (2, "strict", "received"), (3, "strict", "received"), (4, "strict", "ready"),
            (5, "latest", "received"), (6, "latest", "ready"), (7, "strict", "received"),
        ]  # fmt: skip
    steps.try_again()
    assert [steps.sequence(), steps.sequence()] == [2, 2], "first what was locked, then what waits for it"
    assert [(seq, state) for seq, route, state in steps.states() if route == "strict"] == [
        (1, "ready"), (2, "waiting"), (3, "waiting"), (4, "ready"), (7, "waiting"),
    ]  # fmt: skip


def test_behind_a_locked_delivery_a_lane_of_any_length_hides_no_other(steps: Steps) -> None:
    steps.receive(*(an_event(n, "u1") for n in range(1, 8)), an_event(8, "u2"))
    with locked_by_a_person(steps.database.engine, "SELECT seq FROM open_delivery WHERE seq = 1 FOR UPDATE"):
        for _ in range(3):
            steps.sequence(batch=5)
            steps.try_again()
        assert [seq for seq, _, state in steps.states() if state == State.READY] == [8]
        assert not steps.database.arrivals.is_behind
    while steps.sequence(batch=5):
        steps.try_again()
    assert [state for _, _, state in steps.states()] == ["ready", *["waiting"] * 6, "ready"]


@pytest.mark.parametrize("second", [1, 1000])
@pytest.mark.parametrize("route", ["latest", "strict"])
def test_a_placed_delivery_that_a_person_has_locked_keeps_what_arrives_in_its_lane_and_no_other_lane(
    steps: Steps, route: str, second: int
) -> None:
    steps.arrive(an_event(1, "u1", second=second, routes=[route]))
    steps.receive(*(an_event(n, f"u{n // 201 + 1}", routes=[route]) for n in range(2, 202)))
    steps.database._thread.hasty_until = float("inf")  # so that what is locked is seen at once
    left = steps.hear_of_left()
    with (
        locked_by_a_person(steps.database.engine, "SELECT seq FROM open_delivery WHERE seq = 1 FOR UPDATE"),
        counted_statements() as seen,
    ):
        assert steps.sequence(batch=50) == 1
        assert steps.database.arrivals.placed == {(1, route)}
        was_behind = steps.database.arrivals.is_behind
        for _ in range(3):
            assert steps.sequence(batch=50) == 0
            steps.try_again()
        assert sum("FOR UPDATE OF o\n" in statement for statement in seen) == 1, "it waits for none of them"
    assert [one.error is not None for one in left][:2] == [True, False]
    assert steps.sequence(batch=50) == 0
    assert (was_behind, steps.database.arrivals.is_behind) == (False, True), "its lane is free"
    while sequence.any_received(steps.database, steps.policies):
        steps.sequence(batch=50)
    assert {state for _, _, state in steps.states()} <= {"ready", "waiting"}


def test_a_waiting_delivery_that_a_person_has_locked_keeps_what_would_take_its_place(steps: Steps) -> None:
    steps.arrive(an_event(1, "u1", routes=["latest"]))
    steps.claim_due()
    steps.arrive(an_event(2, "u1", routes=["latest"]))
    steps.receive(an_event(3, "u1", routes=["latest"]), an_event(4, "u2", routes=["latest"]))
    steps.database._thread.hasty_until = float("inf")
    with locked_by_a_person(steps.database.engine, "SELECT seq FROM open_delivery WHERE seq = 2 FOR UPDATE"):
        assert steps.sequence() == 1
    steps.try_again()
    assert [steps.sequence(), steps.sequence()] == [0, 1]
    assert [(seq, state) for seq, _, state in steps.states()] == [(1, "in_flight"), (3, "waiting"), (4, "ready")]


def test_a_waiting_delivery_that_stays_locked_is_told_and_is_tried_ever_less_often(steps: Steps) -> None:
    steps.arrive(an_event(1, "u1", routes=["latest"]))
    steps.claim_due()
    steps.arrive(an_event(2, "u1", routes=["latest"]))
    steps.receive(an_event(3, "u1", routes=["latest"]))
    steps.database._thread.hasty_until = float("inf")
    monotonic = Monotonic()
    steps.database.back_offs = BackOffs(monotonic)
    left = steps.hear_of_left()
    with locked_by_a_person(steps.database.engine, "SELECT seq FROM open_delivery WHERE seq = 2 FOR UPDATE"):
        for _ in range(4):
            assert steps.sequence() == 0
            monotonic.seconds += left[-1].again_in + 0.01 if left else 0
    assert [round(one.again_in, 1) for one in left] == [0.1, 0.2, 0.4]


def test_a_waiting_delivery_that_a_person_has_locked_and_that_would_become_the_head_keeps_its_lane_alone(
    steps: Steps,
) -> None:
    """It waits behind a later one on `strict` that had an attempt, which did not count."""
    steps.arrive(an_event(1, "u1", second=20))
    steps.do("UPDATE open_delivery SET due_at = '2100-01-01'")
    steps.arrive(an_event(2, "u1", second=10))
    steps.do("UPDATE open_delivery SET due_at = '2000-01-01' WHERE seq = 1")
    steps.receive(*(an_event(n, "u1") for n in (31, 32)), an_event(33, "u2"))
    steps.database._thread.hasty_until = float("inf")
    with locked_by_a_person(steps.database.engine, "SELECT seq FROM open_delivery WHERE seq = 2 FOR UPDATE"):
        assert steps.sequence() == 1
        assert steps.database.arrivals.rows == steps.database.arrivals.placed == {(2, "strict")}
    steps.try_again()
    assert [steps.sequence(), steps.sequence()] == [0, 2]
    assert [(seq, state) for seq, _, state in steps.states()] == [
        (1, "waiting"), (2, "ready"), (3, "waiting"), (4, "waiting"), (5, "ready"),
    ]  # fmt: skip


def test_any_waiting_delivery_of_a_lane_on_latest_that_a_person_has_locked_keeps_it_alone(steps: Steps) -> None:
    steps.arrive(an_event(1, "u1", routes=["latest"]))
    steps.claim_due()
    steps.receive(*(an_event(n, "u1", routes=["latest"]) for n in (2, 3, 4)))
    steps.do("UPDATE open_delivery SET state = 'waiting' WHERE state = 'received'")  # as where very many wait
    steps.receive(an_event(5, "u1", routes=["latest"]), an_event(6, "u2", routes=["latest"]))
    steps.database._thread.hasty_until = float("inf")
    with locked_by_a_person(steps.database.engine, "SELECT seq FROM open_delivery WHERE seq = 4 FOR UPDATE"):
        assert steps.sequence() == 1
        assert steps.database.arrivals.rows == steps.database.arrivals.placed == {(4, "latest")}
    steps.try_again()
    assert [steps.sequence(), steps.sequence()] == [0, 1]
    assert [(seq, state) for seq, _, state in steps.states()] == [(1, "in_flight"), (5, "waiting"), (6, "ready")]


def test_a_waiting_delivery_that_a_person_has_locked_keeps_nothing_from_waiting_behind_it_on_strict(
    steps: Steps,
) -> None:
    steps.arrive(an_event(1, "u1"), an_event(2, "u1"))
    steps.receive(an_event(3, "u1"))
    steps.database._thread.hasty_until = float("inf")
    with locked_by_a_person(steps.database.engine, "SELECT seq FROM open_delivery WHERE seq = 2 FOR UPDATE"):
        assert steps.sequence() == 1


def test_a_lane_goes_on_at_once_when_the_head_that_was_locked_is_claimed(steps: Steps) -> None:
    steps.arrive(an_event(1, "u1"))
    steps.receive(an_event(2, "u1"))
    steps.database._thread.hasty_until = float("inf")
    steps.database.back_offs = BackOffs(Monotonic())  # whose time stands still
    with locked_by_a_person(steps.database.engine, "SELECT seq FROM open_delivery WHERE seq = 1 FOR UPDATE"):
        assert [steps.sequence(), steps.sequence()] == [0, 0]
    steps.claim_due()
    assert steps.database.back_offs.of("sequence") == {"route=strict seq=1"}
    assert steps.sequence() == 1


def test_what_had_its_place_and_is_locked_as_it_is_replayed_goes_first_in_its_lane_still(steps: Steps) -> None:
    steps.arrive(an_event(1, "u1"))
    steps.receive(an_event(2, "u1"))
    steps.database._thread.hasty_until = float("inf")
    lock = "SELECT seq FROM open_delivery WHERE seq = 1 FOR UPDATE"
    with locked_by_a_person(steps.database.engine, lock):
        assert steps.sequence() == 0
    steps.do("UPDATE open_delivery SET state = 'received', due_at = NULL WHERE seq = 1")
    with locked_by_a_person(steps.database.engine, lock):
        assert [steps.sequence(), steps.sequence()] == [0, 0]
    steps.try_again()
    assert [steps.sequence(), steps.sequence()] == [1, 1]
    assert [(seq, state) for seq, _, state in steps.states()] == [(1, "ready"), (2, "waiting")]


def test_a_locked_head_is_known_to_be_locked_while_a_locked_one_before_it_is_not_tried(steps: Steps) -> None:
    steps.arrive(an_event(1, "u1", second=30))
    steps.receive(an_event(2, "u1", second=20), an_event(3, "u1", second=10))
    steps.database._thread.hasty_until = float("inf")
    steps.database.back_offs = BackOffs(Monotonic())
    with locked_by_a_person(steps.database.engine, "SELECT seq FROM open_delivery WHERE seq < 3 FOR UPDATE"):
        assert steps.sequence() == 0
        assert steps.database.back_offs.of("sequence") == {"route=strict seq=2"}
        assert steps.sequence() == 0
        assert steps.database.arrivals.placed == {(1, "strict")}
        assert not steps.database.arrivals.is_behind
        assert steps.database.back_offs.of("sequence") == {"route=strict seq=1", "route=strict seq=2"}


def test_more_locked_heads_than_other_locked_deliveries_are_known_so_that_their_lanes_hide_no_other(
    steps: Steps, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sequence, "MOST_ROWS", 2)
    monkeypatch.setattr(sequence, "AGAIN", 2)
    steps.arrive(*(an_event(n, f"u{n}") for n in range(1, 7)))
    steps.receive(*(an_event(n, f"u{n % 6 + 1}") for n in range(10, 70)))
    steps.database._thread.hasty_until = float("inf")
    with locked_by_a_person(steps.database.engine, "SELECT seq FROM open_delivery WHERE state = 'ready' FOR UPDATE"):
        steps.sequence(batch=10)
        for number in (100, 101):
            steps.receive(an_event(number, f"u{number}"))
            for _ in range(4):
                steps.try_again()
                steps.sequence(batch=10)
            assert steps.states()[-1][2] == State.READY
    steps.try_again()
    assert steps.sequence(batch=10) == 0, "all of them are tried together"
    assert steps.database.arrivals.rows == set()


def test_of_very_many_locked_heads_some_are_known_and_none_is_left_for_ever(
    steps: Steps, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sequence, "MOST_PLACED", 2)
    steps.arrive(*(an_event(n, f"u{n}") for n in range(1, 7)))
    steps.receive(*(an_event(n, f"u{n % 6 + 1}") for n in range(10, 22)), an_event(30, "u7"))
    steps.database._thread.hasty_until = float("inf")
    left = steps.hear_of_left()
    with locked_by_a_person(steps.database.engine, "SELECT seq FROM open_delivery WHERE state = 'ready' FOR UPDATE"):
        for sequenced in (1, 0):
            assert steps.sequence() == sequenced
            assert len(steps.database.arrivals.placed) == 2
            steps.try_again()
        assert "many deliveries are locked" in str(left[0].error)
    for _ in range(3):
        steps.sequence()
        steps.try_again()
    assert {state for _, _, state in steps.states()} <= {"ready", "waiting"}
    assert steps.database.arrivals.left == set()


def test_a_head_that_is_locked_for_a_moment_is_told_nobody(steps: Steps) -> None:
    steps.arrive(an_event(1, "u1"))
    steps.receive(an_event(2, "u1"))
    steps.database._thread.hasty_until = float("inf")
    left = steps.hear_of_left()
    with locked_by_a_person(steps.database.engine, "SELECT seq FROM open_delivery WHERE seq = 1 FOR UPDATE"):
        assert steps.sequence() == 0
    assert left == []
    assert [steps.sequence(), steps.sequence()] == [0, 1]


def test_a_lane_is_left_from_the_locked_delivery_on_whatever_came_first(steps: Steps) -> None:
    steps.receive(*(an_event(n, "u1", second=second) for n, second in ((1, 20), (2, 10), (3, 40), (4, 30))))
    with locked_by_a_person(steps.database.engine, "SELECT seq FROM open_delivery WHERE seq IN (2, 3) FOR UPDATE"):
        for _ in range(2):
            assert steps.sequence() == 0
            steps.try_again()
        steps.receive(an_event(5, "u1", second=5))
        assert steps.sequence() == 1, "what comes before it goes on"
    assert [seq for seq, _, state in steps.states() if state == State.READY] == [5]


def test_of_two_locked_deliveries_of_a_lane_nothing_after_the_first_goes_on(steps: Steps) -> None:
    steps.receive(*(an_event(n, "u1") for n in (1, 2, 3)))
    steps.database._thread.hasty_until = float("inf")  # so that what is locked is seen at once
    with locked_by_a_person(steps.database.engine, "SELECT seq FROM open_delivery WHERE seq IN (1, 3) FOR UPDATE"):
        assert steps.sequence() == 0


def test_what_waits_for_one_that_another_relay_has_sequenced_goes_on_at_once(steps: Steps) -> None:
    steps.receive(an_event(1, "u1"), an_event(2, "u1"))
    steps.database._thread.hasty_until = float("inf")
    with locked_by_a_person(steps.database.engine, "SELECT seq FROM open_delivery WHERE seq = 1 FOR UPDATE"):
        assert steps.sequence() == 0
    another = Database(steps.database.engine)
    assert sequence.sequence(another, POLICIES, "r2", batch=1) == 1
    assert steps.database.back_offs.of("sequence") == {"route=strict seq=1"}
    assert steps.sequence() == 1


def test_of_very_many_locked_deliveries_a_hundred_are_known_and_their_route_rests(steps: Steps) -> None:
    steps.receive(*(an_event(n, f"u{n}") for n in range(1, 151)), an_event(200, "u1", routes=["latest"]))
    steps.database._thread.hasty_until = float("inf")
    steps.database.back_offs = BackOffs(Monotonic())
    with locked_by_a_person(steps.database.engine, "SELECT seq FROM open_delivery WHERE route = 'strict' FOR UPDATE"):
        assert steps.sequence() == 1
        assert len(steps.database.arrivals.rows) == sequence.MOST_ROWS
        with counted_statements() as seen:
            assert steps.sequence() == 0
        assert not any("FOR UPDATE" in statement for statement in seen)
    steps.try_again()
    sequenced = 0
    while done := steps.sequence():
        sequenced += done
        steps.try_again()
    assert sequenced == 150


def test_a_breaker_whose_gate_a_person_has_locked_is_told_and_keeps_no_claim_from_others(steps: Steps) -> None:
    steps.arrive(an_event(1), an_event(2, "u2", routes=["latest"]))
    steps.do(
        "INSERT INTO gate (kind, name, breaker, breaker_until) VALUES ('destination', 'strict', 'open', '2000-01-01')"
    )
    steps.database._thread.hasty_until = float("inf")
    monotonic = Monotonic()
    steps.database.back_offs = BackOffs(monotonic)
    left = steps.hear_of_left()
    with locked_by_a_person(steps.database.engine, "SELECT name FROM gate FOR UPDATE"):
        for _ in range(2):
            probed = claim.claim_probe(steps.database, "r1", "strict", [("destination", "strict")], policies=POLICIES)
            assert probed == []
            monotonic.seconds += 1
        assert [each.seq for each in steps.claim_due(10, "latest")] == [2]
    assert [(one.step, one.routes) for one in left if one.error] == [("claim", ["strict"])]


def test_the_wait_for_a_locked_row_grows_beyond_that_for_a_route_and_is_over_with_the_lock(steps: Steps) -> None:
    steps.receive(an_event(1))
    steps.database._thread.hasty_until = float("inf")  # so that each wait for a row is short
    monotonic = Monotonic()
    steps.database.back_offs = BackOffs(monotonic)
    left = steps.hear_of_left()
    with locked_by_a_person(steps.database.engine, "SELECT seq FROM open_delivery WHERE seq = 1 FOR UPDATE"):
        for _ in range(4):
            assert steps.sequence() == 0
            monotonic.seconds += left[-1].again_in + 0.01
    assert [round(one.again_in, 1) for one in left] == [0.1, 0.2, 0.4, 0.8]
    assert steps.sequence() == 1
    assert steps.database.back_offs.of("sequence", even_late=True) == set()


def test_of_a_route_with_many_locked_rows_none_is_waited_for_once_one_was(steps: Steps) -> None:
    steps.receive(*(an_event(n, f"u{n}", routes=["latest"]) for n in range(1, 65)), an_event(100))
    steps.database._thread.hasty_until = float("inf")
    with (
        locked_by_a_person(steps.database.engine, "SELECT seq FROM open_delivery WHERE route = 'latest' FOR UPDATE"),
        counted_statements() as seen,
    ):
        assert steps.sequence() == 1
    assert sum("SET LOCAL lock_timeout" in statement for statement in seen) < 20
    assert len(steps.database.arrivals.rows) == 64


def test_deliveries_that_somebody_has_locked_hide_none_of_another_route(steps: Steps) -> None:
    steps.receive(*(an_event(n, f"u{n}", routes=["latest"]) for n in range(1, 5)), an_event(5, "u5"))
    steps.database._thread.hasty_until = float("inf")  # so that each wait for a row is short
    with locked_by_a_person(steps.database.engine, "SELECT seq FROM open_delivery WHERE route = 'latest' FOR UPDATE"):
        assert [steps.sequence(batch=2) for _ in range(2)] == [1, 0], "the first look was full, so another followed"
        assert (5, "strict", State.READY) in steps.states()
    steps.try_again()
    assert [steps.sequence(batch=2) for _ in range(2)] == [4, 0]


def test_leases_that_somebody_has_locked_hide_no_others(steps: Steps, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reap, "BATCH", 2)
    steps.arrive(*(an_event(n, f"u{n}") for n in range(1, 4)))
    steps.claim_due()
    steps.do("UPDATE open_delivery SET lease_until = '2000-01-01'")
    with locked_by_a_person(steps.database.engine, "SELECT seq FROM open_delivery WHERE seq < 3 FOR UPDATE"):
        assert [seq for seq, _, _ in steps.reap()] == [3]
    assert [seq for seq, _, _ in steps.reap()] == [1, 2]


@pytest.mark.parametrize("route", ["latest", "strict"])
def test_outcomes_of_locked_lanes_are_left_and_all_others_recorded(steps: Steps, route: str) -> None:
    """Five lanes whose delivery in flight is locked, and five where the one that waits for it is."""
    steps.arrive(*(an_event(n, f"u{n}", routes=[route]) for n in range(1, 31)))
    claimed = steps.claim_due()
    steps.arrive(*(an_event(n, f"u{n - 100}", routes=[route]) for n in range(101, 111)))
    steps.database._thread.hasty_until = float("inf")  # so that what is locked is seen at once
    left, locked = steps.hear_of_left(), "SELECT seq FROM open_delivery WHERE seq <= 5 OR seq > 35 FOR UPDATE"
    with (
        locked_by_a_person(steps.database.engine, locked),
        counted_statements() as seen,
    ):
        recorded = steps.record_all(claimed)
        assert {one.delivery.seq for one in recorded} == {*range(11, 31)}
        unrecorded = [delivery for delivery in claimed if delivery.seq <= 10]
        assert steps.record_all(unrecorded) == [], "none is tried again at once"
        steps.try_again()
        assert steps.record_all(unrecorded) == []
    assert sum("FOR UPDATE OF l" in statement for statement in seen) == 3
    assert len(left[0].routes) == 1
    steps.try_again()
    assert {one.fact is not None for one in steps.record_all(unrecorded)} == {True}
    assert steps.states() == [(n, route, State.READY) for n in range(31, 41)]
