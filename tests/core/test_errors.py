"""Answers to senders whose requests are not taken in, in one table: what a sender and an operator are told of each."""

from __future__ import annotations

from collections.abc import Iterator

from inbox import errors
from inbox.errors import RequestError

ANSWERS = {
    "Unreadable": (400, "unreadable", "The request can't be read", None),
    "NotAuthenticated": (401, "not_authenticated", "Not authenticated", None),
    "TooSlow": (408, "too_slow", "The request took too long to arrive", None),
    "TooLarge": (413, "too_large", "The body is too large", None),
    "TargetTooLong": (414, "target_too_long", "The URL is too long", None),
    "UnsupportedType": (415, "unsupported_type", "Unsupported content type", None),
    "ExpectationFailed": (417, "expectation_failed", "The expectation can't be met", None),
    "InvalidEvent": (422, "invalid_event", "Not a valid event", None),
    "TooOld": (422, "too_old", "The event is too old", None),
    "TooMany": (429, "too_many", "Too many requests", 7),
    "HeadTooLarge": (431, "head_too_large", "The header fields are too large", None),
    "NotDelivered": (502, "not_delivered", "Stored, not delivered", None),
    "Unavailable": (503, "unavailable", "Not stored, send it again", 2),
    "StillOpen": (503, "still_open", "Stored, not delivered yet", 2),
}


def made(kind: type[RequestError] = RequestError) -> Iterator[RequestError]:
    """One of each kind that the receiver has."""
    for each in kind.__subclasses__():
        if each.__module__ == errors.__name__:
            yield errors.TooMany("why", retry_after_seconds=7) if each is errors.TooMany else each("why")
        yield from made(each)


def test_each_error_has_its_status_cause_and_title_and_says_when_to_come_again() -> None:
    told = {
        type(error).__name__: (error.status, error.cause, error.title, error.retry_after_seconds) for error in made()
    }
    assert told == ANSWERS


def test_every_cause_is_one_of_those_that_are_kept_and_counted() -> None:
    assert {cause for _, cause, _, _ in ANSWERS.values()} == errors.CAUSES
