"""One frozen value for each thing that can happen to a delivery: the rows of `delivery_log`.

Nothing changes a delivery but a fact. What a fact does to it stands in `relay.delivery.lifecycle`; here is what it says.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any, Literal, get_args

import msgspec

from relay.delivery.outcome import Call, ErrorClass


class Fact(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True, tag_field="kind", tag=str):
    """Something that happened to one delivery; its class says what."""


class Delivered(Fact, frozen=True, tag="delivered"):
    """The other system has it. Terminal."""

    did: str
    calls: tuple[Call, ...] = ()
    late: bool = False
    """A later event of the lane had been delivered before this one."""
    lane: Literal["entity", "route", "event"] = "entity"
    """The kind of lane it was delivered in: only its own, `event`, has no row in `lane`."""
    fetch_began_at: datetime | None = None
    """When the entity was asked for; UTC."""
    last_modified: datetime | None = None
    """The source's own time of the state that was applied; UTC."""
    applied_hash: str | None = None
    """SHA-256 of what was sent, in hex."""
    stale_suspected: bool = False
    """What was fetched is older than the event, also after some waiting."""


class Unchanged(Fact, frozen=True, tag="unchanged"):
    """Nothing had to be sent: the other system has it already. Terminal."""

    calls: tuple[Call, ...] = ()


class Superseded(Fact, frozen=True, tag="superseded"):
    """Another event of the lane stands for this one. Terminal."""

    by: int
    """The other event's seq."""
    because: Literal["newer", "healed", "covered", "told"] = "newer"
    """A newer one is still to be delivered; one was delivered after this had died; what was delivered has this in it; a
    sweep had added an event of the very change, and that was delivered."""


class Skipped(Fact, frozen=True, tag="skipped"):
    """The route's own rule says that nothing is to be done. Terminal."""

    why: str
    calls: tuple[Call, ...] = ()


class Cancelled(Fact, frozen=True, tag="cancelled"):
    """A person ended it. Terminal."""

    who: str
    why: str


class AttemptFailed(Fact, frozen=True, tag="attempt_failed"):
    """An attempt did not succeed; the next is due at `due_at`."""

    error_class: ErrorClass
    error: str
    due_at: datetime
    """Not before; UTC."""
    calls: tuple[Call, ...] = ()
    counted: bool = True
    """False when it says nothing of this event, such as when a breaker opens: the attempt is given back."""


class Abandoned(Fact, frozen=True, tag="abandoned"):
    """The lease ran out: the relay that worked on it died or was cut off, and how far it came is unknown."""

    relay_node: str
    """Who held the lease."""


class TookOver(Fact, frozen=True, tag="took_over"):
    """It replaced an older event of its lane that was being retried, and goes on from that one's attempts."""

    of: int
    """The older event's seq."""
    attempt: int
    due_at: datetime
    crashes: int = 0


class Rescheduled(Fact, frozen=True, tag="rescheduled"):
    """It was due further ahead than any rule allows: the database's clock had run ahead, and was put right."""

    due_at: datetime
    """Not before; UTC."""
    was_due_at: datetime


class Dead(Fact, frozen=True, tag="dead"):
    """It was given up, and waits for a person."""

    cause: str
    """`exhausted`, `crash_loop`, `unrecordable`, `unprocessable`, or the error class that no repetition can mend."""
    error: str
    calls: tuple[Call, ...] = ()
    blocks_lane: bool = False
    """By the route's `on_dead = "block"`: nothing of the lane goes on until it is unblocked."""
    counted: bool = True
    """False when no attempt was made: the delivery could not even be ordered."""


class Replayed(Fact, frozen=True, tag="replayed"):
    """A person asked for it again."""

    who: str
    why: str


class Rearmed(Fact, frozen=True, tag="rearmed"):
    """A duplicate request may stand for a change that the last delivery did not cover."""

    repeat: int
    """duplicate_request.id."""


class Unblocked(Fact, frozen=True, tag="unblocked"):
    """A person let the lane go on past it; it stays dead."""

    who: str
    why: str


CorrectedState = Literal["open", "blocked", "dead", "ended"]


class Corrected(Fact, frozen=True, tag="corrected"):
    """The log contradicted itself; from here on the delivery stands as this says. Only `relay rebuild` writes it."""

    state: CorrectedState
    attempt: int
    run: int
    who: str
    why: str
    """What was wrong with the facts before."""


AnyFact = (
    Delivered
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
)

_DECODER: msgspec.json.Decoder[AnyFact] = msgspec.json.Decoder(AnyFact)

_DECODERS: dict[str, msgspec.json.Decoder[AnyFact]] = {
    str(fact.__struct_config__.tag): msgspec.json.Decoder(fact) for fact in get_args(AnyFact)
}

KINDS = tuple(_DECODERS)
"""Every word that `delivery_log.kind` can have."""

CORRECTED = str(Corrected.__struct_config__.tag)


def kind_of(fact: AnyFact) -> str:
    """The word in `delivery_log.kind`."""
    return str(fact.__struct_config__.tag)


def detail_of(fact: AnyFact) -> dict[str, Any]:
    """What goes into `delivery_log.detail`: everything but the kind. Times stay times."""
    built: dict[str, Any] = msgspec.to_builtins(fact, builtin_types=(datetime,))
    del built["kind"]
    return built


def decode(kind: str, detail: dict[str, Any]) -> AnyFact:
    """The fact that a row of `delivery_log` holds.

    Raises:
        msgspec.ValidationError: no fact of this version.
    """
    return _DECODER.decode(msgspec.json.encode({**detail, "kind": kind}))


def decode_text(kind: str, detail: str) -> AnyFact:
    """As `decode`, from the JSON text of `detail`: four times as fast.

    Raises:
        msgspec.ValidationError: no fact of this version.
    """
    if kind not in _DECODERS:
        raise msgspec.ValidationError(f"no fact is a {kind}")
    return _DECODERS[kind].decode(detail)
