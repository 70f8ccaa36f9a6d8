"""The tables of a sync route: how an entity is fetched, found in the destination, mapped and written there."""

from __future__ import annotations

from typing import Annotated, Any, Literal

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
    verify: dict[str, str] = {}
    """The entity has to carry these values: a JMESPath into the entity = a JMESPath over `event`, `{ id = "event.entity_id" }`.
    Without it, whatever object the api answers with is taken for the entity."""


class FindPages(Table, frozen=True, kw_only=True):
    """How the matches of a find go on, where the destination gives them page by page.

    It is looked on only until it is clear whether there is none, one, or more than one. `params`, the find's own too, and its
    `body` are templates over `start` and `count` as well.
    """

    params: dict[str, str] | None = None
    """Further parameters of the query; with `next`, those that look into it are left out of the first page's. Without it,
    what SCIM takes; and with `next`, none: then `next` is a link, whose query is that of the next page."""
    count: Annotated[int, msgspec.Meta(ge=1, le=10_000)] = 10
    """How large a page is asked for."""
    first: Annotated[int, msgspec.Meta(ge=0, le=1)] = 0
    """What `start` begins with: 1 for SCIM."""
    total: str | None = None
    """A JMESPath into a page that gives how many matches there are in all: saves asking for a page that is empty; and of 0 matches,
    there need be no list."""
    next: str | None = None
    """In place of `start`: a JMESPath into a page that gives a link to the next one, or the value for `{next}` in `params`;
    nothing, null, false or an empty text on the last."""
    most: Annotated[int, msgspec.Meta(ge=2, le=100)] = 10
    """With `next`: so many pages are looked at; when there are more, it is not known what there is, and nothing is written."""

    @property
    def query(self) -> dict[str, str]:
        """`params`, or what stands for them."""
        if self.params is not None:
            return self.params
        return PAGE_PARAMS if self.next is None else {}

    @property
    def most_calls(self) -> int:
        """How many pages one find may ask for: by `start`, the second one tells whether there is a second match."""
        return 2 if self.next is None else self.most


class Find(Table, frozen=True):
    """How the counterpart is looked up in the destination; without it, nothing is looked up."""

    path: str
    method: Literal["GET", "POST"] = "GET"
    params: dict[str, str] = {}
    body: dict[str, Any] | None = None
    pick: str | None = None
    """A JMESPath into the answer that gives the list of matches, or the one match. Where it gives neither, the answer is bad."""
    pages: FindPages | None = None
    """How the matches go on, where an answer may not hold them all. Without it, the first answer is all there is."""
    verify: dict[str, str] | bool = True
    """A match has to carry these values before anything is written to it: a JMESPath into the match = a JMESPath over the same
    as in `path`, `{ externalId = "event.entity_id" }`. `true`: each value that is searched for and that a field of `map` gets
    as it is. `false`: any match is taken for the counterpart."""
    ignore_case: bool = False
    """`verify` takes texts that differ in case alone for the same, as SCIM does for a `userName`."""

    @property
    def most_calls(self) -> int:
        """How many calls it may take."""
        return 1 if self.pages is None else self.pages.most_calls


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
