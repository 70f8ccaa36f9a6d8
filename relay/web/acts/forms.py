"""Forms of acts: the fields of each kind's selection, as a URL, a form or a JSON body gives them. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated

import msgspec

from inbox.db.parameters import is_storable
from inbox.errors import BadFilter
from inbox.events.commands import (
    CANCELLED_BY_STATE,
    MOST_REASON,
    MOST_SEQS,
    REPLAYED_BY_STATE,
    SAYS_WHY_PATTERN,
    says_why,
)
from relay.store.operator.selection import OneDelivery
from relay.web.query import GivenTime, Number

Name = Annotated[str, msgspec.Meta(max_length=20_000)]
"""A name or id: those of entities may be long."""
Digest = Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{64}$")]
Status = Annotated[int, msgspec.Meta(ge=100, le=599)]
Reason = Annotated[
    str,
    msgspec.Meta(
        max_length=MOST_REASON, extra_json_schema={"pattern": SAYS_WHY_PATTERN, "description": "Reason for it."}
    ),
]
"""A reason that `checked_reason` takes."""
Seqs = Annotated[tuple[Number, ...], msgspec.Meta(min_length=1, max_length=MOST_SEQS)]
"""Numbers of events; in a URL with commas between them."""
Deliveries = Annotated[tuple[OneDelivery, ...], msgspec.Meta(min_length=1, max_length=MOST_SEQS)]
"""Deliveries of any routes."""


class DeliveriesForm(msgspec.Struct, frozen=True, kw_only=True):
    """Deliveries that meet every condition."""

    route: Name | None = None
    seq: Number | None = None
    seqs: Seqs | None = None
    """Numbers of events; in a URL with commas between them."""
    deliveries: Deliveries | None = None
    """Exactly these, each as SEQ/ROUTE; in a URL with commas between them."""
    source: Name | None = None
    entity_type: Name | None = None
    entity_id: Name | None = None
    destination: Name | None = None
    """All routes to it."""
    api: Name | None = None
    """All routes that ask it."""
    cause: Name | None = None
    """Of the death; for a retry: error class of the last failed attempt."""
    status: Status | None = None
    """HTTP status of the last call's answer."""
    error: Name | None = None
    """A part of the last error, in any case."""
    error_sha256: Digest | None = None
    """SHA-256 of the whole last error, letter by letter, as UTF-8 in hex."""
    event_type: Name | None = None
    since: GivenTime | None = None
    """Died, or failed last, at or after this time; where others are selected: arrived at or after."""
    until: GivenTime | None = None
    """The same, before this time."""
    as_of: GivenTime | None = None
    """Time of the plan that was shown: what died, failed or arrived later is left alone."""
    everything: bool = False
    """Without any condition: all that the act could change."""


class CancelForm(DeliveriesForm, frozen=True, kw_only=True):
    """Deliveries that meet every condition, perhaps of one state."""

    state: Annotated[Name, msgspec.Meta(extra_json_schema={"enum": list(CANCELLED_BY_STATE)})] | None = None
    """State as lists show it. Times count from the death of a dead or blocked one, and from the failure of a retrying one."""


class ReplayForm(DeliveriesForm, frozen=True, kw_only=True):
    """Deliveries that meet every condition, and how they are replayed."""

    state: Annotated[Name, msgspec.Meta(extra_json_schema={"enum": list(REPLAYED_BY_STATE)})] | None = None
    """State as lists show it. Ended ones are found by `seq`, `seqs` or an entity alone."""
    force: bool = False
    """Replay even where that overwrites the last delivered state with an older one."""
    backfill: bool = False
    """Of one route: also ended deliveries, and events that match the route now and have never taken it."""


class GateForm(msgspec.Struct, frozen=True, kw_only=True):
    """One gate: a route, destination, api or source; an entity by its source, type and id."""

    route: Name | None = None
    destination: Name | None = None
    api: Name | None = None
    source: Name | None = None
    entity_type: Name | None = None
    entity_id: Name | None = None


class SweepForm(msgspec.Struct, frozen=True, kw_only=True):
    """A source that is asked for missed changes."""

    source: Name
    entity_type: Name | None = None
    """Of this type alone."""


class EraseForm(msgspec.Struct, frozen=True, kw_only=True):
    """The entity to erase."""

    source: Name
    entity_type: Name
    entity_id: Name
    again: Name | None = None
    """The entity's id once more, so that nobody erases by mistake."""


class PruneForm(msgspec.Struct, frozen=True, kw_only=True):
    """Kinds of rows whose retention is applied now."""

    kinds: Name | None = None
    """Keys of `[retention]`, with commas between them; absent: all."""


class ReadmitForm(msgspec.Struct, frozen=True, kw_only=True):
    """Rejected requests that meet every condition and were kept whole."""

    id: Number | None = None
    source: Name | None = None
    cause: Name | None = None
    status: Status | None = None
    error: Name | None = None
    """A part of the reason, in any case."""
    since: GivenTime | None = None
    until: GivenTime | None = None
    as_of: GivenTime | None = None
    """Time of the plan that was shown: what was rejected later is left alone."""
    everything: bool = False
    """Without any condition: all that can be readmitted."""


class Submission(msgspec.Struct, frozen=True):
    """Fields beside those of the selection, as they were sent."""

    reason: str = ""
    plan: str | None = None
    """`ActPlan.plan` of the plan that was shown."""
    key: str | None = None
    """Sent twice, the same form is one command."""
    dry_run: bool = False


def checked_reason(reason: str) -> str:
    """Return a reason without space around it.

    Raises:
        BadFilter: it says nothing, or is too long.
    """
    stripped = reason.strip()
    if not says_why(stripped):
        raise BadFilter("say why, in letters or digits: the reason is kept", field="reason")
    if len(stripped) > MOST_REASON:
        raise BadFilter(f"a reason has at most {MOST_REASON:,} characters", field="reason")
    return stripped


def require_storable(fields: Mapping[str, object]) -> None:
    """Check that the database can store every text.

    Raises:
        BadFilter: one has NUL or a half of a surrogate pair.
    """
    for name, value in fields.items():
        if isinstance(value, str) and not is_storable(value):
            raise BadFilter(f"{name} has a character that no database stores", field=name)
