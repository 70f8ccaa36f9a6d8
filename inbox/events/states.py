"""States of a delivery and the length of its lease: the schema and its views share them with the relay."""

from __future__ import annotations

from enum import StrEnum

LEASE_SECONDS = 15
"""A claim holds a delivery for so long. A relay that was silent for longer has lost all of its leases."""


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
HEADS = (State.READY, State.IN_FLIGHT, State.BLOCKED)
"""States of a lane's head. A lane has at most one; the database refuses a second."""
