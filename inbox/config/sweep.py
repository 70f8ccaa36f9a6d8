"""Listings that sweeps compare: `[[sources.NAME.sweeps]]`, and a sync route's `listing`, with their page sizes and intervals."""

from __future__ import annotations

from typing import Annotated

import msgspec

from inbox.config.types import Duration, Table
from inbox.events.event import Action

SCIM_PARAMS = {
    "filter": "meta.lastModified ge {since:scim}",
    "sortBy": "meta.lastModified",
    "startIndex": "{start}",
    "count": "{count}",
}
PAGE_PARAMS = {"startIndex": "{start}", "count": "{count}"}


class Listing(Table, frozen=True, kw_only=True):
    """A listing of all counterparts, page by page. `relay sweep --full` looks for orphans in it."""

    path: str
    params: dict[str, str] = msgspec.field(default_factory=lambda: dict(PAGE_PARAMS))
    """Query parameters; values are templates over `start` and `count`. By default those of SCIM."""
    count: Annotated[int, msgspec.Meta(ge=2, le=10_000)] = 500
    """Largest page that the destination returns."""
    first: Annotated[int, msgspec.Meta(ge=0, le=1)] = 0
    """First value of `start`."""
    items: str = "items"
    """JMESPath into a page that gives the list of counterparts."""
    id: str
    """JMESPath into a counterpart that gives the id of its entity."""


class Sweep(Table, frozen=True, kw_only=True):
    """A listing of one type of entity, page by page.

    The default parameters are those of SCIM (RFC 7644 §3.4.2). It is an assumption that Trivore ID's filter accepts
    `meta.lastModified ge`; `params` change it.
    """

    api: str
    """Api to ask: a name of `[apis]`."""
    path: str
    entity_type: str
    """Entity type, as webhooks name it."""
    event_type: str = "sweep"
    """Event type of the events that are added. Routes with `when.event_type` must accept it."""
    action: Action = "update"
    params: dict[str, str] = msgspec.field(default_factory=lambda: dict(SCIM_PARAMS))
    """Query parameters; values are templates over `since`, `start` and `count`. By default those of SCIM and Trivore ID."""
    count: Annotated[int, msgspec.Meta(ge=2, le=10_000)] = 500
    """Largest page that the api returns."""
    first: Annotated[int, msgspec.Meta(ge=0, le=1)] = 0
    """First value of `start`: 0 for Trivore ID, 1 for SCIM, which reads 0 as 1."""
    items: str = "resources"
    """JMESPath into a page that gives the list of entities."""
    id: str = "id"
    """JMESPath into an entity that gives its id."""
    modified: str = "meta.lastModified"
    """JMESPath into an entity that gives the time of its last change."""
    overlap: Duration = Duration(300)
    """A sweep begins this long before the last change that the previous one compared."""
    grace: Duration = Duration(60)
    """Younger changes are left to the next sweep, as their webhooks may still arrive."""
    every: Duration | None = None
    """Interval of the sweeps that the relay runs; one that failed is repeated after at most five minutes. Without it, only
    `relay sweep` runs them."""
