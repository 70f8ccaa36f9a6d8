"""Answers: the part that is read, and the part that may be logged."""

from __future__ import annotations

from contextlib import ExitStack

import pytest

from inbox.config.endpoint import ApiBearer
from inbox.config.types import Secret
from relay.http.answer import parse_retry_after
from relay.http.client import MAX_ANSWER
from tests.destinations.calling import Called
from tests.destinations.scripted import answer
from tests.helpers.delivering import NOW


def test_an_answer_of_exactly_64_kib_is_whole(stack: ExitStack) -> None:
    result = Called(stack, answer(200, b"x" * MAX_ANSWER))()
    assert (result.whole, len(result.body)) == (True, MAX_ANSWER)


def test_an_encoded_answer_is_not_decoded(stack: ExitStack) -> None:
    bomb = b"\x1f\x8b\x08not really gzip"
    call = Called(stack, answer(200, bomb, content_encoding="gzip"))
    assert call().body == bomb
    assert call.server.seen[0].headers["accept-encoding"] == "identity"


def test_cookies_are_not_kept(stack: ExitStack) -> None:
    call = Called(stack, answer(200, b"", set_cookie="session=1; Path=/"))
    call()
    call()
    assert "cookie" not in call.server.seen[1].headers


def test_an_excerpt_shows_no_secret_and_nothing_that_steers_a_terminal(stack: ExitStack) -> None:
    body = b'{"error": "bad key s3cr3t-key", "access_token": "abc\\"d", "n": 1}\x00\x1b[2J'
    auth = ApiBearer(Secret("s3cr3t-key"))
    excerpt = Called(stack, answer(400, body), auth=auth)().call.excerpt or ""
    assert excerpt == '{"error": "bad key ***", "access_token": ***, "n": 1}\ufffd\ufffd[2J'


def test_an_excerpt_is_at_most_4_kib_and_never_of_a_success(stack: ExitStack) -> None:
    call = Called(stack, answer(500, "é".encode() * 9000), answer(200, b"fine"))
    excerpt = call().call.excerpt or ""
    assert len(excerpt.encode()) <= 4096
    assert set(excerpt) == {"é"}
    assert call().call.excerpt is None


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("120", 120.0), ("1.5", 1.5), ("0", 0.0), (" 7 ", 7.0), ("Thu, 01 Jan 2026 00:01:30 GMT", 90.0),
        ("Thu, 01 Jan 2026 00:01:30 -0000", 90.0), ("Wed, 31 Dec 2025 23:59:59 GMT", None),
        ("-5", None), ("soon", None),
        ("", None), ("١٢", None), ("1e9", None), ("99999999999999999999", None), ("nan", None), (None, None),
        ("Thu, 99 Foo 2026 00:01:30 GMT", None),
    ],
)  # fmt: skip
def test_retry_after_is_seconds_or_a_date_and_rubbish_is_ignored(value: str | None, seconds: float | None) -> None:
    assert parse_retry_after(value, NOW) == seconds


def test_retry_after_is_read_from_a_failure(stack: ExitStack) -> None:
    assert Called(stack, answer(503, b"", retry_after="2.5"))().retry_after == 2.5
