"""Outcomes of attempts in the model."""

from __future__ import annotations

from datetime import datetime, timedelta

import msgspec

from relay.delivery.outcome import Call, Delivered, Delivery, ErrorClass, Failed, Outcome, Skipped
from tests.proofs.model.world import LONG_AGO


def _call(status: int | None) -> Call:
    return Call("forward", "POST", "https://example.com/", "unknown" if status is None else "answered", 1.0, status)


def _failed(error_class: ErrorClass, status: int | None) -> Failed:
    return Failed((_call(status),), error_class, f"answered {status}" if status else "no answer in time")


SUCCEEDED, FETCHED, FETCHED_AS_NEW = SUCCESSES = ("succeeded", "fetched", "fetched as new")
FAILED, TIMED_OUT, REJECTED, CONFLICT = FAILURES = ("failed", "timed out", "rejected", "conflict")
REFUSED, HOPELESS, CUT, SKIPPED = "refused", "hopeless", "cut", "skipped"

_OUTCOMES: dict[str, Outcome] = {
    SUCCEEDED: Delivered((_call(200),), "forwarded"),
    FETCHED: Delivered((_call(200),), "updated", LONG_AGO),
    FETCHED_AS_NEW: Delivered((_call(200),), "updated", LONG_AGO, LONG_AGO),
    FAILED: _failed("server_error", 503),
    TIMED_OUT: _failed("unknown", None),
    REJECTED: _failed("rejected", 422),
    CONFLICT: _failed("conflict", 409),
    REFUSED: _failed("auth", 401),
    HOPELESS: Failed((), "mapping", "email: no value"),
    CUT: Failed((), "lease_lost", "the lease ended"),
    SKIPPED: Skipped((), "nothing to do"),
}
"""By the names that a run is told with. The times are set by `outcome_of`."""


def outcome_of(name: str, delivery: Delivery, began_at: datetime) -> Outcome:
    """The outcome of an attempt at this delivery that began then.

    What is "fetched as new" says itself that it is as new as the event, whatever moment of its second that means.
    """
    outcome = _OUTCOMES[name]
    if not isinstance(outcome, Delivered) or outcome.fetch_began_at is None:
        return outcome
    modified = None if outcome.last_modified is None else delivery.occurred_at + timedelta(seconds=1)
    return msgspec.structs.replace(outcome, fetch_began_at=began_at, last_modified=modified)
