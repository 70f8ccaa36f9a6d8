"""Responses of HTTP calls: their error classes, rate limits, and excerpts without secrets. Pure."""

from __future__ import annotations

import base64
import re
from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from http import HTTPStatus

import msgspec

from relay.delivery.outcome import Call, ErrorClass, Failed, RateHold

BY_STATUS: dict[int, ErrorClass] = {
    401: "auth",
    403: "auth",
    404: "not_found",
    408: "throttled",
    409: "conflict",
    410: "gone",
    412: "conflict",
    425: "throttled",
    429: "throttled",
}
FAMILIES: dict[int, ErrorClass] = {3: "redirect", 4: "rejected", 5: "server_error"}
_LONGEST_ERROR = 300
"""Maximum characters of an error's text from a response; the excerpt has more."""
_LONGEST_DATE = 100
_SECONDS = re.compile(r"\d{1,12}(?:\.\d{1,9})?", re.ASCII)
ABSENT: frozenset[ErrorClass] = frozenset({"not_found", "gone"})
"""Classes of responses for a resource that does not exist."""


class CallResult(msgspec.Struct, frozen=True):
    """The result of a call: its log entry, and the parts of the response that the next step needs."""

    call: Call
    body: bytes = b""
    """At most 64 KiB and one byte."""
    whole: bool = True
    """True if `body` is complete."""
    error_class: ErrorClass | None = None
    """None for a success (2xx)."""
    retry_after: float | None = None
    etag: str | None = None
    link: str | None = None
    """The response's `Link` headers, joined by commas."""
    redactor: Redactor | None = None
    """Masks the endpoint's secrets in the bodies of request and response."""
    request: bytes = b""
    """The beginning of the body that was or may have been sent."""

    def reporting(self, error_class: ErrorClass, text: str) -> CallResult:
        """Return this success as a failure, because its body reports an error with this text."""
        if self.redactor is None:
            return msgspec.structs.replace(self, error_class=error_class)
        shown = self.redactor.excerpt(text.encode("utf-8", "replace")) or ""
        why = f"answered {self.call.status} with errors: {' '.join(shown.split())[:_LONGEST_ERROR]}"
        call = msgspec.structs.replace(self.call, error=why, excerpt=self.redactor.excerpt(self.body))
        return msgspec.structs.replace(self, call=call, error_class=error_class)

    def as_failed(self, calls: tuple[Call, ...]) -> Failed:
        """Return the failure of the attempt whose `calls` end with this one."""
        why = self.call.error or f"answered {self.call.status}{_phrase(self.call.status)}"
        if calls and self.request and self.redactor is not None:
            request = self.redactor.excerpt(self.request, REQUEST_BYTES)
            calls = (*calls[:-1], msgspec.structs.replace(calls[-1], request=request))
        return Failed(calls, self.error_class or "bad_answer", f"{self.call.step}: {why}", self.retry_after)


def _phrase(status: int | None) -> str:
    try:
        return f" {HTTPStatus(status or 0).phrase}"
    except ValueError:
        return ""


def classify_status(status: int) -> ErrorClass | None:
    """Return the error class of a final status; None for a success."""
    if 200 <= status < 300:  # noqa: PLR2004  # RFC 9110 §15.3
        return None
    return BY_STATUS.get(status) or FAMILIES.get(status // 100, "bad_answer")


def parse_retry_after(value: str | None, now: datetime) -> float | None:
    """Return the seconds from `now`; None if the value is malformed or past.

    The value is a number of seconds, with a fraction in responses from Svix, or an HTTP-date.
    """
    if value is None:
        return None
    text = value.strip()
    if _SECONDS.fullmatch(text):
        return float(text)
    moment = parse_http_date(text)
    seconds = 0.0 if moment is None else (moment - now).total_seconds()
    return seconds if seconds > 0 else None


def parse_http_date(value: str | None) -> datetime | None:
    """Parse an HTTP-date; None if it is malformed."""
    if value is None or len(value) > _LONGEST_DATE:
        return None
    try:
        moment = parsedate_to_datetime(value.strip())
    except (ValueError, OverflowError):
        return None
    # "-0000" is UTC from an unknown place (RFC 5322 §3.3)
    return moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)


# --- Masks secrets in the stored parts of calls and responses. Pure.


EXCERPT_BYTES, REQUEST_BYTES = 4096, 1024
SEARCHED = 64 * 1024
"""Bytes of a request that are searched for secrets. Searching a whole body may take a second."""
_SHORTEST_SECRET = 4
"""Length of the shortest masked secret. A shorter one would match everywhere, so masking it would hide nothing."""
_LOOKED_FOR = 64
"""Characters searched of a secret issued by another system. A search for 2,000, in all spellings, blocked all threads for 3 s."""
_UNPRINTABLE = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]")
"""Postgres can't store a NUL; the others control a terminal. The last two ranges change the text direction."""
_SENSITIVE = re.compile(
    r"""((?:token|passwd|password|pwd|secret|authorization|api[_-]?key|cookie|credential|signature)[\w-]{0,40}
        [\\"']{0,4}\s{0,8}[:=]\s{0,8})
        (?: "(?:[^"\\]|\\.)*"?                          # a JSON string, possibly truncated
          | \\"[^"]*"?                                  # a JSON string inside another
          | [\[{][^\]}]*[\]}]?                          # a list or an object of strings
          | (?:(?:bearer|basic)\s+)?[^\s,;&"'<>}\]]+    # a value of a form or a header
        )""",
    re.IGNORECASE | re.VERBOSE,
)
MASK = "***"


def name_only(pair: str) -> str:
    """Return the name of a query's pair without its value, which may be a secret."""
    name, equals, _ = pair.partition("=")
    return f"{name}=…" if equals else "…"


class Redactor:
    """Makes excerpts of requests and responses. It masks the endpoint's own secrets, and every value whose key names a secret."""

    def __init__(self, secrets: Iterable[str], issued: str = "") -> None:
        """Compile the patterns; `issued` is a secret of any length that another system issued."""
        self._secrets = frozenset(secrets)
        patterns: set[str] = set()
        for secret in self._secrets:
            patterns |= _patterns(secret)
        if len(issued) > _LOOKED_FOR:
            patterns |= _patterns(issued[:_LOOKED_FOR], and_on=_FURTHER if _QUOTES.isdisjoint(issued) else r"\S*")
        else:
            patterns |= _patterns(issued)
        longest_first = sorted(patterns, key=len, reverse=True)
        self._own = re.compile("|".join(longest_first)) if longest_first else None

    def with_secret(self, secret: str) -> Redactor:
        """Return a redactor that also masks this secret, which another system issued."""
        return Redactor(self._secrets, secret)

    def excerpt(self, body: bytes, most: int = EXCERPT_BYTES) -> str | None:
        """Return the beginning of `body`, at most `most` bytes of UTF-8; None if it is empty.

        The endpoint's own secrets are masked before the cut, so that no part of one remains at the end.
        """
        text = body.decode("utf-8", "replace")
        if self._own is not None:
            text = self._own.sub(MASK, text)
        text = _SENSITIVE.sub(rf"\1{MASK}", text[: 4 * most])
        text = _UNPRINTABLE.sub("\ufffd", text)
        return text.encode()[:most].decode("utf-8", "ignore") or None


_QUOTES = frozenset("\"'<>")
_FURTHER = r"[^\s\"'<>]*"
"""Matches the rest of a secret whose beginning was found, and possibly some text after it."""


def _patterns(secret: str, and_on: str = "") -> set[str]:
    """Return patterns for every encoding of a secret; `and_on` matches its rest."""
    if len(secret) < _SHORTEST_SECRET:
        return set()
    base64_end = and_on or "[A-Za-z0-9+/_-]?={0,2}"
    return {_spell(secret) + and_on, *(_spell(part) + base64_end for part in _encode_base64(secret))}


def _spell(secret: str) -> str:
    """Return a pattern for all spellings of a secret in JSON, URLs and HTML, including nested ones."""
    once = re.sub(r"\\+", r"\\", secret)  # a run of backslashes is matched as one, which avoids too many spellings
    return "".join(char if char.isascii() and char.isalnum() else _spell_char(char) for char in once)


def _spell_char(char: str) -> str:
    units = char.encode("utf-16-be").hex()
    escaped = r"\\{1,15}u".join(units[start : start + 4] for start in range(0, len(units), 4))
    plain = "|".join((f"u{escaped}", re.escape(char), *_ALIKE.get(char, ())))
    percent = "".join(f"%(?:25){{0,3}}{byte:02x}" for byte in char.encode())
    entity = f"&(?:amp;){{0,3}}(?:#0*{ord(char)}|#x0*{ord(char):x}|{_ENTITIES.get(char, 'none')});"
    if char == "\\":
        return f"(?i:{percent}|{entity}|{plain}){{1,60}}+"
    return rf"(?i:{percent}|{entity}|\\{{0,15}}(?:{plain}))"


def _encode_base64(secret: str) -> Iterator[str]:
    """Yield the base64 of a secret within any text, for each of the three offsets."""
    data = secret.encode()
    for before in range(3):
        whole = base64.b64encode(bytes(before) + data).decode()
        yield whole[(before * 8 + 5) // 6 : (before + len(data)) * 8 // 6]


_ALIKE = {" ": (r"\+",), "+": ("-",), "/": ("_",), "\t": ("t",)}
"""Spellings in forms, in base64 for URLs, and in JSON."""
_ENTITIES = {"&": "amp", "<": "lt", ">": "gt", '"': "quot", "'": "apos"}


# --- Rate limits in a response's headers: the endpoint asks for a pause. Pure.
#
# `X-RateLimit-Reset` is a time in seconds since 1970 (GitHub) or a number of seconds from now (others); `X-Rate-Limit-Reset`
# is Okta's. An endpoint may send anything there: values that are not numbers are ignored.


LONGEST_SECONDS = 86400.0
"""Longest hold; longer ones are shortened."""
_NUMBER = re.compile(r"[0-9]{1,15}(?:\.[0-9]{1,9})?")
_REMAINING = ("X-RateLimit-Remaining", "X-Rate-Limit-Remaining", "RateLimit-Remaining")
_RESETS = ("X-RateLimit-Reset", "X-Rate-Limit-Reset", "RateLimit-Reset", "X-RateLimit-Reset-After")
_FIRST_EPOCH = 10**9
"""A larger number of seconds is a time since 1970 (in 2001 or later), a smaller one a duration (up to 31 years)."""
_FIRST_EPOCH_IN_MILLISECONDS = 10**11
_RETRY_LATER = {HTTPStatus.FORBIDDEN, HTTPStatus.TOO_MANY_REQUESTS}


def read_rate_hold(headers: Mapping[str, str], status: int, now: datetime) -> RateHold | None:
    """Return the pause that the endpoint asks for; None without one.

    `Retry-After` counts with a 2xx, 403 (GitHub's secondary limits) and 429. With a 202 it means something else. A 503 may
    concern a single entity, so it delays only that delivery, and the breaker judges the endpoint.
    """
    asked = [(0.0, "")]
    is_success = status // 100 == 2 and status != HTTPStatus.ACCEPTED  # noqa: PLR2004  # in a 202, it is the time to poll for the result
    if is_success or status in _RETRY_LATER:
        asked.append((parse_retry_after(headers.get("Retry-After"), now) or 0.0, "Retry-After"))
    name = next((name for name in _REMAINING if _number(headers.get(name)) == 0), None)
    if name is not None:
        # The time of the response, by the same clock as the reset.
        at = parse_http_date(headers.get("Date")) or now
        resets = (_seconds_until(_number(headers.get(reset)), at) for reset in _RESETS)
        asked.append((next((each for each in resets if each is not None), 0.0), f"{name} is 0"))
    seconds, why = max(asked)
    return RateHold(min(seconds, LONGEST_SECONDS), why) if seconds > 0 else None


def _seconds_until(reset: float | None, at: datetime) -> float | None:
    if reset is None or reset < _FIRST_EPOCH:
        return reset
    epoch = reset / 1000 if reset >= _FIRST_EPOCH_IN_MILLISECONDS else reset
    return epoch - at.timestamp()


def _number(value: str | None) -> float | None:
    if value is None or _NUMBER.fullmatch(value.strip()) is None:
        return None
    return float(value)
