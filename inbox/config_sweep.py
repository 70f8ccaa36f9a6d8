"""How a source is asked for what has changed, to find what no webhook has told."""

from __future__ import annotations

from typing import Annotated

import msgspec

from inbox.config_values import Duration, Table
from inbox.event import Action

SCIM_PARAMS = {
    "filter": "meta.lastModified ge {since:scim}",
    "sortBy": "meta.lastModified",
    "startIndex": "{start}",
    "count": "{count}",
}


PAGE_PARAMS = {"startIndex": "{start}", "count": "{count}"}


class Listing(Table, frozen=True, kw_only=True):
    """All counterparts of a sync route's destination, page by page: `relay sweep --full` looks for orphans there."""

    path: str
    params: dict[str, str] = msgspec.field(default_factory=lambda: dict(PAGE_PARAMS))
    """The query; values are templates over `start` and `count`. Without it, what SCIM takes."""
    count: Annotated[int, msgspec.Meta(ge=2, le=10_000)] = 500
    """The largest page that the destination gives."""
    first: Annotated[int, msgspec.Meta(ge=0, le=1)] = 0
    """What `start` begins with."""
    items: str = "items"
    """A JMESPath into a page that gives the list of counterparts."""
    id: str
    """A JMESPath into a counterpart that gives the id of its entity."""


class Sweep(Table, frozen=True, kw_only=True):
    """A listing of one type of entity, page by page.

    The default parameters are those of SCIM (RFC 7644 §3.4.2). That Trivore ID's filter takes `meta.lastModified ge` is an
    assumption; `params` change it.
    """

    api: str
    """Who is asked: a name of `[apis]`."""
    path: str
    entity_type: str
    """As webhooks name it."""
    event_type: str = "sweep"
    """Of the events that are added; routes with `when.event_type` have to take it."""
    action: Action = "update"
    params: dict[str, str] = msgspec.field(default_factory=lambda: dict(SCIM_PARAMS))
    """The query; values are templates over `since`, `start` and `count`. Without it, what SCIM and Trivore ID take."""
    count: Annotated[int, msgspec.Meta(ge=2, le=10_000)] = 500
    """The largest page that the api gives."""
    first: Annotated[int, msgspec.Meta(ge=0, le=1)] = 0
    """What `start` begins with: 0 for Trivore ID, 1 for SCIM, which takes 0 for 1."""
    items: str = "resources"
    """A JMESPath into a page that gives the list of entities."""
    id: str = "id"
    """A JMESPath into an entity that gives its id."""
    modified: str = "meta.lastModified"
    """A JMESPath into an entity that gives the time of its last change."""
    overlap: Duration = Duration(300)
    """A sweep begins so long before the last change that the one before has compared."""
    grace: Duration = Duration(60)
    """Changes that are younger are left to the next sweep: their webhooks may be on their way."""
    every: Duration | None = None
    """A relay that runs sweeps so often; one that failed is repeated after five minutes at most. Without it: only
    `relay sweep` does."""
