"""Listings that sweeps compare: `[[sources.NAME.sweeps]]`, and a sync route's `listing`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

import msgspec

from inbox.config.calls import CallKeys
from inbox.config.paging import Paging, PagingSetting, paging_of
from inbox.config.types import Duration, Table, Unit
from inbox.events.event import Action

_SCIM_PARAMS = {"filter": "meta.lastModified ge {since:scim}", "sortBy": "meta.lastModified"}


class ListingCall(CallKeys, frozen=True, kw_only=True):
    """The call for a listing, and the places of what it lists."""

    path: str
    method: Literal["GET", "POST"] = "GET"
    params: dict[str, str] | None = None
    """Query parameters; values are templates, as in `path`. In a sweep that pages by start, the default is the filter and the
    order of SCIM and Trivore ID: `meta.lastModified ge {since:scim}`."""
    body: dict[str, Any] | None = None
    """JSON body; each text in it is a template, as in `path`."""
    pages: PagingSetting = Paging(by="start")
    """Paging: a table, or `"link"` (the `Link` header), `"scim"`, or `"none"`, where one answer has everything. By default
    `{ by = "start" }`, as Trivore ID pages."""
    items: str = "items"
    """JMESPath into a page that gives the list of entities."""

    @property
    def query(self) -> Mapping[str, str]:
        """Return `params`, or their default."""
        return self.params or {}


class IdsOfCall(Table, frozen=True, kw_only=True):
    """The ids in one call of a listing that is asked for certain ids, as `{ids}` in its templates."""

    size: Annotated[int, msgspec.Meta(ge=1, le=1000)] = 50
    """Number of ids in a call."""
    each: str | None = None
    """Template over `id` that writes one id, such as `externalId eq {id:scim}`. Without it, `{ids}` is a list, for a body."""
    join: str = ","
    """Text between the ids that `each` has written."""


class Listing(ListingCall, frozen=True, kw_only=True):
    """A listing of counterparts. `relay sweep --full` compares it with the source."""

    id: str
    """JMESPath into a counterpart that gives the id of its entity."""
    ids: IdsOfCall | None = None
    """Ask for certain ids, in chunks, where the destination takes many at once. The calls ask for the source's entities, and
    for those that the inbox knows. Without it, everything is listed."""


class Sweep(ListingCall, frozen=True, kw_only=True):
    """A listing of one type of entity.

    The default `params` are those of SCIM (RFC 7644 §3.4.2). It is an assumption that Trivore ID's filter accepts
    `meta.lastModified ge`; `params` change it.
    """

    api: str
    """Api to ask: a name of `[apis]`."""
    entity_type: str
    """Entity type, as webhooks name it."""
    event_type: str = "sweep"
    """Event type of the events that are added. Routes with `when.event_type` must accept it."""
    action: Action = "update"
    items: str = "resources"
    """JMESPath into a page that gives the list of entities."""
    id: str = "id"
    """JMESPath into an entity that gives its id."""
    modified: str = "meta.lastModified"
    """JMESPath into an entity that gives the time of its last change."""
    time_unit: Unit = "rfc3339"
    """RFC 3339, or seconds or milliseconds since 1970: the form of the time at `modified`."""
    event_body: dict[str, Any] | None = None
    """Body of the events that are added, shaped like the webhook's: a table, also a nested one, of JMESPaths over the
    entity; `@` is the whole entity. Without it, the entity is at `sweep.item`."""
    overlap: Duration = Duration(300)
    """A sweep begins this long before the last change that the previous one compared."""
    grace: Duration = Duration(60)
    """Younger changes are left to the next sweep, as their webhooks may still arrive."""
    every: Duration | None = None
    """Interval of the sweeps that the relay runs; one that failed is repeated after at most five minutes. Without it, only
    `relay sweep` runs them."""

    @property
    def query(self) -> Mapping[str, str]:
        """Return `params`, or their default."""
        if self.params is not None:
            return self.params
        paging = paging_of(self.pages)
        return _SCIM_PARAMS if paging is not None and paging.by == "start" else {}
