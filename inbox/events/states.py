"""States and limits of deliveries and commands, shared by the schema, its triggers and views, and the relay."""

from __future__ import annotations

import re
import string
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from enum import StrEnum
from typing import Any

from inbox.events.timestamps import as_time

LEASE_SECONDS = 15
"""Seconds for which a claim holds a delivery, unless it is renewed."""

GONE_SECONDS = LEASE_SECONDS
"""Seconds without a heartbeat after which a relay counts as gone and has lost its leases."""

CRASH_LOOP_SECONDS = 600
"""Seconds within which deaths of relays count as one crash loop."""
CRASH_LOOP_DEATHS = 3
"""Number of relays on one host, started within `CRASH_LOOP_SECONDS` and gone, that make a crash loop."""

SUSPECT_CRASHES = 2
"""Consecutive expired leases after which a delivery is suspected of killing its relay. Suspects run one at a time."""

RETENTION_FLOOR_DAYS = 7
"""Minimum age in days of inbox rows and attempts to delete. Keys recognise late duplicates, and `relay verify` takes a
gap in younger attempts for a loss.
"""


class State(StrEnum):
    """State of a delivery: `open_delivery.state`, or ENDED if it has no row there."""

    RECEIVED = "received"
    WAITING = "waiting"
    READY = "ready"
    IN_FLIGHT = "in_flight"
    BLOCKED = "blocked"
    DEAD = "dead"
    ENDED = "ended"


OPEN_STATES = tuple(state for state in State if state is not State.ENDED)
LOGGED_STATES = (State.RECEIVED, State.READY, State.BLOCKED, State.DEAD, State.ENDED)
"""States that facts lead to. The first two are open: scheduling determines the state until the next fact."""
HEADS = (State.READY, State.IN_FLIGHT, State.BLOCKED)
"""States of a lane's head. The database refuses a second head in a lane."""

ENDINGS = ("delivered", "unchanged", "superseded", "skipped", "cancelled", "corrected")
"""Kinds of facts that end a delivery. Listings show them as its state."""

UNROUTED = "unrouted"
RETRYING = "retrying"
"""State shown instead of `ready` for a delivery that waits for its next attempt after a failure."""

OPEN = "open"
"""State that filters accept for a delivery that has neither ended nor died."""

LISTED_STATES = (*(state.value for state in OPEN_STATES), *ENDINGS, UNROUTED)
"""Every value of `delivery.state`: open states, last facts of ended deliveries, and unrouted."""

THROUGHPUT_KINDS = ("source", "route", "destination")
"""Every value of `throughput_minute.kind`."""


def list_stored_states(state: str) -> Sequence[str]:
    """Return the values of `delivery.state` that a filter's state means."""
    return tuple(each.value for each in OPEN_STATES if each not in DEAD_STATES) if state == OPEN else (state,)


def is_retrying(state: str, attempts: int, due_at: datetime | None, now: datetime) -> bool:
    """Return whether a delivery waits for its next attempt after a failure."""
    return state == State.READY and attempts > 0 and due_at is not None and due_at > now


# --- Commands of operators: their kinds, states and limits.


SAYS_NOTHING = f" \t\n\r{string.punctuation}…"
"""Characters that alone give no reason, such as the `--reason '…'` of pasted hints."""


def says_why(reason: str | None) -> bool:
    """Return whether a reason has a letter or digit of any script."""
    return bool(reason and reason.strip(SAYS_NOTHING))


_ESCAPED = re.sub(r"([]^\\-])", r"\\\1", SAYS_NOTHING)  # not `re.escape`: ECMA-262 lacks its other escapes
SAYS_WHY_PATTERN = "[^\\x00" + _ESCAPED + "]"
"""The same rule for JSON Schema: a reason has at least one character that this pattern matches."""


MOST_SEQS = 200
"""Maximum number of events or deliveries that one selection may name."""

DEAD_STATES = ("dead", "blocked")
CANCELLED_BY_STATE = (*DEAD_STATES, "retrying", "ready", "waiting", "received")
"""States by which a cancel can select deliveries; `retrying`: ready, and due later."""
REPLAYED_BY_STATE = (*DEAD_STATES, *(ending for ending in ENDINGS if ending != "superseded"))
"""States by which a replay can select deliveries; ended ones only for chosen events or one entity."""


COMMAND_KINDS = (
    "replay", "retry", "cancel", "unblock", "pause", "resume", "sweep", "erase", "prune", "readmit", "stop", "continue",
)  # fmt: skip
"""Every value of `relay_command.kind` in this version; `relay.operations.table` explains each."""

MOST_REASON = 2000
"""Maximum characters of a reason. Each fact of a command repeats it, perhaps for every delivery."""

MOST_WHO = 2000
"""Maximum characters of the operator's name, which each fact repeats too."""

OPEN_COMMANDS = ("asked", "running")
COMMAND_STATES = (*OPEN_COMMANDS, "done", "failed", "refused", "cancelled")
"""Every value of `relay_command.state`."""


# --- Past states of deliveries, derived from their facts.
#
# The log lacks scheduling, so an open delivery is `open` or `retrying`: received, waiting, ready and in flight look alike.


OPEN = "open"
_OPEN = frozenset({State.RECEIVED, State.READY})
ERASED = "erased"
"""The kind of fact that does not change the state."""


def deliveries_at(routes: Iterable[str], facts: Sequence[Mapping[str, Any]], at: datetime) -> list[dict[str, Any]]:
    """Return an event's deliveries at `at`, ordered by route: state, attempts, next due time and last fact.

    Args:
        routes: the routes that the event took when it arrived.
        facts: rows of `delivery_log`, ordered by id; those after `at` are ignored.
        at: the moment, aware.
    """
    last: dict[str, Mapping[str, Any]] = dict.fromkeys(routes, _NO_FACT)
    for fact in facts:
        if fact["at"] <= at and fact["kind"] != ERASED:
            last[fact["route"]] = fact
    return [{"route": route, **_state_at(last[route], at)} for route in sorted(last)]


_NO_FACT: Mapping[str, Any] = {"kind": None, "state": State.RECEIVED, "attempt": 0, "detail": {}, "at": None}


def _state_at(last: Mapping[str, Any], at: datetime) -> dict[str, Any]:
    """Return the state that a delivery's last fact leads to, or the fact's kind if it ended."""
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
"""Parts of an event read by `inbox.db.reads.event` whose past values are not kept."""


def event_at(event: Mapping[str, Any], at: datetime) -> dict[str, Any]:
    """Return an event read by `inbox.db.reads.event` as it was at `at`: its facts until then, and the resulting states."""
    then = {name: value for name, value in event.items() if name not in _NOT_KEPT}
    facts = [fact for fact in event["facts"] if fact["at"] <= at]
    return {**then, "deliveries": deliveries_at(event["routes"], facts, at), "facts": facts}


def _due_at(detail: Mapping[str, Any]) -> datetime | None:
    try:
        return as_time(str(detail["due_at"]))
    except (KeyError, ValueError, OverflowError):
        return None
