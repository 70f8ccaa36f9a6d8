"""Fields of operations, in the JSON of `relay_command.selection`, options, URLs, forms and bodies. Pure."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated

import msgspec
from msgspec import Meta

from inbox.events.states import DEAD_STATES, MOST_SEQS

Name = Annotated[str, Meta(max_length=20_000)]
"""A name or id; ids of entities may be long."""
Number = Annotated[int, Meta(ge=0, le=2**63 - 1)]
Moment = Annotated[datetime, Meta(tz=True)]
Status = Annotated[int, Meta(ge=100, le=599)]
Digest = Annotated[str, Meta(pattern="^[0-9a-f]{64}$")]
Seqs = Annotated[tuple[Number, ...], Meta(min_length=1, max_length=MOST_SEQS)]
OneDelivery = Annotated[str, Meta(pattern=r"^[0-9]{1,18}/[^,\x00-\x1f]+$")]
"""SEQ/ROUTE."""
Deliveries = Annotated[tuple[OneDelivery, ...], Meta(min_length=1, max_length=MOST_SEQS)]

BOUNDS = ("until_fact",)
"""Fields that limit a selection to the rows of its plan."""
_NO_CONDITIONS = frozenset({"force", "backfill", "edited_body", "everything", *BOUNDS})
"""Fields that do not narrow a selection."""


class Asks(msgspec.Struct, frozen=True, omit_defaults=True, forbid_unknown_fields=True):
    """Conditions that must all hold."""

    @property
    def is_empty(self) -> bool:
        """True when no condition is given."""
        return all(
            getattr(self, field.name) == field.default
            for field in msgspec.structs.fields(self)
            if field.name not in _NO_CONDITIONS
        )


class Selection(Asks, frozen=True, omit_defaults=True, forbid_unknown_fields=True):
    """Deliveries that meet every condition."""

    route: Annotated[Name | None, Meta(description="Only on this route.")] = None
    seq: Annotated[Number | None, Meta(description="This event.")] = None
    seqs: Annotated[Seqs | None, Meta(description="These events; in a URL separated by commas.")] = None
    deliveries: Annotated[
        Deliveries | None, Meta(description="Exactly these, each as SEQ/ROUTE; in a URL separated by commas.")
    ] = None
    source: Annotated[Name | None, Meta(description="Only from this source.")] = None
    entity_type: Name | None = None
    entity_id: Annotated[Name | None, Meta(description="Only about this entity.")] = None
    destination: Annotated[Name | None, Meta(description="Only on routes to this destination.")] = None
    api: Annotated[Name | None, Meta(description="Only on routes that fetch from this api.")] = None
    cause: Annotated[
        Name | None, Meta(description="Cause of the death; for a retry, the error class of the last failed attempt.")
    ] = None
    status: Annotated[Status | None, Meta(description="Only if the last call got this HTTP status.")] = None
    error: Annotated[Name | None, Meta(description="Only if the last error contains this text, ignoring case.")] = None
    error_sha256: Annotated[Digest | None, Meta(description="SHA-256 of the whole last error (UTF-8), in hex.")] = None
    event_type: Annotated[Name | None, Meta(description="Only events of this type, spelled as by the sender.")] = None
    since: Annotated[
        Moment | None,
        Meta(description="Only if it died or failed last at or after this time; for other states, if it arrived then."),
    ] = None
    until: Annotated[Moment | None, Meta(description="The same, before this time.")] = None
    until_fact: Annotated[
        Number | None,
        Meta(
            description="`delivery_log.id` of the newest fact when a replay was planned; deliveries that have changed since are"
            " skipped."
        ),
    ] = None
    state: Annotated[
        Name | None,
        Meta(description="State as listings show it. Ended deliveries are found only by their numbers or an entity."),
    ] = None
    force: Annotated[
        bool, Meta(description="Replay even where that overwrites the last delivered state with an older one.")
    ] = False
    backfill: Annotated[
        bool,
        Meta(
            description="For one route: also ended deliveries, and events that match the route now but never took it."
        ),
    ] = False
    open_on: Annotated[
        Name | None,
        Meta(
            description="With a backfill: only events that the route never took, and that are still open on this former route."
        ),
    ] = None
    edited_body: Annotated[
        Number | None,
        Meta(
            description="Deliver this row of `edited_body` in place of the event's own body, for one event on one route."
        ),
    ] = None
    everything: Annotated[bool, Meta(description="No condition: everything that the command can change.")] = False

    @property
    def is_about_failures(self) -> bool:
        """True when a condition is about a failed attempt."""
        return (self.cause, self.status, self.error, self.error_sha256) != (None, None, None, None)

    @property
    def names_events(self) -> bool:
        """True when the selection names events or one entity, and so includes ended deliveries."""
        return (self.seq, self.seqs, self.deliveries, self.entity_id) != (None, None, None, None)

    @property
    def dead_only(self) -> bool:
        """For a replay: True when it selects only dead letters, as it names neither events nor an entity."""
        return self.is_about_failures or self.state in DEAD_STATES or not self.names_events


class OneGate(msgspec.Struct, frozen=True, omit_defaults=True, forbid_unknown_fields=True):
    """One gate: a route, destination, api or source, or an entity by its source, type and id."""

    route: Annotated[Name | None, Meta(description="This route.")] = None
    destination: Annotated[Name | None, Meta(description="All routes to this destination.")] = None
    api: Annotated[Name | None, Meta(description="All routes that fetch from this api.")] = None
    source: Annotated[Name | None, Meta(description="All routes of this source.")] = None
    entity_type: Name | None = None
    entity_id: Annotated[Name | None, Meta(description="This entity of the source.")] = None


class OneSource(msgspec.Struct, frozen=True, omit_defaults=True, forbid_unknown_fields=True):
    """The source to sweep."""

    source: Name
    entity_type: Annotated[Name | None, Meta(description="Only this type.")] = None


class OneEntity(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The entity to erase."""

    source: Annotated[Name, Meta(description="The source that names it.")]
    entity_type: Name
    entity_id: Annotated[Name, Meta(description="This entity.")]


class KindsOfRows(msgspec.Struct, frozen=True, omit_defaults=True, forbid_unknown_fields=True):
    """The kinds of rows to prune."""

    kinds: Annotated[
        Annotated[tuple[Name, ...], Meta(min_length=1, max_length=100)] | None,
        Meta(description="Keys of `[retention]`, in a URL separated by commas; default: all."),
    ] = None


class Rejections(Asks, frozen=True, omit_defaults=True, forbid_unknown_fields=True):
    """Rejected requests that meet every condition and were stored in full."""

    id: Annotated[Number | None, Meta(description="This rejected request.")] = None
    source: Annotated[Name | None, Meta(description="Only from this source, as in the URL.")] = None
    cause: Annotated[Name | None, Meta(description="Only of this cause, such as invalid_event.")] = None
    status: Annotated[Status | None, Meta(description="Only if answered with this HTTP status.")] = None
    error: Annotated[Name | None, Meta(description="Only if the reason contains this text, ignoring case.")] = None
    since: Moment | None = None
    until: Moment | None = None
    everything: Annotated[bool, Meta(description="No condition: everything that can be readmitted.")] = False


class OneCommand(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Another command."""

    command: Annotated[Number, Meta(description="The number of the command, as `inbox commands` lists it.")]
