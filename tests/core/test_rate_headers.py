"""Rate limits in the headers of an answer: read where they are numbers, and ignored where a downstream writes nonsense."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.http.answer import LONGEST_SECONDS, rate_hold

NOW = datetime(2026, 1, 1, tzinfo=UTC)
EPOCH = int(NOW.timestamp())
USED_UP = {"X-RateLimit-Remaining": "0"}


def seconds(headers: Mapping[str, str], status: int = 200) -> float | None:
    hold = rate_hold(headers, status, NOW)
    return None if hold is None else hold.seconds


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ({"X-RateLimit-Reset": str(EPOCH + 90)}, 90),
        ({"X-RateLimit-Reset": str((EPOCH + 90) * 1000)}, 90),
        ({"X-RateLimit-Reset": "30"}, 30),
        ({"X-RateLimit-Reset": " 1.5 "}, 1.5),
        ({"RateLimit-Reset": "7"}, 7),
        ({"X-RateLimit-Reset-After": "0.25"}, 0.25),
        ({"X-Rate-Limit-Remaining": "0", "X-Rate-Limit-Reset": str(EPOCH + 5), "X-RateLimit-Remaining": "9"}, 5),
        (
            {
                "X-RateLimit-Remaining": "0",
                "X-RateLimit-Reset": str(EPOCH + 90),
                "Date": "Thu, 01 Jan 2026 00:01:00 GMT",
            },
            30,
        ),
        ({"X-RateLimit-Remaining": "1", "X-RateLimit-Reset": "30"}, None),
        ({"X-RateLimit-Remaining": "-1", "X-RateLimit-Reset": "30"}, None),
        ({"X-RateLimit-Reset": str(EPOCH - 1)}, None),
        ({"X-RateLimit-Reset": "-5"}, None),
        ({"X-RateLimit-Reset": "soon"}, None),
        ({"X-RateLimit-Reset": "NaN"}, None),
        ({"X-RateLimit-Reset": "1e9"}, None),
        ({"X-RateLimit-Reset": "9" * 10_000}, None),
        ({"X-RateLimit-Reset": "253402300799"}, None),  # year 9999 in seconds is 1978 in milliseconds
        ({"X-RateLimit-Reset": "99999999999"}, LONGEST_SECONDS),  # year 5138
        ({"X-RateLimit-Reset": "999999999999999"}, LONGEST_SECONDS),
        ({}, None),
    ],
)
def test_a_limit_that_is_used_up_holds_until_its_reset(headers: dict[str, str], expected: float | None) -> None:
    assert seconds({**USED_UP, **headers}) == expected


NO_LIMIT = {202, 301, 400, 404, 500, 503}


@pytest.mark.parametrize("status", [200, 201, 202, 204, 301, 400, 403, 404, 429, 500, 503])
def test_retry_after_counts_where_it_means_a_limit(status: int) -> None:
    assert seconds({"Retry-After": "9"}, status) == (None if status in NO_LIMIT else 9)


NAMES = [
    "Retry-After", "X-RateLimit-Remaining", "X-RateLimit-Reset", "X-Rate-Limit-Remaining", "X-Rate-Limit-Reset",
    "RateLimit-Remaining", "RateLimit-Reset", "X-RateLimit-Reset-After", "Date",
]  # fmt: skip
VALUES = st.text() | st.integers().map(str) | st.sampled_from(["0", "Fri, 31 Dec 9999 23:59:59 -2359", "٣", "²"])


@given(st.dictionaries(st.sampled_from(NAMES), VALUES), st.integers(100, 599))
def test_whatever_a_downstream_writes_the_hold_is_none_or_bounded(headers: dict[str, str], status: int) -> None:
    found = seconds(headers, status)
    assert found is None or 0 < found <= LONGEST_SECONDS
    assert found is None or NOW + timedelta(seconds=found) < datetime(2026, 1, 2, 1, tzinfo=UTC)
