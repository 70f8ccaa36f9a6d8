"""Tables of a sync route: fetch an entity, find its counterpart in the destination, map and write it."""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from inbox.config.calls import CallKeys
from inbox.config.paging import PagingSetting, paging_of
from inbox.config.sweep import Listing
from inbox.config.types import Duration, Table

Method = Literal["GET", "POST", "PUT", "PATCH", "DELETE"]


MOST_FIND_PAGES = 10
"""Pages that a find reads at most, unless its `pages` give another number."""


class Fetch(CallKeys, frozen=True):
    """Reading of the entity from its source."""

    api: str
    path: str
    method: Literal["GET", "POST"] = "GET"
    params: dict[str, str] = {}
    body: dict[str, Any] | None = None
    pick: str | None = None
    """JMESPath into the answer that gives the entity, such as `data.user`. An explicit null there means that it is gone."""
    modified: str = "meta.lastModified"
    """JMESPath into the entity that gives the time of its last change (SCIM's place, RFC 7643 §3.1, and Trivore ID's)."""
    tolerance: Duration | None = None
    """An entity whose last change is longer than this before its event is stale. It is fetched again after 1, 5 and 30 s,
    and then applied with `stale_suspected` in the log. Without it, no entity is stale."""
    exempt: list[str] = []
    """Event types that don't change the entity, such as a login, so that an older entity is not stale."""
    conditional: bool = False
    """Ask with `If-None-Match` for an entity that was applied before. After a 304 the event ends `unchanged`, and nothing
    is looked up in the destination. Replays, deletions and a changed configuration fetch the whole entity."""
    verify: dict[str, str] = {}
    """Values that the entity must have: a JMESPath into the entity = a JMESPath over `event`, `{ id = "event.entity_id" }`.
    Without it, any object in the api's answer is accepted."""


class Find(CallKeys, frozen=True):
    """Lookup of the counterpart in the destination; without it, nothing is looked up."""

    path: str
    method: Literal["GET", "POST"] = "GET"
    params: dict[str, str] = {}
    body: dict[str, Any] | None = None
    pick: str | None = None
    """JMESPath into the answer that gives the list of matches, or the one match. An answer without either is unusable."""
    pages: PagingSetting = "none"
    """Paging: a table, or `"link"` (the `Link` header), `"scim"`, or `"none"`, where one answer has everything. It ends as
    soon as it is clear whether there is no match, one, or more."""
    verify: dict[str, str] | bool = True
    """Values that a match must have before anything is written to it: a JMESPath into the match = a JMESPath over the
    same names as in `path`, `{ externalId = "event.entity_id" }`. `true` checks each value that is searched for and that a
    field of `map` gets unchanged; there has to be one. `false` accepts any match."""
    ignore_case: bool = False
    """Let `verify` ignore the case of texts, as SCIM does for a `userName`."""

    @property
    def most_calls(self) -> int:
        """Return the most calls that it makes."""
        paging = paging_of(self.pages)
        if paging is None:
            return 1
        # By number, the second page has a second match, or is the end.
        return 2 if paging.by in {"page", "start"} and paging.more is None else paging.most or MOST_FIND_PAGES


class Write(CallKeys, frozen=True):
    """Creation or deletion of the counterpart."""

    path: str
    method: Method | None = None
    body: dict[str, Any] | None = None


class Update(CallKeys, frozen=True):
    """Change of the counterpart."""

    path: str
    method: Method = "PATCH"
    body: dict[str, Any] | None = None
    format: Literal["merge-patch", "json-patch", "json", "form"] = "merge-patch"
    if_match: str | None = None
    """JMESPath over `target` and `etag`, the version in the answer to `find`. Its value is sent as `If-Match`. On 412
    (somebody else changed the counterpart) the process starts again."""


class Deactivate(CallKeys, frozen=True, kw_only=True):
    """Deactivation of the counterpart, where it is not to be deleted."""

    path: str
    method: Method = "PATCH"
    body: dict[str, Any] = {}
    unless: str | None = None
    """JMESPath over `event` and `target` that is true when the counterpart is inactive already. Then nothing is sent, and
    `relay plan` finds it in sync. Without it, each event of an entity that is gone deactivates it again."""


class MapField(Table, frozen=True):
    """Rule for one field of the counterpart, where an expression alone is not enough; docs/reference/mapping.md has examples."""

    expression: str | None = msgspec.field(default=None, name="from")
    """JMESPath over {event, entity, target}."""
    value: Any = None
    """In place of `from`: a constant."""
    function: str | None = None
    """In place of `from`: `package.module:name`, called with (event, entity, target); None means no value."""
    cast: Literal["text", "int", "float", "bool", "date", "datetime"] | None = None
    """Type to convert the value to; a value that doesn't fit is an error."""
    read: str | None = None
    """Format of a date that is not RFC 3339, such as `%d.%m.%Y`; UTC unless it has an offset."""
    write: str | None = None
    """Format in which a date is sent, such as `%d.%m.%Y`; by default RFC 3339. Always UTC."""
    lookup: dict[str, Any] | None = None
    """Value to send for each value found; one that is not listed is an error, or the `default`."""
    default: Any = None
    """Value to send when there is none."""
    required: bool = False
    """A missing value is an error."""


class SyncRoute(Table, frozen=True):
    """Process of a sync route."""

    fetch: Fetch
    map: dict[str, str | MapField] = {}
    """Field of the counterpart = JMESPath over {event, entity, target}, or a table."""
    transform: str | None = None
    """`package.module:name`, called with (fields, event, entity, target) after the map. It returns the fields to send."""
    find: Find | None = None
    create: Write | None = None
    update: Update | None = None
    delete: Write | None = None
    missing: Literal["create", "skip", "retry", "dead"] = "create"
    many: Literal["dead", "first"] = "dead"
    gone: Literal["delete", "deactivate", "skip"] = "delete"
    deactivate: Deactivate | None = None
    listing: Listing | None = None
    """Listing of all counterparts, for `relay sweep --full`."""
    skip_unchanged: bool = False
    """Send nothing when the fields, and a `body` of the update, equal those that were sent last; the event ends `unchanged`."""
    clear_when_absent: list[str] = []
