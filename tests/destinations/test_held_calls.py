"""An answer tells for how long its endpoint asked for no further call."""

from __future__ import annotations

from contextlib import ExitStack

import pytest

from relay.delivery.outcome import RateHold
from tests.destinations.calling import Called
from tests.helpers.delivering import NOW
from tests.helpers.scripted import answer

USED_UP = {"X_RateLimit_Remaining": "0", "X_RateLimit_Reset": str(int(NOW.timestamp()) + 900)}


def test_a_403_with_nothing_left_is_throttling_and_not_a_matter_of_credentials(stack: ExitStack) -> None:
    result = Called(stack, answer(403, b"API rate limit exceeded", **USED_UP))()
    assert result.error_class == "throttled"
    assert result.call.hold == RateHold(900.0, "X-RateLimit-Remaining is 0")


def test_any_other_403_is_a_matter_of_credentials(stack: ExitStack) -> None:
    result = Called(stack, answer(403, b"", x_ratelimit_remaining="7", x_ratelimit_reset="900"))()
    assert (result.error_class, result.call.hold) == ("auth", None)


@pytest.mark.parametrize("status", [200, 204, 403, 429])
def test_an_answer_that_asks_for_no_further_call_says_so(stack: ExitStack, status: int) -> None:
    assert Called(stack, answer(status, b"", retry_after="60"))().call.hold == RateHold(60.0, "Retry-After")
