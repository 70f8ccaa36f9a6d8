"""States of deliveries at an earlier time, from their facts alone. Pure.

The log has no scheduling, so an open delivery is `open`, or `retrying`: received, waiting, ready and in flight look alike.
`relay.delivery.lifecycle` has the whole fold; the last fact is enough for the state that it leads to.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any

import msgspec

from inbox.events.states import RETRYING, State
from inbox.events.timestamps import as_time

OPEN = "open"
ENDED = State.ENDED.value
UNKNOWN = "unknown"
"""After a fact of a kind that only a newer version knows."""
ERASED = "erased"
"""The kind of fact that changes no state."""

_AFTER: Mapping[str, str] = {
    **{kind: kind for kind in ("delivered", "unchanged", "superseded", "skipped", "cancelled")},
    **dict.fromkeys(("attempt_failed", "abandoned", "took_over", "rescheduled", "replayed", "rearmed"), OPEN),
    **dict.fromkeys(("dead", "unblocked"), State.DEAD.value),
}


class LastFact(msgspec.Struct, frozen=True):
    """The last fact of a delivery that a moment knows, erasures apart."""

    kind: str
    attempt: int
    detail: Mapping[str, Any]
    at: datetime | None = None


class PastState(msgspec.Struct, frozen=True):
    """A delivery at a moment."""

    state: str
    """open, retrying, blocked, dead, unknown, or the fact that had ended it."""
    attempts: int = 0
    due_at: datetime | None = None
    """The earliest next attempt, where a failure had set one; UTC."""
    last_fact: str | None = None
    last_fact_at: datetime | None = None


def state_at(last: LastFact | None, at: datetime) -> PastState:
    """Return the state at `at` that a delivery's last fact until then leads to; None: it had no fact yet."""
    if last is None:
        return PastState(OPEN)
    state = _state_after(last)
    due_at = _due_at(last.detail) if state == OPEN else None
    if state == OPEN and last.attempt > 0 and due_at is not None and due_at > at:
        state = RETRYING
    return PastState(state, last.attempt, due_at, last.kind, last.at)


def deliveries_at(routes: Iterable[str], facts: Sequence[Mapping[str, Any]], at: datetime) -> list[dict[str, Any]]:
    """Return the deliveries of an event at `at`, ordered by route.

    Args:
        routes: the routes that the event took when it arrived.
        facts: rows of `delivery_log`, in the order of their ids; later ones than `at` are passed over.
        at: the moment, aware.
    """
    last: dict[str, LastFact | None] = dict.fromkeys(routes)
    for fact in facts:
        if fact["at"] <= at and fact["kind"] != ERASED:
            last[fact["route"]] = LastFact(fact["kind"], fact["attempt"], fact["detail"], fact["at"])
    return [{"route": route, **msgspec.structs.asdict(state_at(last[route], at))} for route in sorted(last)]


_NOT_KEPT = ("duplicates", "lanes", "gates", "relays", "previous_seq", "next_seq")
"""Parts of an event as `inbox.db.reads.event` reads it whose earlier values are not kept."""


def event_at(event: Mapping[str, Any], at: datetime) -> dict[str, Any]:
    """Return an event, as `inbox.db.reads.event` reads it, as it was at `at`: its facts until then, and what they lead to."""
    then = {name: value for name, value in event.items() if name not in _NOT_KEPT}
    facts = [fact for fact in event["facts"] if fact["at"] <= at]
    return {**then, "deliveries": deliveries_at(event["routes"], facts, at), "facts": facts}


def _state_after(last: LastFact) -> str:
    if last.kind == "dead" and last.detail.get("blocks_lane") and last.detail.get("counted", True):
        return State.BLOCKED.value
    if last.kind == "corrected":
        state = str(last.detail.get("state", UNKNOWN))
        return last.kind if state == ENDED else state
    return _AFTER.get(last.kind, UNKNOWN)


def _due_at(detail: Mapping[str, Any]) -> datetime | None:
    try:
        return as_time(str(detail["due_at"]))
    except (KeyError, ValueError, OverflowError):
        return None
