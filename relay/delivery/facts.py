"""Facts: the rows of `delivery_log`, with a frozen class for each thing that can happen to a delivery.

Only a fact ends an attempt or a delivery; leases and places in a lane change without one. `relay.delivery.lifecycle`
defines the effect of each fact.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any, Literal, get_args

import msgspec

from relay.delivery.outcome import Call, ErrorClass, Fact, Skipped, Unchanged


class DeliveredFact(Fact, frozen=True, tag="delivered"):
    """The other system has the change. Terminal."""

    did: str
    calls: tuple[Call, ...] = ()
    late: bool = False
    """A later event of the lane had been delivered before this one."""
    lane: Literal["entity", "route", "event"] = "entity"
    """The kind of its lane. An `event` lane holds this delivery alone and has no row in `lane`."""
    fetch_began_at: datetime | None = None
    """Start of the fetch; UTC."""
    last_modified: datetime | None = None
    """The source's own modification time of the applied state; UTC."""
    applied_hash: str | None = None
    """SHA-256 of the sent data, in hex."""
    stale_suspected: bool = False
    """The fetched entity was older than the event, even after further fetches."""


class Superseded(Fact, frozen=True, tag="superseded"):
    """Another event of the lane covers the event of this delivery. Terminal."""

    by: int
    """The other event's seq."""
    because: Literal["newer", "healed", "covered", "swept"] = "newer"
    """newer: a newer event will be delivered. healed: a newer event was delivered after this one died. covered: a delivered
    event includes this change. swept: an event that a sweep added for the same change was delivered."""


class Cancelled(Fact, frozen=True, tag="cancelled"):
    """An operator ended the delivery. Terminal."""

    who: str
    why: str
    command: int | None = None
    """Number of the command in `relay_command`."""


class AttemptFailed(Fact, frozen=True, tag="attempt_failed"):
    """An attempt did not succeed; the next is due at `due_at`."""

    error_class: ErrorClass
    error: str
    due_at: datetime
    """Earliest time of the next attempt; UTC."""
    calls: tuple[Call, ...] = ()
    counted: bool = True
    """False when the event is not to blame, such as when a breaker opens; the attempt is then given back."""


class Abandoned(Fact, frozen=True, tag="abandoned"):
    """The lease expired: its relay died or was cut off. The effect of the attempt is unknown."""

    relay_node: str
    """The holder of the lease."""


class TookOver(Fact, frozen=True, tag="took_over"):
    """The delivery replaced an older one of its lane that was being retried, and continues the older one's attempts."""

    of: int
    """The older event's seq."""
    attempt: int
    due_at: datetime
    crashes: int = 0


class Rescheduled(Fact, frozen=True, tag="rescheduled"):
    """An operator moved its next attempt forward."""

    due_at: datetime
    """Earliest time of the next attempt; UTC."""
    was_due_at: datetime
    who: str | None = None
    """The operator."""
    why: str | None = None
    command: int | None = None
    """Number of the command in `relay_command`."""


GiveUpCause = Literal[
    "exhausted",  # the schedule has no further attempt
    "crash_loop",  # three attempts in a row were abandoned
    "unrecordable",  # the outcome of its call could not be stored
    "unprocessable",  # the delivery could not be ordered, claimed or rescued
    "payload_gone",  # retention or erasure had deleted the event's headers and body
]

CAUSES: tuple[str, ...] = (*get_args(GiveUpCause), *get_args(ErrorClass))
"""Every value of `Dead.cause`; the error classes are also the causes of failed attempts."""


class Dead(Fact, frozen=True, tag="dead"):
    """A dead letter: the relay gave up on it, and it waits for an operator."""

    cause: str
    """`exhausted`, `crash_loop`, `unrecordable`, `unprocessable`, `payload_gone`, or an error class that retries can't fix."""
    error: str
    calls: tuple[Call, ...] = ()
    blocks_lane: bool = False
    """True when it stops its lane until an operator unblocks it (`on_dead = "block"`)."""
    counted: bool = True
    """False when the delivery could not be ordered, so that no attempt was made."""


class Replayed(Fact, frozen=True, tag="replayed"):
    """An operator started the delivery again."""

    who: str
    why: str
    command: int | None = None
    """Number of the command in `relay_command`."""
    edited_body: int | None = None
    """Number in `edited_body` of the body that this run delivers in place of the event's own."""
    changed: tuple[str, ...] = ()
    """The first fields that differ from the event's own body, as JSON pointers."""


class Rearmed(Fact, frozen=True, tag="rearmed"):
    """A duplicate request may report a change that the last delivery did not include."""

    duplicate: int
    """duplicate_request.id."""


class Unblocked(Fact, frozen=True, tag="unblocked"):
    """An operator let its lane continue; the delivery stays dead."""

    who: str
    why: str
    command: int | None = None
    """Number of the command in `relay_command`."""


class Corrected(Fact, frozen=True, tag="corrected"):
    """The log contradicted itself before this fact, and is consistent from here on. Only `relay rebuild` writes this fact."""

    who: str
    why: str
    """The fact that contradicted its predecessor."""


class Erased(Fact, frozen=True, tag="erased"):
    """The event's entity was erased: earlier facts lost their texts and calls, and kept their states and times."""

    who: str
    why: str


AnyFact = (
    DeliveredFact
    | Unchanged
    | Superseded
    | Skipped
    | Cancelled
    | AttemptFailed
    | Abandoned
    | TookOver
    | Rescheduled
    | Dead
    | Replayed
    | Rearmed
    | Unblocked
    | Corrected
    | Erased
)

KINDS = tuple(str(fact.__struct_config__.tag) for fact in get_args(AnyFact))
"""Every value of `delivery_log.kind`."""


def get_kind(fact: AnyFact) -> str:
    """Return the value of `delivery_log.kind`."""
    return str(fact.__struct_config__.tag)


def get_detail(fact: AnyFact) -> dict[str, Any]:
    """Return the value of `delivery_log.detail`: everything but the kind. Times stay datetimes."""
    built: dict[str, Any] = msgspec.to_builtins(fact, builtin_types=(datetime,))
    del built["kind"]
    return built
