"""A client whose endpoint asked for no further call makes none, and tells for how long."""

from __future__ import annotations

from contextlib import ExitStack
from datetime import timedelta

import msgspec
import pytest

from inbox.clock import steady
from relay.delivery.outcome import RateHold
from relay.http import client
from tests.destinations.calling import GET, POST, Called
from tests.helpers.delivering import NOW
from tests.helpers.scripted import answer, raw

USED_UP = {"X_RateLimit_Remaining": "0", "X_RateLimit_Reset": str(int(NOW.timestamp()) + 900)}


def test_a_403_with_nothing_left_is_throttling_and_not_a_matter_of_credentials(stack: ExitStack) -> None:
    result = Called(stack, answer(403, b"API rate limit exceeded", **USED_UP))()
    assert result.error_class == "throttled"
    assert result.call.hold == RateHold(900.0, "X-RateLimit-Remaining is 0")


def test_any_other_403_is_a_matter_of_credentials(stack: ExitStack) -> None:
    result = Called(stack, answer(403, b"", x_ratelimit_remaining="7", x_ratelimit_reset="900"))()
    assert (result.error_class, result.call.hold) == ("auth", None)


@pytest.mark.parametrize("status", [200, 204, 403, 429])
def test_after_an_answer_that_asks_for_it_no_call_is_made_for_a_while(
    stack: ExitStack, status: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    call = Called(stack, answer(status, b"", retry_after="60"), answer())
    assert call().call.hold == RateHold(60.0, "Retry-After")
    held = call()
    assert (held.error_class, held.call.sent) == ("throttled", "not_sent")
    assert held.call.error == "not made: an answer before asked for no further call for now"
    assert held.retry_after is not None
    assert 0 < held.retry_after <= client.HELD_HERE_SECONDS
    assert len(call.server.seen) == 1
    now = steady()
    monkeypatch.setattr(client, "steady", lambda: now + client.HELD_HERE_SECONDS)
    assert call().error_class is None, "the gate, which all relays read, goes on holding"


def test_a_hold_lasts_an_hour_at_most(stack: ExitStack) -> None:
    call = Called(stack, answer(200, b"", retry_after="7200"), answer())
    assert call().call.hold == RateHold(3600.0, "Retry-After")
    call()
    assert len(call.server.seen) == 1


@pytest.mark.parametrize(
    "lies",
    [b"Retry-After: -1", b"Retry-After: " + b"9" * 10_000, b"Retry-After: Fri, 31 Dec 9999 23:59:59 -2359", b"Retry-After: \xff",
     b"X-RateLimit-Remaining: 0\r\nX-RateLimit-Reset: -253402300799", b"X-RateLimit-Remaining: 0\r\nX-RateLimit-Reset: \xb2"],
)  # fmt: skip
def test_a_downstream_that_lies_stops_no_call(stack: ExitStack, lies: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "LONGEST_HOLD", timedelta(milliseconds=1))
    call = Called(stack, raw(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n" + lies + b"\r\n\r\n"))
    for _ in range(3):
        first = call()
        assert first.error_class in {None, "throttled"}
        if first.call.hold is not None:
            assert first.call.hold.seconds <= 0.001


@pytest.mark.parametrize(("status", "calls"), [(200, 2), (403, 1), (429, 1)])
def test_an_attempt_that_has_begun_goes_on_until_it_is_refused(stack: ExitStack, status: int, calls: int) -> None:
    call = Called(stack, answer(status, b"", retry_after="60"), answer())
    call()
    call(msgspec.structs.replace(GET, goes_on=True))
    assert len(call.server.seen) == calls


def test_one_endpoint_that_is_held_holds_no_other(stack: ExitStack) -> None:
    held, other = Called(stack, answer(429, b"", retry_after="60")), Called(stack, answer())
    assert held(POST).error_class == held(GET).error_class == "throttled"
    assert other().error_class is None
