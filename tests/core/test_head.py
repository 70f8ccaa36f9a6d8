"""The door: heads, limits, and the answers to senders whose requests are not taken in."""

from __future__ import annotations

from types import SimpleNamespace
from typing import cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inbox.errors import HeadTooLarge, RequestError, TargetTooLong, TooMany, Unavailable, Unreadable
from inbox.http import head
from inbox.http.limits import LEAST_BURST, MEMORY_FOR_BODY, SMALL_BODY, Bucket, MemoryBudget, Reservation
from inbox.receiver.webhook import SourceEndpoint, enforce_rate_limit

# --- test_head


HOST = (b"host", b"example.com")


@pytest.mark.parametrize(
    "host",
    ["", "example.com", "example.com:8000", "EXAMPLE.com.", "127.0.0.1", "[::1]", "[2001:db8::1]:443", "my_host", "a:"],
)
def test_every_spelling_of_a_host_is_taken(host: str) -> None:
    head.check("1.1", b"/webhooks/a", [(b"host", host.encode())])


@pytest.mark.parametrize("host", ["a b", "a/b", "a@b", "a:b", "a:123456", "[::1", "::1", "\xff", "a?b", "a#b", "[]"])
def test_anything_but_a_host_is_refused(host: str) -> None:
    with pytest.raises(Unreadable):
        head.check("1.1", b"/", [(b"host", host.encode("latin-1"))])


@pytest.mark.parametrize("target", [b"http://example.com/a", b"HTTPS://EXAMPLE.COM/", b"/", b"/a?b=c", b"/a//b"])
def test_a_path_or_the_url_of_the_same_host_is_taken(target: bytes) -> None:
    head.check("1.1", target, [HOST])


@pytest.mark.parametrize(
    "target",
    [
        b"*", b"//a", b"a", b"http://other/a", b"http://example.com", b"http://a@example.com/",
        b"ftp://example.com/", b"/#",
    ],
)  # fmt: skip
def test_any_other_target_is_refused(target: bytes) -> None:
    with pytest.raises(Unreadable):
        head.check("1.1", target, [HOST])


FIELDS = [HOST, (b"content-type", b"a"), (b"transfer-encoding", b"chunked"), (b"expect", b"100-continue")]


@pytest.mark.parametrize("twice", FIELDS, ids=lambda field: field[0])
def test_a_field_that_may_come_once_is_refused_twice(twice: tuple[bytes, bytes]) -> None:
    head.check("1.1", b"/", FIELDS)
    with pytest.raises(RequestError):
        head.check("1.1", b"/", [*FIELDS, twice])


@given(st.lists(st.integers(0, 2 * head.LONGEST_FIELD), max_size=2 * head.MOST_FIELDS))
def test_a_head_is_taken_when_its_fields_are_within_every_limit_and_only_then(values: list[int]) -> None:
    fields = [HOST, *((b"x", b"a" * size) for size in values)]
    sizes = [len(name) + len(value) + 4 for name, value in fields]
    within = len(sizes) <= head.MOST_FIELDS and max(sizes) <= head.LONGEST_FIELD and sum(sizes) <= head.LARGEST_HEAD
    try:
        head.check("1.1", b"/", fields)
        head.check_size(b"/", fields)
    except HeadTooLarge:
        assert not within
    else:
        assert within


def test_a_head_that_does_not_end_is_told_by_what_is_too_long_in_it() -> None:
    assert isinstance(head.make_unfinished_error(b"/" * (head.LONGEST_TARGET + 1)), TargetTooLong)
    assert isinstance(head.make_unfinished_error(b"/"), HeadTooLarge)


# --- test_limits


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
def test_a_sender_that_waits_as_long_as_it_is_told_gets_through(rate: float, asked: list[float]) -> None:
    bucket, now = Bucket(rate), 0.0
    for step in asked:
        now += step
        wait = bucket.take(now)
        if wait:
            now += wait * 1.000001 + 1e-9
            assert bucket.take(now) == 0


def test_a_sender_beyond_its_rate_is_told_to_wait_for_a_second_at_least(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("inbox.receiver.webhook.time", SimpleNamespace(monotonic=lambda: 0.0))
    endpoint = cast("SourceEndpoint", SimpleNamespace(bucket=Bucket(3.0, burst=1)))
    enforce_rate_limit(endpoint)
    with pytest.raises(TooMany) as refused:
        enforce_rate_limit(endpoint)
    assert refused.value.retry_after_seconds == 1


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
