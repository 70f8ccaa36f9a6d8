"""The tables of a sync route: how an entity is fetched, found in the destination, mapped and written there."""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from inbox.config_sweep import Listing
from inbox.config_values import Duration, Table

Method = Literal["GET", "POST", "PUT", "PATCH", "DELETE"]


class Fetch(Table, frozen=True):
    """How the entity is read from its source."""

    api: str
    path: str
    params: dict[str, str] = {}
    modified: str = "meta.lastModified"
    """A JMESPath into the entity that gives the time of its last change (SCIM's place, RFC 7643 §3.1, and Trivore ID's)."""
    tolerance: Duration | None = None
    """An entity that was last changed longer than this before its event is taken for stale: it is fetched again after 1, 5
    and 30 s, and then applied all the same, with `stale_suspected` in the log. Without it nothing is."""
    exempt: list[str] = []
    """Event types after which an older entity is no wonder, such as a login."""


class Find(Table, frozen=True):
    """How the counterpart is looked up in the destination; without it, nothing is looked up."""

    path: str
    method: Literal["GET", "POST"] = "GET"
    params: dict[str, str] = {}
    body: dict[str, Any] | None = None
    pick: str | None = None
    """A JMESPath into the answer that gives the list of matches, or the one match."""


class Write(Table, frozen=True):
    """How the counterpart is created or deleted."""

    path: str
    method: Method | None = None


class Update(Table, frozen=True):
    """How the counterpart is changed."""

    path: str
    method: Method = "PATCH"
    format: Literal["merge-patch", "json-patch", "json", "form"] = "merge-patch"
    if_match: str | None = None
    """A JMESPath over `target`, or `etag`, which the answer to `find` had: sent as `If-Match`. When somebody else has changed
    the counterpart meanwhile (412), all is looked at again."""


class Deactivate(Table, frozen=True, kw_only=True):
    """How the counterpart is marked as gone, where it is not to be deleted."""

    path: str
    method: Method = "PATCH"
    body: dict[str, Any]


class MapField(Table, frozen=True):
    """How a field of the counterpart gets its value, where an expression alone can't say it; docs/mapping.md has examples."""

    expression: str | None = msgspec.field(default=None, name="from")
    """A JMESPath over {event, entity, target}."""
    value: Any = None
    """In place of `from`: always this."""
    function: str | None = None
    """In place of `from`: `package.module:name`, called with (event, entity, target); None is no value."""
    cast: Literal["text", "int", "float", "bool", "date", "datetime"] | None = None
    """What the value is made into; what doesn't fit is an error."""
    read: str | None = None
    """How the source writes a date that is not RFC 3339, such as `%d.%m.%Y`; UTC unless it has an offset."""
    write: str | None = None
    """How a date is sent, such as `%d.%m.%Y`; as RFC 3339 unless given. Always UTC."""
    lookup: dict[str, Any] | None = None
    """What is sent for each value; one that is not in it is an error, or the `default`."""
    default: Any = None
    """Sent when there is no value."""
    required: bool = False
    """Whether it is an error that there is no value."""


class Sync(Table, frozen=True):
    """The process of a sync route."""

    fetch: Fetch
    map: dict[str, str | MapField] = {}
    """Target field = JMESPath over {event, entity, target}, or a table."""
    transform: str | None = None
    """`package.module:name`, called with (fields, event, entity, target) after the map; returns the fields to send."""
    find: Find | None = None
    create: Write | None = None
    update: Update | None = None
    delete: Write | None = None
    missing: Literal["create", "skip", "retry", "dead"] = "create"
    many: Literal["dead", "first"] = "dead"
    gone: Literal["delete", "deactivate", "skip"] = "delete"
    deactivate: Deactivate | None = None
    listing: Listing | None = None
    """How all counterparts are listed, for `relay sweep --full`."""
    skip_unchanged: bool = False
    """Send nothing when the fields are those that were sent last: the event ends `unchanged`."""
    clear_when_absent: list[str] = []
