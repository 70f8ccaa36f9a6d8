"""States of a delivery, and figures of its life: the schema and its views share them with the relay."""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum

LEASE_SECONDS = 15
"""Time for which a claim holds a delivery, unless it is renewed."""

GONE_SECONDS = LEASE_SECONDS
"""Silence after which a relay is gone: it has lost all of its leases."""

CRASH_LOOP_SECONDS = 600
"""Time in which deaths of relays count as one crash loop."""
CRASH_LOOP_DEATHS = 3
"""Number of relays of one host, started within `CRASH_LOOP_SECONDS` and gone, that make a crash loop."""

SUSPECT_CRASHES = 2
"""Expired leases in a row after which a delivery is suspected of killing its relay. A relay works on one at a time."""

RETENTION_FLOOR_DAYS = 7
"""Least age of an inbox row, or of an attempt, that may be deleted. The row's key recognises late duplicates, and
`relay verify` takes a gap in younger attempts for a loss.
"""


class State(StrEnum):
    """State of a delivery: `open_delivery.state`, or ENDED when it has no row there."""

    RECEIVED = "received"
    WAITING = "waiting"
    READY = "ready"
    IN_FLIGHT = "in_flight"
    BLOCKED = "blocked"
    DEAD = "dead"
    ENDED = "ended"


OPEN_STATES = tuple(state for state in State if state is not State.ENDED)
LOGGED_STATES = (State.RECEIVED, State.READY, State.BLOCKED, State.DEAD, State.ENDED)
"""States that a fact leads to. The first two are open: scheduling determines the state until the next fact."""
HEADS = (State.READY, State.IN_FLIGHT, State.BLOCKED)
"""States of a lane's head. A lane has at most one; the database refuses a second."""

ENDINGS = ("delivered", "unchanged", "superseded", "skipped", "cancelled", "corrected")
"""Kinds of facts that may be the last of an ended delivery. A listing shows them as its state."""

UNROUTED = "unrouted"
RETRYING = "retrying"
"""Shown in place of `ready`, for a delivery that waits for its next attempt after a failure."""

LISTED_STATES = (*(state.value for state in OPEN_STATES), *ENDINGS, UNROUTED)
"""Every value of `delivery.state`: an open state, the last fact of an ended delivery, or that an event takes no route."""

THROUGHPUT_KINDS = ("source", "route", "destination")
"""Every value of `throughput_minute.kind`."""


def is_retrying(state: str, attempts: int, due_at: datetime | None, now: datetime) -> bool:
    """Return whether a delivery waits for its next attempt, after a failure."""
    return state == State.READY and attempts > 0 and due_at is not None and due_at > now
