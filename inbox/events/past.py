"""States of deliveries at an earlier time, from their facts alone. Pure.

The log has no scheduling, so an open delivery is `open`, or `retrying`: received, waiting, ready and in flight look alike.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any

from inbox.events.states import RETRYING, State
from inbox.events.timestamps import as_time

OPEN = "open"
_OPEN = frozenset({State.RECEIVED, State.READY})
ERASED = "erased"
"""The kind of fact that changes no state."""


def deliveries_at(routes: Iterable[str], facts: Sequence[Mapping[str, Any]], at: datetime) -> list[dict[str, Any]]:
    """Return the deliveries of an event at `at`, ordered by route: state, attempts, the next due time and the last fact.

    Args:
        routes: the routes that the event took when it arrived.
        facts: rows of `delivery_log`, in the order of their ids; later ones than `at` are passed over.
        at: the moment, aware.
    """
    last: dict[str, Mapping[str, Any]] = dict.fromkeys(routes, _NO_FACT)
    for fact in facts:
        if fact["at"] <= at and fact["kind"] != ERASED:
            last[fact["route"]] = fact
    return [{"route": route, **_state_at(last[route], at)} for route in sorted(last)]


_NO_FACT: Mapping[str, Any] = {"kind": None, "state": State.RECEIVED, "attempt": 0, "detail": {}, "at": None}


def _state_at(last: Mapping[str, Any], at: datetime) -> dict[str, Any]:
    """Return the state that a delivery's last fact leads to; of one that has ended, its kind."""
    state = last["kind"] if last["state"] == State.ENDED else OPEN if last["state"] in _OPEN else last["state"]
    due_at = _due_at(last["detail"]) if state == OPEN else None
    if state == OPEN and last["attempt"] > 0 and due_at is not None and due_at > at:
        state = RETRYING
    return {
        "state": state,
        "attempts": last["attempt"],
        "due_at": due_at,
        "last_fact": last["kind"],
        "last_fact_at": last["at"],
    }


_NOT_KEPT = ("duplicates", "lanes", "gates", "relays", "previous_seq", "next_seq")
"""Parts of an event as `inbox.db.reads.event` reads it whose earlier values are not kept."""


def event_at(event: Mapping[str, Any], at: datetime) -> dict[str, Any]:
    """Return an event, as `inbox.db.reads.event` reads it, as it was at `at`: its facts until then, and what they lead to."""
    then = {name: value for name, value in event.items() if name not in _NOT_KEPT}
    facts = [fact for fact in event["facts"] if fact["at"] <= at]
    return {**then, "deliveries": deliveries_at(event["routes"], facts, at), "facts": facts}


def _due_at(detail: Mapping[str, Any]) -> datetime | None:
    try:
        return as_time(str(detail["due_at"]))
    except (KeyError, ValueError, OverflowError):
        return None
