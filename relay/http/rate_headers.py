"""Rate limits that an answer's headers report: for how long the endpoint asks for no further call. Pure.

`X-RateLimit-Reset` is a time in seconds since 1970 (GitHub) or a number of seconds from now (others); `X-Rate-Limit-Reset`
is Okta's. `RateLimit` is the IETF's (draft-ietf-httpapi-ratelimit-headers): `"default";r=0;t=30` since version 08,
`limit=100, remaining=0, reset=30` before. A downstream may write anything there: all that is no number is ignored.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from datetime import datetime
from http import HTTPStatus

from relay.delivery.outcome import RateHold
from relay.http.answer import parse_http_date, parse_retry_after

LONGEST_SECONDS = 86400.0
"""Longest hold that is read; the endpoint's `longest_hold` cuts it further."""
_NUMBER = re.compile(r"[0-9]{1,15}(?:\.[0-9]{1,9})?")
_REMAINING = ("X-RateLimit-Remaining", "X-Rate-Limit-Remaining", "RateLimit-Remaining")
_RESETS = ("X-RateLimit-Reset", "X-Rate-Limit-Reset", "RateLimit-Reset", "X-RateLimit-Reset-After")
_FIRST_EPOCH = 10**9
"""A larger number of seconds is a time since 1970 (from 2001 on), a smaller one a duration (up to 31 years)."""
_FIRST_EPOCH_IN_MILLISECONDS = 10**11
_PARAMETER = re.compile(r"(?:^|[;,\s])(remaining|reset|r|t)=([0-9]{1,15})(?![0-9])")
_SHOPIFY = "X-Shopify-Shop-Api-Call-Limit"
_BUCKET = re.compile(r"([0-9]{1,9})/([0-9]{1,9})")
_BUCKET_LEAKS_SECONDS = 1.0
"""Shopify's bucket leaks two calls a second, so that a full one has room again soon."""
_RETRY_LATER = {HTTPStatus.FORBIDDEN, HTTPStatus.TOO_MANY_REQUESTS}
_LONGEST_HEADER = 1000


def rate_hold(headers: Mapping[str, str], status: int, now: datetime) -> RateHold | None:
    """Return for how long the endpoint asks for no further call; None when it doesn't.

    `Retry-After` counts with a 2xx, 403 (GitHub's secondary limits) and 429. With a 202 it means something else, and a 503
    may be about one entity alone: it delays that delivery, and the breaker judges the endpoint.
    """
    found = [
        hold
        for hold in (
            _by_retry_after(headers.get("Retry-After"), status, now),
            _by_remaining(headers, now),
            _by_ietf(headers.get("RateLimit")),
            _by_bucket(headers.get(_SHOPIFY)),
        )
        if hold is not None and hold.seconds > 0
    ]
    if not found:
        return None
    longest = max(found, key=lambda hold: hold.seconds)
    return RateHold(min(longest.seconds, LONGEST_SECONDS), longest.why)


def _by_retry_after(value: str | None, status: int, now: datetime) -> RateHold | None:
    is_success = status // 100 == 2 and status != HTTPStatus.ACCEPTED  # noqa: PLR2004  # a 202 says when to look for the result
    if value is None or len(value) > _LONGEST_HEADER or not (is_success or status in _RETRY_LATER):
        return None
    seconds = parse_retry_after(value, now)
    return None if seconds is None else RateHold(seconds, "Retry-After")


def _by_remaining(headers: Mapping[str, str], now: datetime) -> RateHold | None:
    name = next((name for name in _REMAINING if _number(headers.get(name)) == 0), None)
    if name is None:
        return None
    # The time of the answer, by the clock that the reset is by.
    at = parse_http_date(headers.get("Date")) or now
    seconds = (_seconds_until(_number(headers.get(reset)), at) for reset in _RESETS)
    return next((RateHold(each, f"{name} is 0") for each in seconds if each is not None), None)


def _seconds_until(reset: float | None, at: datetime) -> float | None:
    if reset is None or reset < _FIRST_EPOCH:
        return reset
    epoch = reset / 1000 if reset >= _FIRST_EPOCH_IN_MILLISECONDS else reset
    return epoch - at.timestamp()


def _by_ietf(value: str | None) -> RateHold | None:
    if value is None or len(value) > _LONGEST_HEADER:
        return None
    resets = [reset for remaining, reset in _policies(value.lower()) if remaining == 0 and reset is not None]
    return RateHold(float(max(resets)), "RateLimit has no call left") if resets else None


def _policies(value: str) -> Iterator[tuple[int | None, int | None]]:
    """Yield the remaining calls and the seconds until the reset, of each policy in a `RateLimit`."""
    parts = [value] if "remaining=" in value else value.split(",")
    for part in parts:
        found = {name[:1] if len(name) == 1 else name: int(number) for name, number in _PARAMETER.findall(part)}
        yield found.get("remaining", found.get("r")), found.get("reset", found.get("t"))


def _by_bucket(value: str | None) -> RateHold | None:
    bucket = None if value is None else _BUCKET.fullmatch(value.strip())
    if bucket is None or not 0 < int(bucket[2]) <= int(bucket[1]):
        return None
    return RateHold(_BUCKET_LEAKS_SECONDS, f"{_SHOPIFY} is used up")


def _number(value: str | None) -> float | None:
    if value is None or _NUMBER.fullmatch(value.strip()) is None:
        return None
    return float(value)
