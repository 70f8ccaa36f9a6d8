"""Answers of HTTP calls: their error classes and what they ask of the caller. Pure."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from http import HTTPStatus

import msgspec

from relay.delivery.outcome import Call, ErrorClass, Failed
from relay.http.redactor import Redactor

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
"""Most characters of an error's text from an answer: the excerpt has more."""
_LONGEST_DATE = 100
_SECONDS = re.compile(r"\d{1,12}(?:\.\d{1,9})?", re.ASCII)
ABSENT: frozenset[ErrorClass] = frozenset({"not_found", "gone"})
"""Answers that say that the resource does not exist."""


class Answer(msgspec.Struct, frozen=True):
    """The result of a call: its log entry, and the parts that the next step needs."""

    call: Call
    body: bytes = b""
    """At most 64 KiB plus a byte."""
    whole: bool = True
    """True when `body` is complete."""
    error_class: ErrorClass | None = None
    """Empty for a success (2xx)."""
    retry_after: float | None = None
    etag: str | None = None
    link: str | None = None
    """Its `Link` headers, joined by commas."""
    redactor: Redactor | None = None
    """Masks the endpoint's secrets in the body of a success."""

    def reporting(self, error_class: ErrorClass, text: str) -> Answer:
        """Return this answer as a failure: with the status of a success, its body reports an error with this text."""
        if self.redactor is None:
            return msgspec.structs.replace(self, error_class=error_class)
        shown = self.redactor.excerpt(text.encode("utf-8", "replace")) or ""
        why = f"answered {self.call.status} with errors: {' '.join(shown.split())[:_LONGEST_ERROR]}"
        call = msgspec.structs.replace(self.call, error=why, excerpt=self.redactor.excerpt(self.body))
        return msgspec.structs.replace(self, call=call, error_class=error_class)

    def failed(self, calls: tuple[Call, ...]) -> Failed:
        """Return the failure of the attempt whose `calls` end with this one."""
        why = self.call.error or f"answered {self.call.status}{_phrase(self.call.status)}"
        return Failed(calls, self.error_class or "bad_answer", f"{self.call.step}: {why}", self.retry_after)


def _phrase(status: int | None) -> str:
    try:
        return f" {HTTPStatus(status or 0).phrase}"
    except ValueError:
        return ""


def class_of_status(status: int) -> ErrorClass | None:
    """Return the error class of a final status; None for a success."""
    if 200 <= status < 300:  # noqa: PLR2004  # RFC 9110 §15.3
        return None
    return BY_STATUS.get(status) or FAMILIES.get(status // 100, "bad_answer")


def parse_retry_after(value: str | None, now: datetime) -> float | None:
    """Return the seconds from `now`; None when the value is unreadable or past.

    The value is a number of seconds, which may have a fraction as in Svix, or an HTTP-date.
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
    """Parse an HTTP-date; None when it is unreadable."""
    if value is None or len(value) > _LONGEST_DATE:
        return None
    try:
        moment = parsedate_to_datetime(value.strip())
    except (ValueError, OverflowError):
        return None
    # "-0000": UTC, of unknown place (RFC 5322 §3.3)
    return moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)
