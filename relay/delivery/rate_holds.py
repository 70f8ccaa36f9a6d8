"""Rate holds: gates that stay closed until the time that an endpoint's answers named. Pure.

A rate limit (`rate`) is the operator's own; a rate hold is asked for by the other side. It is a row of `gate`, so that it holds
back the calls of all relays, and ends by itself. It uses no attempt, and no breaker counts it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from datetime import datetime, timedelta

import msgspec

from relay.delivery.gates import LONGEST_HOLD, GateKey
from relay.delivery.outcome import Call, Outcome
from relay.delivery.policy import RoutePolicy, endpoint_of_call


class HoldRequest(msgspec.Struct, frozen=True):
    """A request of an endpoint to be left alone for some time."""

    key: GateKey
    lasts: timedelta
    why: str


def hold_requests(outcome: Outcome, policy: RoutePolicy) -> Iterator[HoldRequest]:
    """Yield what the calls of an attempt were asked for, no longer than an endpoint may ask for."""
    for call in outcome.calls:
        key = None if call.hold is None else endpoint_of_call(call, policy)
        request = None if key is None else hold_request(key, call)
        if request is not None:
            yield request


def hold_request(key: GateKey, call: Call) -> HoldRequest | None:
    """Return what a call of this endpoint was asked for, no longer than an endpoint may ask for; None when for nothing."""
    if call.hold is None or not call.hold.seconds > 0:  # so that NaN is none
        return None
    lasts = timedelta(seconds=min(call.hold.seconds, LONGEST_HOLD.total_seconds()))
    answered = "" if call.status is None else f" answered {call.status}:"
    return HoldRequest(key, lasts, f"{call.step}{answered} {call.hold.why}") if lasts else None


def asks_for_hold(outcome: Outcome) -> bool:
    """Return True when a call of the attempt was asked for a rate hold."""
    return any(call.hold is not None for call in outcome.calls)


def holds_until(
    requests: Iterable[HoldRequest], held: Mapping[GateKey, datetime | None], now: datetime
) -> dict[GateKey, tuple[datetime, str]]:
    """Return the new ends of holds, with the reason, where they are later than `held`."""
    later: dict[GateKey, tuple[datetime, str]] = {}
    for request in requests:
        until, known = now + request.lasts, held.get(request.key)
        before = later[request.key][0] if request.key in later else known
        if before is None or until > before:
            later[request.key] = (until, request.why)
    return later
