from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inbox.errors import Unavailable
from inbox.http.limits import LEAST_BURST, MEMORY_FOR_BODY, SMALL_BODY, Bucket, Capacity, MemoryBudget, Reservation


def taken(bucket: Bucket, now: float) -> int:
    """Count the requests that pass at one moment."""
    number = 0
    while bucket.take(now) == 0:
        number += 1
    return number


def test_a_seconds_worth_may_come_at_once_and_then_as_many_as_the_rate_says() -> None:
    bucket = Bucket(10)
    assert taken(bucket, 0) == 10
    assert taken(bucket, 0.35) == 3
    assert taken(bucket, 1000) == 10


@given(rate=st.floats(0.001, 1e6), steps=st.lists(st.floats(0, 100), min_size=1, max_size=50))
def test_never_more_come_through_than_the_rate_and_one_burst(rate: float, steps: list[float]) -> None:
    bucket, now, through = Bucket(rate), 0.0, 0
    for step in steps:
        now += step
        through += bucket.take(now) == 0
    assert through <= max(LEAST_BURST, rate) + rate * now + 0.001


@given(rate=st.floats(0.001, 1e6), asked=st.lists(st.floats(0, 100), min_size=1, max_size=50))
def test_who_waits_as_long_as_it_is_told_gets_through(rate: float, asked: list[float]) -> None:
    bucket, now = Bucket(rate), 0.0
    for step in asked:
        now += step
        wait = bucket.take(now)
        if wait:
            now += wait * 1.000001 + 1e-9
            assert bucket.take(now) == 0


def test_as_many_may_be_open_as_there_may_be_and_no_more() -> None:
    capacity = Capacity(connections=2, requests=1, per_connection=1)
    capacity.check_connections(1)
    capacity.check_requests(0)
    for check, others in ((capacity.check_connections, 2), (capacity.check_requests, 1)):
        with pytest.raises(Unavailable, match="too many"):
            check(others)


def test_bodies_share_a_room_that_small_ones_take_nothing_of() -> None:
    room = MemoryBudget(100 * MEMORY_FOR_BODY)
    small, one, other = ([Reservation(room) for _ in range(number)] for number in (1000, 1, 1))
    for place in small:
        place.grow(SMALL_BODY)
    one[0].grow(SMALL_BODY + 60)
    one[0].grow(SMALL_BODY + 80)
    with pytest.raises(Unavailable):
        other[0].grow(SMALL_BODY + 21)
    other[0].grow(SMALL_BODY + 20)
    for place in (*small, *one, *one):
        place.release()
    with pytest.raises(Unavailable):
        one[0].grow(SMALL_BODY + 81)
    one[0].grow(SMALL_BODY + 80)
