"""Sequence, claim and record, on both databases."""

from __future__ import annotations

from relay.store.database import Database
from relay.store.deliveries import claim_of
from relay.store.leases import give_back, renew
from relay.store.sequence import sequence
from tests.helpers.relaying import DONE, POLICIES, UNWELL, Steps, work_of
from tests.helpers.storing import an_event

LATEST = ["latest"]


def test_a_lane_that_fails_does_not_hold_up_another(steps: Steps) -> None:
    steps.arrive(an_event(1, "a"), an_event(2, "a"), an_event(3, "b"))
    first, other = steps.claim_due()
    steps.record([(first, UNWELL), (other, DONE)])
    assert steps.states() == [(1, "strict", "ready"), (2, "strict", "waiting")]
    assert steps.claim_due() == []


def test_what_arrives_on_a_route_of_another_configuration_is_left_to_a_relay_that_has_it(steps: Steps) -> None:
    """By another policy nothing of it would be dropped, and an older event would follow a newer one."""
    steps.receive(*(an_event(number, routes=LATEST) for number in (1, 2)), an_event(3))
    without = {"strict": POLICIES["strict"]}
    while sequence(work_of(steps.database, without)):
        sequence(work_of(steps.database, without, node="r2"))
    assert steps.states() == [(1, "latest", "received"), (2, "latest", "received"), (3, "strict", "ready")]
    steps.sequence()
    assert steps.states() == [(2, "latest", "ready"), (3, "strict", "ready")]


def test_in_latest_what_arrives_while_one_is_in_flight_waits(steps: Steps) -> None:
    steps.arrive(an_event(1, routes=LATEST))
    working = steps.claim("latest")
    steps.arrive(an_event(2, routes=LATEST), an_event(3, routes=LATEST))
    assert steps.states() == [(1, "latest", "in_flight"), (3, "latest", "waiting")]
    steps.record([(working, DONE)])
    assert steps.states() == [(3, "latest", "ready")]


def test_in_latest_a_newer_event_takes_over_a_retry_and_pulls_it_forward(steps: Steps) -> None:
    steps.arrive(an_event(1, routes=LATEST))
    for _ in range(3):
        steps.attempt(UNWELL, "latest")
        steps.advance(400)
    working = steps.claim("latest")
    steps.arrive(an_event(2, routes=LATEST))
    steps.record([(working, UNWELL)])
    assert steps.states() == [(2, "latest", "ready")]
    assert steps.kinds()[-2:] == [(1, "superseded"), (2, "took_over")]
    steps.advance(5.1)
    newer = steps.claim("latest")
    assert (newer.seq, newer.attempt) == (2, 5)


def test_a_renewed_lease_is_not_reaped(steps: Steps) -> None:
    steps.arrive(an_event(1))
    held = claim_of(steps.claim())
    steps.advance(10)
    assert renew(steps.database, [held]) == {held}
    steps.advance(10)
    assert steps.reap("r2") == []


def given_back(steps: Steps, arrived: int, meanwhile: int, route: str) -> None:
    """An event arrives and is claimed; another one arrives; the first is given back."""
    steps.arrive(an_event(arrived, routes=[route]))
    held = claim_of(steps.claim(route))
    steps.arrive(an_event(meanwhile, routes=[route]))
    assert give_back(steps.work, [held]) == ({held}, 1)


def test_an_older_event_that_came_meanwhile_goes_before_one_that_is_given_back(steps: Steps) -> None:
    """Giving back uses no attempt."""
    given_back(steps, 2, 1, "strict")
    assert steps.states() == [(1, "strict", "waiting"), (2, "strict", "ready")]
    assert steps.kinds() == []
    assert [(again.seq, again.attempt) for again in (steps.attempt(DONE), steps.attempt(DONE))] == [(2, 1), (1, 1)]


def test_an_older_event_goes_first_by_the_moving_clock_of_the_database_as_well(steps: Steps) -> None:
    steps.database = Database(steps.database.engine)
    given_back(steps, 2, 1, "strict")
    assert steps.states() == [(1, "strict", "waiting"), (2, "strict", "ready")]


def test_in_latest_one_that_is_given_back_is_folded_into_a_newer_one_that_waits(steps: Steps) -> None:
    given_back(steps, 1, 2, "latest")
    assert steps.states() == [(2, "latest", "ready")]
    assert steps.kinds() == [(1, "superseded")]


def test_an_older_claims_result_is_discarded_though_it_is_handed_in_with_the_present_ones(steps: Steps) -> None:
    steps.arrive(an_event(1))
    first = steps.attempt(UNWELL)
    steps.advance(10)
    recorded = steps.record([(first, UNWELL), (steps.claim(), DONE)])
    assert [result.fact is None for result in recorded] == [True, False]
    assert steps.kinds() == [(1, "attempt_failed"), (1, "delivered")]
