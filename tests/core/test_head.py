from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inbox.errors import HeadTooLarge, RequestError, TargetTooLong, Unreadable
from inbox.http import head

HOST = (b"host", b"example.com")


@pytest.mark.parametrize(
    "host",
    ["", "example.com", "example.com:8000", "EXAMPLE.com.", "127.0.0.1", "[::1]", "[2001:db8::1]:443", "my_host", "a:"],
)
def test_every_spelling_of_a_host_is_taken(host: str) -> None:
    head.check("1.1", b"/webhooks/a", [(b"host", host.encode())])


@pytest.mark.parametrize("host", ["a b", "a/b", "a@b", "a:b", "a:123456", "[::1", "::1", "\xff", "a?b", "a#b", "[]"])
def test_what_is_no_host_is_refused(host: str) -> None:
    with pytest.raises(Unreadable):
        head.check("1.1", b"/", [(b"host", host.encode("latin-1"))])


@pytest.mark.parametrize("target", [b"http://example.com/a", b"HTTPS://EXAMPLE.COM/", b"/", b"/a?b=c", b"/a//b"])
def test_a_path_or_the_url_of_the_same_host_is_taken(target: bytes) -> None:
    head.check("1.1", target, [HOST])


@pytest.mark.parametrize(
    "target",
    [
        b"*",
        b"//a",
        b"a",
        b"http://other/a",
        b"http://example.com",
        b"http://a@example.com/",
        b"ftp://example.com/",
        b"/#",
    ],
)
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
    assert isinstance(head.unfinished(b"/" * (head.LONGEST_TARGET + 1)), TargetTooLong)
    assert isinstance(head.unfinished(b"/"), HeadTooLarge)
